"""figures.json has every figure, with its interval and coverage, and says why others are missing."""

from __future__ import annotations

import json

import pytest

from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.figures import Run, figures
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.summary import as_json, write_figures
from tests.suite.support.runs import SUITE
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
