"""The `mmrlhf config` verbs."""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf_jax import config, printing, sections


def show(experiment: str, overrides: Sequence[str]) -> None:
    print(sections.resolved(config.load_experiment(experiment, overrides), ascii_only=not printing.is_unicode()), end="")
