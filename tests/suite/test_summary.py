"""figures.json and the table have every figure, with its interval and coverage, and say why others are missing."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.figures import Run, figures
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.summary import as_json, as_lines, write_figures
from tests.suite.runs import SUITE
from tests.suite.test_figures import BASE, MODEL, run


def by_name(listed):
    return {each["name"]: each for each in listed}


def test_the_json_of_two_runs(tmp_path):
    for name, values in (("aligned", MODEL), ("base", BASE)):
        for each in run(name, **values).results.values():
            results.write(tmp_path / name, each)
    write_figures(tmp_path / "aligned", SUITE, tmp_path / "base")
    found = json.loads((tmp_path / "aligned" / "figures.json").read_text())
    assert (found["version"], found["suite"], found["level"]) == (1, "the small suite", 0.95)
    assert found["model"] == {"name": "aligned", "run": {}, "harness": ["lmms-eval 0.7.3"]}
    assert found["against"]["name"] == "base"
    rows, axes = by_name(found["rows"]), by_name(found["axes"])
    assert list(rows) == ["colours", "shapes", "lies", "tales"] and list(axes) == ["seeing", "lying", "telling"]
    shapes = rows["shapes"]
    assert (shapes["direction"], shapes["unit"], shapes["full"], shapes["tasks"]) == ("higher", "of 5", 5.0, ["shapes"])
    assert shapes["model"]["value"] == pytest.approx(11 / 3) and shapes["against"]["value"] == 3.0
    assert shapes["model"]["documents"] == {"expected": 3, "answered": 3, "scored": 3, "missing": {}}
    assert shapes["model"]["harness"] == "lmms-eval 0.7.3"
    assert shapes["delta"]["value"] == pytest.approx(2 / 3) and shapes["delta"]["documents"] == 3
    low, high = shapes["delta"]["interval"]
    assert 0 <= low <= 2 / 3 <= high <= 1 + 1e-9
    assert axes["lying"]["direction"] == "lower" and axes["seeing"]["model"]["of"] == 2
    assert by_name(found["headlines"])["twice"]["value"] == pytest.approx(1.5)


def test_the_json_of_a_part_of_one_run_has_every_row():
    found = as_json(figures(MM_RLHF, Run("m", {})))
    assert found["against"] is None and len(found["rows"]) == 50 and len(found["axes"]) == 12
    assert all(each["model"]["value"] is None and each["delta"] is None for each in (*found["rows"], *found["axes"]))
    conversation = by_name(found["axes"])["conversation"]["model"]
    assert conversation["missing"].startswith("0 of 4 rows: ") and len(conversation["lacking"]) == 4
    json.dumps(found, allow_nan=False)


def lines(*of: Run) -> list[str]:
    return list(as_lines(figures(SUITE, *of)))


def test_the_table_of_one_run():
    table = lines(run(**MODEL))
    assert table[0].split() == ["aligned", "scored"]
    assert table[1].startswith("Seeing") and " 74.2 [" in table[1] and table[1].endswith("2 of 2 rows")
    assert table[2].startswith("Lying ↓")
    assert any(line.startswith("  Shapes") and line.endswith("3 of 3") for line in table)
    assert len({line.index(" of ") for line in table[1:]}) == 1


def test_a_long_name_of_a_run_is_shortened():
    head, first, *_ = lines(run("models/" + "x" * 40 + "/aligned-1000", **MODEL), run("base", **BASE))
    assert head.index("base") == first.index(" 55.0") + 1 and "x/aligned-1000 " in head


def test_the_table_of_two_runs_has_differences_with_signs():
    table = lines(run(**MODEL), run("base", **BASE))
    assert table[0].split() == ["aligned", "base", "difference", "scored"]
    (lies,) = [line for line in table if line.startswith("  Lies ↓")]
    assert "15.0 [" in lies and "30.0 [" in lies and "-15.0 [-30.0, +0.0]" in lies
    assert any(line.startswith("Twice, relative change: +1.5 %") for line in table)


def test_the_table_says_what_is_missing_and_why():
    base = run("base", **BASE)
    other = dataclasses.replace(base.results["colours"], harness="lmms-eval 0.8.0")
    model = run(colours=MODEL["colours"], shapes=[4.0, None, None], lies=[None, None])
    table = lines(model, Run("base", base.results | {"colours": other}))
    assert "no results yet: Telling" in table
    assert "aligned: no figure of Lies: no document is scored" in table
    assert "aligned: documents not scored of shapes, lies: 2: the judge failed" in table
    assert "not compared: Colours: one is by lmms-eval 0.7.3, the other one by lmms-eval 0.8.0" in table
    assert "no mean of" not in "".join(table)
    assert not any(line.startswith("  First") for line in table)


def test_the_table_says_why_there_is_no_mean():
    model = run(**MODEL)
    other = dataclasses.replace(model.results["colours"], harness="lmms-eval 0.8.0")
    table = lines(Run("mixed", model.results | {"colours": other}))
    assert table[-1] == "no mean of Seeing: its rows are by lmms-eval 0.7.3 and lmms-eval 0.8.0"
