"""Verbs of experiments: `quickstart`, `train`, `replay`, `plan`, `bench`, `config show` and `export`."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrlhf_jax import commands
from mmrlhf_jax.commands import options
from mmrlhf_jax.commands.options import path_argument, path_option

verbs = typer.Typer()
config_verbs = typer.Typer(help="Look at experiments.", no_args_is_help=True)


@verbs.command()
def quickstart(
    out: Annotated[
        str, path_argument(writes=True, help="Directory for data, models, figures and the page.")
    ] = "runs/quickstart",
) -> None:
    """Run all of MM-RLHF on a small scale on this machine: data, reward model, MM-DPO, evaluation, export, and a report."""
    from mmrlhf_jax.quickstart.pipeline import run, use_processors

    use_processors()
    run(out)


@verbs.command()
def train(
    experiment: Annotated[str, path_argument(help="Experiment file, such as those in configs/.")],
    launch: options.Launch = None,
    overrides: options.Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start over, or continue from the newest checkpoint.")
    ] = False,
) -> None:
    """Run an experiment to its end; the same command continues an interrupted run exactly where it stopped."""
    commands.train.train(experiment, launch, overrides or [], fresh)


@verbs.command()
def replay(
    batch: Annotated[str, path_argument(help="Batch that a run saved: RUN/bad_batch_step_12.npz.")],
    launch: options.Launch = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="Checkpoint to use; default: the newest one up to the batch, else the base model.")
    ] = None,
    overrides: options.Overrides = None,
    most: Annotated[int, typer.Option(min=1, help="Responses to list.")] = 12,
    as_json: options.Json = False,
) -> None:
    """Compute a saved batch again that a run stopped at: loss, gradient norms by part, and the responses that stand out."""
    commands.replay.replay(batch, launch, step, overrides or [], most, as_json)


@verbs.command()
def plan(
    experiments: Annotated[
        list[str] | None, path_argument(help="Experiment files; with --all none means configs/*.yaml.")
    ] = None,
    launches: Annotated[list[str] | None, path_option("--launch", help="Launch file; may be given several times.")] = None,
    overrides: options.Overrides = None,
    every: Annotated[bool, typer.Option("--all", help="All launch files in launch/ that name an accelerator.")] = False,
    fit: Annotated[
        bool, typer.Option("--fit", help="Search mesh, rows per device and remat policy for the fastest that fits.")
    ] = False,
    generation: Annotated[bool, typer.Option(help="Compile generation beside the train step.")] = True,
    passes: Annotated[bool, typer.Option(help="Also compile evaluation and reference pass, if the run has them.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Do not generate machine code (ten times as fast).")] = False,
    readme: Annotated[
        str | None,
        path_option(writes=True, help="Page for the table of all plans; --launch renews some rows."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one object, or a list of them.")] = False,
) -> None:
    """Compile the train step for a pod, without having it: memory, FLOPs, collectives, bounds on time. Needs no accelerator."""
    how = dict(every=every, fit=fit, generation=generation, passes=passes, quick=quick)
    commands.plan.plan(experiments, launches, overrides or [], **how, readme=readme, as_json=as_json)


@verbs.command()
def bench(
    experiment: Annotated[str | None, path_argument(help="Experiment file; default: synthetic groups, random weights.")] = None,
    launch: Annotated[str | None, path_option(help="Launch file, for an experiment. Default: all local devices.")] = None,
    overrides: options.Overrides = None,
    shape: Annotated[
        str, typer.Option(help="Model for the synthetic groups: small, 0.5b or 7b, or FAMILY/SIZE of another family.")
    ] = "small",
    table: Annotated[bool, typer.Option("--table", help="Also other numbers of responses and of images.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each layout; the ratio is the median of all turns.")] = 5,
    as_json: options.JsonForTable = False,
) -> None:
    """Time the group layout against the pair-expanded one, with the same pairs and the same train step."""
    commands.bench.bench(experiment, launch, overrides or [], shape, table, repeats, as_json)


@config_verbs.command()
def show(
    experiment: Annotated[str, path_argument(help="Experiment file.")],
    overrides: options.Overrides = None,
) -> None:
    """Print the resolved experiment with all defaults."""
    commands.config.show(experiment, overrides or [])


@verbs.command()
def export(
    checkpoint: Annotated[str, path_argument(help="Run of `mmrlhf train`, model (directory or hub id), or PEFT adapter.")],
    out: Annotated[str, path_argument(writes=True, help="Hugging Face directory to make.")],
    step: Annotated[str | None, typer.Option(help="Which checkpoint: a step, or best; default: the newest.")] = None,
    naming: Annotated[str, typer.Option(help="hf (transformers, vLLM) or original (that of the family's own code).")] = "hf",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; default: as the base model is stored.")] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the adapters alone, in PEFT's format; default: merged.")
    ] = False,
) -> None:
    """Write a Hugging Face directory that transformers and vLLM can load."""
    commands.export.export(checkpoint, out, step, naming=naming, dtype=dtype, adapter=adapter)
