"""`mmrlhf replay`."""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.sharding import distributed


def replay(batch: str, launch: str | None, step: int | None, overrides: Sequence[str], most: int, as_json: bool) -> None:
    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    distributed.join(where, launch)
    from mmrlhf_jax.sharding.agreement import first_process
    from mmrlhf_jax.training import replay as replaying

    found = replaying.replay(batch, where, step=step, overrides=overrides)
    if first_process():
        strict_json.print_figures(replaying.as_json(found)) if as_json else print(replaying.as_text(found, most))
