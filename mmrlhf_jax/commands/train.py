"""`mmrlhf train`."""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf_jax import config
from mmrlhf_jax.sharding import distributed


def train(experiment: str, launch: str | None, overrides: Sequence[str], fresh: bool) -> None:
    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    settings = config.load_experiment(experiment, overrides)
    distributed.join(where, launch)
    from mmrlhf_jax.training.loop import train as run

    run(settings, where, fresh=fresh)
