"""The catalogue has the benchmarks of the paper, once each, and what it says of them agrees with itself."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite.catalogue import BENCHMARKS, GENERAL, ROWS, SAFETY, TASKS, find

ALL_TASKS = [task for benchmark in BENCHMARKS for task in benchmark.tasks]


def test_there_are_27_benchmarks_and_8_of_safety():
    assert (len(GENERAL), len(SAFETY)) == (27, 8)
    assert Counter(benchmark.dimension for benchmark in BENCHMARKS) == {
        "conversation": 3, "general": 5, "chart": 4, "ocr": 3, "real_world": 2, "math": 2, "hallucination": 3, "video": 3,
        "multi_image": 2, "safety": 8,
    }  # fmt: skip


def test_names_are_unique_and_names_of_files():
    names = [benchmark.name for benchmark in BENCHMARKS]
    assert len(set(names)) == len(names) and len(TASKS) == len(ALL_TASKS)
    assert len(ROWS) == sum(len(task.rows) for task in ALL_TASKS)
    allowed = set(string.ascii_lowercase + string.digits + "_")
    assert all(set(name) <= allowed for name in (*names, *TASKS, *ROWS))
    assert all(benchmark.name not in TASKS or len(benchmark.tasks) == 1 for benchmark in BENCHMARKS)


def test_the_rows_of_a_benchmark_are_of_one_dimension():
    assert all({row.dimension for row in benchmark.rows} == {benchmark.dimension} for benchmark in BENCHMARKS)


def test_the_parts_of_a_row_agree():
    whole = {row.part_of for row in ROWS.values()} - {None}
    assert whole == {"mathverse", "videochatgpt"} and not whole & ROWS.keys()
    for name in whole:
        parts = [row for row in ROWS.values() if row.part_of == name]
        assert len(parts) > 1
        assert len({(row.dimension, row.higher_is_better, row.unit, row.full) for row in parts}) == 1


def test_the_11_metrics_of_safety():
    rows = [row for benchmark in SAFETY for row in benchmark.rows]
    assert Counter(row.metrics[0] for row in rows) == {"ASR": 5, "RtA": 3, "Ratio": 3}
    assert sorted(row.name for row in rows if row.higher_is_better) == [
        "adv_untarget", "crossmodel_rta", "multimodel_rta", "risk_identification", "typographic_rta",
    ]  # fmt: skip


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: task.name)
def test_what_the_harness_has_has_its_name(task):
    assert task.harness_task in (task.name, None)
    assert task.harness_task is not None or task.own_metrics
    assert task.new_tokens > 0 and (task.max_new_tokens is not None or task.name in ("mmstar", "textvqa_val", "video_dc499"))
    for path in task.data.files:
        assert {field for _, field, _, _ in string.Formatter().parse(path) if field} <= set(task.columns)


def test_a_figure_is_scaled_to_the_papers():
    assert ROWS["mmstar"].scaled(0.618) == pytest.approx(61.8)
    assert ROWS["mme"].scaled(1997.0) == 1997.0


def test_tasks_are_found_by_the_name_of_their_benchmark_or_their_own():
    assert [task.name for task in find("pope")] == ["pope_adv", "pope_pop", "pope_random"]
    assert [task.name for task in find("videomme")] == ["videomme"]
    assert [task.name for task in find("mme")] == ["mme"]
    with pytest.raises(UserError, match="mmstarr: is no benchmark; did you mean mmstar"):
        find("mmstarr")
    with pytest.raises(UserError, match="--list"):
        find("zzzz")


def test_a_column_of_fixed_names_says_in_which_file_of_the_harness_they_are():
    named = [holds for task in TASKS.values() for holds in task.columns.values() if "one of the names" in holds]
    assert named and all(re.search(r"in lmms_eval/tasks/[\w*]+/utils\.py$", holds) for holds in named)
