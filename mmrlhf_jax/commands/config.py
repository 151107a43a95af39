"""The `mmrlhf config` verbs."""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf_jax import config, sections


def show(experiment: str, overrides: Sequence[str]) -> None:
    print(sections.resolved(config.load_experiment(experiment, overrides)), end="")
