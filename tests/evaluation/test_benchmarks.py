"""Every benchmark is recognised by its content, and its groups have the official numbers of pairs."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mmrlhf_jax.data.sources import read_source
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.evaluation.benchmarks import BENCHMARKS, find, recognise
from mmrlhf_jax.evaluation.benchmarks.published import MACRO, OVERALL
from mmrlhf_jax.evaluation.reward_bench import figures
from mmrlhf_jax.records import RankedRecord, Response
from tests.evaluation import rows


@pytest.fixture
def read(tmp_path):
    def read(found, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text(json.dumps(found) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in found))
        return read_source(path)

    return read


def pairs_of(found) -> dict[str, int]:
    return {name: row.pairs for name, row in found.groups.items()}


def with_rewards(records, reward):
    """The records with `reward(record, response)` as rewards."""
    return [
        record.replace_responses([dataclasses.replace(one, reward=reward(record, one)) for one in record.responses])
        for record in records
    ]


def right_in(records, share, group):
    """Rewards by which the first `share[group]` records of each group are right, and the others wrong."""
    seen: dict[str, int] = {}
    found = []
    for record in records:
        name = group(record)[0]
        seen[name] = seen.get(name, 0) + 1
        sign = -1 if seen[name] <= share[name] else 1
        found += with_rewards([record], lambda _, one, sign=sign: sign * one.rank)
    return found


def test_mm_rlhf_reward_bench_has_170_pairs_of_46_prompts(read):
    records = read(rows.mm_rlhf()).records
    benchmark = recognise(records)
    found = figures(with_rewards(records, lambda _, response: -response.rank), benchmark)
    assert benchmark.name == "mm-rlhf"
    assert pairs_of(found) == rows.MM_RLHF and list(found.groups) == list(rows.MM_RLHF)
    assert [row.groups for row in found.groups.values()] == [10, 10, 10, 6, 10]
    assert (found.overall.pairs, found.overall.groups, found.overall.acc, found.overall.acc_plus) == (170, 46, 1.0, 1.0)
    assert found.differences == ()


@pytest.mark.parametrize("make", [rows.vl, rows.vl_as_pairs], ids=["official form", "as pairs"])
def test_vl_reward_bench_has_its_official_groups_or_the_papers(read, make):
    records = read(make()).records
    benchmark = recognise(records)
    assert benchmark.name == "vl-rewardbench"
    official, paper = (figures(records, benchmark, grouping) for grouping in (None, "paper"))
    assert pairs_of(official) == {"general": 183, "hallucination": 749, "reasoning": 318}
    assert pairs_of(paper) == {"general": 484, "hallucination": 448, "reasoning": 318}
    assert official.overall.pairs == paper.overall.pairs == 1250
    assert official.overall.groups == 1225  # an id that occurs twice is one prompt
    assert official.groups["general"].groups == 183 and official.groups["reasoning"].groups == 293


def test_vl_reward_benchs_overall_is_pooled_and_its_macro_the_mean_of_three(read):
    records = read(rows.vl()).records
    benchmark = find("vl-rewardbench")
    share = {"general": 61, "hallucination": 749, "reasoning": 159}
    found = figures(right_in(records, share, benchmark.groupings["official"].groups), benchmark)
    assert [row.acc for row in found.groups.values()] == [61 / 183, 1.0, 159 / 318]
    assert found.overall.right == 61 + 749 + 159 and found.overall.acc == pytest.approx(969 / 1250)
    assert found.macro.acc == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert found.macro.acc_interval[0] < found.macro.acc < found.macro.acc_interval[1]


def test_multimodal_reward_bench_parts_safety_and_reasoning_by_id(read):
    records = read(rows.multimodal(), "all_data.json").records
    benchmark = recognise(records)
    found = figures(with_rewards(records, lambda _, one: -one.rank), benchmark)
    assert benchmark.name == "multimodal-rewardbench" and found.differences == ()
    assert pairs_of(found) == {
        "general correctness": 600,
        "general preference": 700,
        "knowledge": 630,
        "reasoning": 1096,
        "reasoning/math": 514,
        "reasoning/coding": 582,
        "safety": 520,
        "safety/bias": 508,
        "safety/toxicity": 12,
        "vqa": 1165,
    }
    assert found.parts == {"reasoning/math", "reasoning/coding", "safety/bias", "safety/toxicity"}
    assert found.macro.groups == 6 and found.overall.pairs == 4711


def test_a_part_counts_once_in_the_mean(read):
    """Math is right and coding wrong: reasoning is 514 / 1,096, and one of six groups."""
    records = read(rows.multimodal(), "all_data.json").records
    wrong = lambda record, one: one.rank if record.id.startswith("EMMA") else -one.rank
    found = figures(with_rewards(records, wrong), find("multimodal-rewardbench"))
    assert found.groups["reasoning"].acc == 514 / 1096
    assert (found.groups["reasoning/math"].acc, found.groups["reasoning/coding"].acc) == (1.0, 0.0)
    assert found.macro.acc == pytest.approx((5 + 514 / 1096) / 6)
    assert found.overall.acc == pytest.approx(1 - 582 / 4711)


@pytest.mark.parametrize("field", ["dimension", "category", "task_type"])
def test_video_reward_bench_has_its_five_dimensions(read, field):
    records = read(rows.video(field)).records
    benchmark = recognise(records)
    found = figures(with_rewards(records, lambda _, one: -one.rank), benchmark)
    assert benchmark.name == "videorewardbench" and found.differences == ()
    assert list(pairs_of(found).values()) == [283, 413, 238, 278, 351] and found.overall.pairs == 1563


def test_mmrb2s_reasoning_has_1000_pairs_of_which_650_cannot_be_read(read):
    source = read(rows.mmrb2(), "reasoning.json")
    benchmark = recognise(source.records)
    assert benchmark.name == "mmrb2"
    assert any("650 of 1000 pairs have pictures inside an answer" in note for note in source.notes)
    readable = lambda record: not any("inserted_pictures" in one.extra for one in record.responses)
    records = with_rewards(source.records, lambda record, one: -one.rank if readable(record) else None)
    found = figures(records, benchmark)
    assert found.groups["reasoning"].pairs == 1000 and found.groups["reasoning"].scored == 350
    assert {name: row.pairs for name, row in found.groups.items() if name in found.parts} == {
        f"reasoning/{source}": count for source, count in sorted(rows.MMRB2.items())
    }
    assert found.groups["reasoning"].groups == 1000 - len(rows.MMRB2)  # two pairs of each source have one prompt
    assert found.differences == ("650 of 1,000 pairs are not scored",)


def test_what_a_file_lacks_of_its_benchmark_is_said_and_has_no_mean(read):
    few = [row for row in rows.vl() if not row["id"].startswith("m")]
    found = figures(with_rewards(read(few).records, lambda _, one: -one.rank), find("vl-rewardbench"))
    assert found.differences == (
        "932 pairs, where VL-RewardBench has 1,250",
        "0 pairs in reasoning, where VL-RewardBench has 318",
    )
    assert found.macro.acc is None and found.overall.acc == 1.0


def test_one_pair_is_no_pairs(read):
    found = figures(read(rows.vl()[:1]).records, find("vl-rewardbench"))
    assert found.differences[:2] == (
        "1 pair, where VL-RewardBench has 1,250",
        "0 pairs in general, where VL-RewardBench has 183",
    )


def test_more_pairs_than_a_benchmark_has_are_other_data(read):
    """Training data of the same authors have the same folders and ids."""
    for rows_of, name in ((rows.mm_rlhf, "mm-rlhf"), (rows.vl_as_pairs, "vl-rewardbench"), (rows.video, "videorewardbench")):
        records = list(read(rows_of()).records)
        assert recognise(records).name == recognise(records[:-1]).name == name
        again = dataclasses.replace(records[0], id=f"{records[0].id}-again")
        assert recognise([*records, again]).name == "ranked"
    many = [*read(rows.vl()).records] * 2
    assert recognise(many).name == "vl-rewardbench"  # its own form says what it is


def record(name: str, **fields) -> RankedRecord:
    return RankedRecord(name, "Why?", (Response("yes", 1), Response("no", 2)), **fields)


@pytest.mark.parametrize(
    ("records", "groups"),
    [
        ([record("a", extra={"category": "x"})], {"x"}),
        ([record("a", images=("long_beach.png",))], {"other"}),  # a name is no folder
        ([record("a", images=("mcq/a.png",)), record("b", images=("others/b.png",))], {"mcq", "other"}),
        ([record("a", images=("mcq/a.png", "shorts/b.png"))], {"other"}),
        ([record("RLAIF-V-1"), record("mine")], {"other"}),
        ([record("a", video="a.mp4", extra={"category": "safety"})], {"safety"}),  # as VideoRewardBench, and without perception
        ([record("a", extra={"benchmark": "VL-RewardBench"}), record("b")], {"other"}),
    ],
)
def test_other_data_are_grouped_by_their_category(records, groups):
    assert recognise(records).name == "ranked"
    assert set(figures(records, recognise(records)).groups) == groups


def test_unknown_names_are_refused_with_those_that_there_are():
    with pytest.raises(UserError, match=r"--benchmark 'vl': choose from vl-rewardbench, .*, ranked"):
        find("vl")
    with pytest.raises(UserError, match="--grouping 'mine': VL-RewardBench has official, paper"):
        figures([], find("vl-rewardbench"), "mine")


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_published_rows_fit_their_columns_and_their_means(benchmark):
    """Where all groups are printed, the printed mean over pairs follows from the official numbers, but for those that the
    source has otherwise."""
    otherwise = {"MM-RLHF-Reward without critiques", "VITA-1.5", "SliME"}
    for published in benchmark.published:
        assert published.source and published.rows and published.metric in ("acc", "acc_plus")
        assert set(published.columns) <= {*benchmark.order, OVERALL, MACRO}
        for name, values in published.rows.items():
            assert len(values) == len(published.columns) and all(0 <= value <= 1 for value in values)
            found = dict(zip(published.columns, values, strict=True))
            grouping = benchmark.groupings[published.grouping]
            if grouping.pairs and set(grouping.pairs) <= set(found) and name not in otherwise and published.metric == "acc":
                if OVERALL in found:
                    mean = sum(found[group] * count for group, count in grouping.pairs.items()) / benchmark.total
                    assert found[OVERALL] == pytest.approx(mean, abs=0.0055)
                if MACRO in found:
                    mean = sum(found[group] for group in grouping.pairs) / len(grouping.pairs)
                    assert found[MACRO] == pytest.approx(mean, abs=0.0006)
