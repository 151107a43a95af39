"""The `mmrlhf eval` verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrlhf_jax import commands
from mmrlhf_jax.commands import options
from mmrlhf_jax.commands.options import path_option
from mmrlhf_jax.errors import UserError

verbs = typer.Typer(help="Evaluate a model.", no_args_is_help=True)


# Options that say how a model makes rewards.
_OF_A_MODEL = {
    *("launch", "critique", "critiques", "temperature", "seed", "blind", "max_new_tokens"),
    *("dtype", "batch", "template", "slots", "workers"),
}


@verbs.command("reward-bench")
def reward_bench(
    context: typer.Context,
    data: options.Source,
    model: Annotated[str | None, path_option(help="Reward model: Hugging Face directory or hub id.")] = None,
    scores: Annotated[
        str | None, path_option(help="File that `mmrlhf score` wrote of this data; its rewards are evaluated, without a model.")
    ] = None,
    out: Annotated[
        str | None,
        path_option(writes=True, help="Folder for the rewards, the figures and a page with every case; can be continued."),
    ] = None,
    launch: options.HostsApart = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="Whose groups and prompts: mm-rlhf, vl-rewardbench, multimodal-rewardbench, mmrb2, videorewardbench, or ranked"
            " (by the field category). Default: recognised by the data's content."
        ),
    ] = None,
    grouping: Annotated[
        str | None,
        typer.Option(help="Another grouping of the benchmark; vl-rewardbench has paper, that of MM-RLHF's authors."),
    ] = None,
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    critique: options.CritiqueMode = "written",
    critiques: Annotated[
        int, typer.Option(min=1, help="Critiques per response. One is greedy; of several sampled ones rewards are averaged.")
    ] = 1,
    temperature: Annotated[float, typer.Option(min=0.01, callback=options.finite, help="Of sampled critiques.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of sampled critiques.")] = 0,
    blind: Annotated[
        bool, typer.Option(help="Exchange the media between prompts: a baseline without the right media.")
    ] = False,
    max_new_tokens: options.CritiqueTokens = 512,
    as_json: options.JsonForTable = False,
    dtype: options.GenerationDtype = None,
    batch: options.BatchSize = 16,
    template: options.Template = None,
    slots: options.Slots = 8192,
    workers: options.Workers = 0,
) -> None:
    """Compute ACC and ACC+ of a reward model over a reward benchmark or other ranked data, per group."""
    given = {name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"}
    if scores is not None:
        _refuse(given & _OF_A_MODEL, "says how a model makes rewards, and those of --scores are there already")
    if critique != "written":
        _refuse(given & {"max_new_tokens"}, f"is for critiques that the model writes, not for --critique {critique}")
    if critiques == 1:
        _refuse(given & {"temperature", "seed"}, "is for sampled critiques, and a single one is greedy: give --critiques 2")
    source = commands.eval.Source(data, media_root, video_frames, benchmark, grouping)
    criticise = dict(count=critiques, most=max_new_tokens, temperature=temperature, seed=seed)
    loading = dict(dtype=dtype, batch=batch, template=template, slots=slots, workers=workers)
    commands.eval.reward_bench(source, model, scores, out, launch, critique, criticise, blind, as_json, **loading)


@verbs.command("benchmarks")
def benchmarks(
    list_all: Annotated[
        bool, typer.Option("--list", help="Print every benchmark with its metric, data and judge, and run none.")
    ] = False,
    model: Annotated[str | None, path_option(help="Policy: Hugging Face directory or hub id.")] = None,
    policy_endpoint: Annotated[
        str | None, typer.Option(help="Address of a server with OpenAI's protocol that has the policy, instead of --model.")
    ] = None,
    policy_model: Annotated[str | None, typer.Option(help="Its name there; needed if the server has several.")] = None,
    against: Annotated[
        str | None,
        options.model_or_address_option(
            help="The base: a model or an address, evaluated in the same way, or the directory of a finished run."
        ),
    ] = None,
    benchmark: Annotated[
        list[str] | None, typer.Option("--benchmark", help="A benchmark or task of --list; can be repeated. Default: the 27.")
    ] = None,
    dimensions: Annotated[
        list[str] | None, typer.Option(help="Dimensions, separated by commas: all their benchmarks are run.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="TASK=FILE: a task's documents from a .parquet or .jsonl file, or a folder of them, instead of the hub's."
        ),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Address of the judge's server, with OpenAI's protocol. Without it answers are kept.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's name there; needed if the server has several.")] = None,
    out: Annotated[str | None, path_option(writes=True, help="Folder for answers, figures and page; can be continued.")] = None,
    launch: options.HostsApart = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first documents of each task, so many.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be downloaded and judged, and run nothing.")] = False,
    video_frames: options.VideoFrames = 32,
    until: Annotated[
        bool, typer.Option("--until", help="End answers at the harness's stop strings, which cut long ones.")
    ] = False,
    as_json: options.JsonForTable = False,
    concurrency: options.Concurrency = 64,
    dtype: options.GenerationDtype = None,
    batch: options.BatchSize = 16,
    template: options.Template = None,
    slots: options.Slots = 8192,
    workers: options.Workers = 0,
) -> None:
    """The 27 benchmarks of MM-RLHF in ten dimensions, with its safety suite."""
    if list_all:
        commands.benchmarks.show_all(as_json)
        return
    if (model is None) == (policy_endpoint is None):
        raise UserError("give --model or --policy-endpoint, or --list to see what there is")
    if policy_model is not None and policy_endpoint is None:
        raise UserError("--policy-model is the name of a model at --policy-endpoint; give its address")
    if judge_model is not None and judge is None:
        raise UserError("--judge-model is the name of a model at --judge; give its address")
    if out is None:
        raise UserError("give --out, a folder for answers and figures")
    loading = dict(dtype=dtype, batch=batch, template=template, slots=slots, workers=workers)
    policy = dict(path=model, endpoint=policy_endpoint, name=policy_model, concurrency=concurrency, loading=loading)
    how = dict(until=until, video_frames=video_frames, limit=limit)
    chosen = (benchmark or [], dimensions or [], data or [], (judge, judge_model))
    commands.benchmarks.benchmarks(policy, against, *chosen, how, launch, out, plan, as_json)


def _refuse(names: set[str], why: str) -> None:
    """UserError if there are any of these options."""
    for name in sorted(names):
        raise UserError(f"--{name.replace('_', '-')} {why}")
