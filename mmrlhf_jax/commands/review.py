"""`mmrlhf review export` and `mmrlhf review import`."""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf_jax.errors import UserError


def export(directory: str, tool: str, budget: int, *, seed: int, against: str | None, again: bool, out: str | None) -> None:
    from mmrlhf_jax.growing.export import TOOLS
    from mmrlhf_jax.growing.export import export as run

    if tool not in TOOLS:
        raise UserError(f"--to {tool!r}: choose from {', '.join(TOOLS)}")
    run(directory, tool, budget, seed=seed, against=against, again=again, out=out)


def import_verdicts(directory: str, files: Sequence[str]) -> None:
    from mmrlhf_jax.growing.import_verdicts import import_verdicts as run

    run(directory, files)
