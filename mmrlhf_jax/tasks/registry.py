"""The registry of tasks, by kind of objective."""

from __future__ import annotations

from mmrlhf_jax import config
from mmrlhf_jax.tasks.preference import PreferenceTask
from mmrlhf_jax.tasks.reward_model import RewardModelTask
from mmrlhf_jax.tasks.supervised import SupervisedTask
from mmrlhf_jax.tasks.task import Task

TASKS: dict[type[config.ObjectiveSection], type[Task]] = {
    config.Preference: PreferenceTask,
    config.RewardModel: RewardModelTask,
    config.Supervised: SupervisedTask,
}


def task_of(objective: config.Objective) -> Task:
    """The task of an experiment's objective, with its settings."""
    return TASKS[type(objective)](objective)
