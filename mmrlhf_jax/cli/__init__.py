"""The `mmrlhf` command: names, options and help of its verbs. Their bodies are in `commands`, one file per verb or group.

A body is imported when its verb runs, so that help and errors in options are quick.
"""

from __future__ import annotations

import typer

from mmrlhf_jax import ending, printing
from mmrlhf_jax.cli import data, evaluation, growing, inference, report, training

app = typer.Typer(
    name="mmrlhf",
    help="MM-RLHF in JAX: ranked multimodal preference data, a critique-based reward model, and MM-DPO.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(training.verbs)
app.add_typer(inference.verbs)
app.add_typer(growing.verbs)
app.add_typer(report.verbs)
app.add_typer(data.verbs, name="data")
app.add_typer(evaluation.verbs, name="eval")
app.add_typer(training.config_verbs, name="config")


def main() -> None:
    """Entry point. Errors of the user end in one line and exit status 2 (or another one of `exits`)."""
    printing.escape_what_is_lacking()
    with ending.in_one_line():
        app()
