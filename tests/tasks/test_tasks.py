"""Every kind of objective has one task, and nothing outside of tasks asks for the kind."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest

from mmrlhf_jax import config
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.tasks.registry import TASKS

ROOT = Path(__file__).parents[2] / "mmrlhf_jax"
KINDS = typing.get_args(typing.get_args(config.Objective)[0])
OWN = ("tasks/", "quickstart/", "config/")  # the tasks, what knows that it aligns with MM-DPO, and the settings themselves
NAMES = "|".join(kind.__name__ for kind in KINDS)
# Class checks, class patterns, comparisons of the kind's name.
ASKS = re.compile(
    rf"(isinstance|issubclass)\(.*\b({NAMES})\b|case (config\.)?({NAMES})\(|objective\.kind\s*(==|!=|in\b|not\b)"
    rf"|match [\w.]*\bobjective:"
)


def test_every_kind_of_objective_has_a_task():
    assert set(TASKS) == set(KINDS)
    for kind in KINDS:
        task = task_of(kind())
        assert task.settings == kind() and task.kind == kind().kind
        assert any(weight > 0 for weight in task.coefficients.values())


def test_only_tasks_and_settings_ask_what_kind_an_objective_is():
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted(ROOT.rglob("*.py"))
        if not str(path.relative_to(ROOT)).startswith(OWN)
        for line in path.read_text().splitlines()
        if ASKS.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "if isinstance(experiment.objective, config.Supervised):",
        "found = int(isinstance(objective, config.Preference) and objective.reference)",
        "if isinstance(objective, (config.RewardModel, config.Supervised)):",
        "case config.Preference(scaling=scaling):",
        "case RewardModel():",
        'if experiment.objective.kind == "preference":',
        "match experiment.objective:",
    ],
)
def test_a_question_for_the_kind_is_found(line):
    assert ASKS.search(line)


@pytest.mark.parametrize(
    ("objective", "reference", "passes"),
    [
        (config.Preference(), "cached", 0),
        (config.Preference(reference="live"), "live", 1),
        (config.Preference(reference="adapter_base"), "adapter_base", 1),
        (config.RewardModel(), None, 0),
        (config.Supervised(), None, 0),
    ],
)
def test_only_a_reference_that_is_not_cached_is_computed_in_every_step(objective, reference, passes):
    task = task_of(objective)
    assert (task.reference, task.reference_passes) == (reference, passes)


@pytest.mark.parametrize(
    ("objective", "critiques", "targets"),
    [
        (config.Preference(), None, "answers"),
        (config.Supervised(), "critique", "answers"),
        (config.RewardModel(), "critique", "critiques"),
        (config.RewardModel(), None, "none"),
    ],
)
def test_what_a_plan_takes_as_targets_where_there_is_no_data(objective, critiques, targets):
    assert task_of(objective).assumed_targets(config.Data(path="x", critiques=critiques)) == targets


def test_a_plan_for_other_scaling_is_the_same_plan():
    plain, scaled = (config.Preference(scaling=config.Scaling(mode=mode)) for mode in ("fixed", "margin"))
    assert task_of(plain).shape_settings() == task_of(scaled).shape_settings()
    assert task_of(config.RewardModel()).shape_settings() != task_of(config.RewardModel(tie_weight=1)).shape_settings()
