"""The quickstart from end to end: a few steps of each run by default, the whole of it with its bars behind `slow`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.quickstart import alignment, pipeline

CONFIGS = Path(config.__file__).parents[2] / "configs" / "quickstart"
RUNS = ("accounts", "supervised", "reward", "mmdpo", "dpo")


def test_every_number_of_devices_takes_whole_rows_of_every_run():
    rows = [config.load_experiment(CONFIGS / f"{name}.yaml").batch.rows for name in RUNS]
    assert all(math.gcd(*rows) % devices == 0 for devices in pipeline.DEVICES)
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(RUNS)


def test_only_what_a_quickstart_made_is_cleared(tmp_path):
    for name in ("data", "models", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "mine.txt").write_text("years of work")
    with pytest.raises(UserError, match="no quickstart's; give a new directory"):
        pipeline.run(str(tmp_path))
    assert (tmp_path / "data" / "mine.txt").read_text() == "years of work"


@pytest.fixture
def few_steps(monkeypatch):
    """Few scenes, two steps of few rows in every run, on one device."""
    whole = pipeline.Quickstart.experiment

    def short(self, name):
        experiment = whole(self, name)
        batch = experiment.batch.model_copy(update={"rows": 2})
        run = experiment.run.model_copy(update={"steps": 2})
        return experiment.model_copy(update={"batch": batch, "run": run})

    monkeypatch.setattr(pipeline.Quickstart, "experiment", short)
    monkeypatch.setattr(pipeline, "SCENES", {"train": 48, "preference": 12, "held_out": 8})
    monkeypatch.setattr(pipeline, "MAX_CRITIQUE", 8)
    monkeypatch.setattr(pipeline, "MAX_ANSWER", 8)
    monkeypatch.setattr(alignment, "BATCH", 16)
    monkeypatch.setattr(pipeline, "LAUNCH", config.Launch(mesh=config.Mesh(data=1, fsdp=1)))
    make_mesh = pipeline.make_mesh
    from mmrlhf_jax.training import preflight

    monkeypatch.setattr(preflight, "make_mesh", lambda axes: make_mesh({}, pipeline.jax.devices()[:1]))


@pytest.mark.long
def test_every_step_runs_and_the_summary_says_what_came_out(few_steps, tmp_path):
    out = tmp_path / "out"
    pipeline.run(str(out))
    found = json.loads((out / "summary.json").read_text())
    assert found["reward_model"].keys() >= {
        "acc",
        "acc_plus",
        "acc_blind",
        "acc_longer_wins",
        "pairs",
        "by_kind",
        "critiques",
        "critique_seconds",
    }
    assert found["policy"].keys() >= {"accuracy_before", "accuracy_after_mmdpo", "accuracy_after_dpo", "by_kind"}
    shares = [value for part in ("reward_model", "policy") for name, value in found[part].items() if name.startswith("acc")]
    assert all(0 <= share <= 1 for share in shares) and found["reward_model"]["groups"] == 8
    difference = found["export"]["max_abs_logit_diff"]
    assert difference is None or difference <= 1e-4
    for name in RUNS:
        steps = (out / "runs" / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in steps] == [1, 2]
        assert yaml.safe_load((out / "runs" / name / "config.yaml").read_text())["run"]["steps"] == 2
    scores = [json.loads(line) for line in (out / "scores" / "preference.jsonl").read_text().splitlines()]
    assert len(scores) == 12 and all(math.isfinite(r["reward"]) for line in scores for r in line["responses"])
    assert (out / "report.html").read_text().startswith("<!")
    assert 'href="evaluation/report.html"' in (out / "report.html").read_text()
    assert (out / "evaluation" / "report.html").read_text().count("<h2>") == 6
    assert {path.name for path in (out / "evaluation").iterdir()} == {"before", "after_mmdpo", "after_dpo", "report.html"}


@pytest.mark.slow
def test_the_reward_model_looks_and_the_policy_is_better_for_it(tmp_path):
    """The bars of the project, on held-out prompts; seven minutes on two cores."""
    pipeline.run(str(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    judge, policy = found["reward_model"], found["policy"]
    assert judge["acc"] >= 0.85 and judge["acc_plus"] >= 0.60
    assert judge["acc"] >= 0.15 + max(judge["acc_blind"], judge["acc_longer_wins"])
    assert policy["accuracy_after_mmdpo"] >= policy["accuracy_before"] + 0.10
