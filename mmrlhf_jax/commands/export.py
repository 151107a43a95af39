"""`mmrlhf export`."""

from __future__ import annotations

from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.training.trained import export_run


def export(checkpoint: str, out: str, step: str | None, **form: Any) -> None:
    """`form` are options of `export_run`."""
    if step is not None and step != "best" and not step.isdecimal():
        raise UserError(f"--step {step!r}: give a number, or best")
    number = int(step) if step is not None and step != "best" else step
    export_run(checkpoint, out, step=number, **form)
