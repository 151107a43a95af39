"""The `mmrlhf report` verb."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrlhf_jax import commands
from mmrlhf_jax.commands.options import path_argument, path_option

verbs = typer.Typer()


@verbs.command()
def report(
    directories: Annotated[
        list[str],
        path_argument(
            metavar="DIR...",
            help="Directories of evaluations: the model's, that of the base which it is compared with, and any others; and"
            " directories of training runs, whose curves are shown.",
        ),
    ],
    out: Annotated[str, path_option(writes=True, help="The page, one HTML file.")],
    published: Annotated[
        str | None,
        typer.Option(
            help="Model of the paper whose figures stand beside, before and after MM-RLHF (another name lists them), or none."
            " Default: its 7B model, where the benchmarks are the paper's."
        ),
    ] = None,
) -> None:
    """Show evaluations of a policy on one page: dimensions, benchmarks, and the answers in which two models differ most."""
    commands.report.report(directories, out, published)
