"""The `mmrlhf eval` verbs."""

from __future__ import annotations

from typing import Annotated, Any

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
    model: options.Policy = None,
    policy_endpoint: options.PolicyEndpoint = None,
    policy_model: options.PolicyModel = None,
    against: options.Against = None,
    against_model: options.AgainstModel = None,
    benchmark: Annotated[
        list[str] | None, typer.Option("--benchmark", help="A benchmark or task of --list; can be repeated. Default: the 27.")
    ] = None,
    dimensions: Annotated[
        list[str] | None, typer.Option(help="Dimensions, separated by commas: all their benchmarks are run.")
    ] = None,
    data: options.LocalDocuments = None,
    judge: options.JudgeAddress = None,
    judge_model: options.JudgeModel = None,
    judge_thinking: options.JudgeThinking = 0,
    attack_judge: options.AttackJudge = None,
    attack_judge_model: options.AttackJudgeModel = None,
    attack_classifier: options.AttackClassifier = False,
    metrics: options.Metrics = "corrected",
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
    loading = dict(dtype=dtype, batch=batch, template=template, slots=slots, workers=workers)
    policy = _policy(model, policy_endpoint, policy_model, concurrency, loading, "--list shows what there is")
    if out is None:
        raise UserError("give --out, a folder for answers and figures")
    judged = commands.benchmarks.Judged(
        (judge, judge_model), (attack_judge, attack_judge_model), attack_classifier, judge_thinking
    )
    how = dict(until=until, video_frames=video_frames, limit=limit)
    commands.benchmarks.benchmarks(
        policy,
        (against, against_model),
        benchmark or [],
        dimensions or [],
        data=data or [],
        judged=judged,
        metrics=metrics,
        options=how,
        launch=launch,
        out=out,
        plan=plan,
        print_json=as_json,
    )


@verbs.command("safety-bench")
def safety_bench(
    out: Annotated[str, path_option(writes=True, help="Folder for answers, verdicts and figures; can be continued.")],
    model: options.Policy = None,
    policy_endpoint: options.PolicyEndpoint = None,
    policy_model: options.PolicyModel = None,
    against: options.Against = None,
    against_model: options.AgainstModel = None,
    benchmark: Annotated[
        list[str] | None, typer.Option("--benchmark", help="One of the 8 tasks; can be repeated. Default: all.")
    ] = None,
    data: options.LocalDocuments = None,
    judge: options.JudgeAddress = None,
    judge_model: options.JudgeModel = None,
    judge_thinking: options.JudgeThinking = 0,
    attack_judge: options.AttackJudge = None,
    attack_judge_model: options.AttackJudgeModel = None,
    attack_classifier: options.AttackClassifier = False,
    metrics: options.Metrics = "corrected",
    launch: options.HostsApart = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first documents of each task, so many.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be downloaded and judged, and run nothing.")] = False,
    as_json: options.JsonForTable = False,
    concurrency: options.Concurrency = 64,
    dtype: options.GenerationDtype = None,
    batch: options.BatchSize = 16,
    template: options.Template = None,
    slots: options.Slots = 8192,
    workers: options.Workers = 0,
) -> None:
    """MM-RLHF-SafetyBench: 8 tasks, whose answers are made once, with 11 metrics."""
    loading = dict(dtype=dtype, batch=batch, template=template, slots=slots, workers=workers)
    policy = _policy(model, policy_endpoint, policy_model, concurrency, loading, "one of them answers")
    judged = commands.benchmarks.Judged(
        (judge, judge_model), (attack_judge, attack_judge_model), attack_classifier, judge_thinking
    )
    commands.benchmarks.safety_bench(
        policy,
        (against, against_model),
        benchmark or [],
        data=data or [],
        judged=judged,
        metrics=metrics,
        options=dict(limit=limit),
        launch=launch,
        out=out,
        plan=plan,
        print_json=as_json,
    )


def _policy(
    model: str | None, endpoint: str | None, name: str | None, concurrency: int, loading: dict[str, Any], otherwise: str
) -> dict[str, Any]:
    """Fields of `suite.model.Model`. UserError unless either a model or the address of a server is given."""
    if (model is None) == (endpoint is None):
        raise UserError(f"give --model or --policy-endpoint; {otherwise}")
    if name is not None and endpoint is None:
        raise UserError("--policy-model is the name of a model at --policy-endpoint; give its address")
    return dict(path=model, endpoint=endpoint, name=name, concurrency=concurrency, loading=loading)


def _refuse(names: set[str], why: str) -> None:
    """UserError if there are any of these options."""
    for name in sorted(names):
        raise UserError(f"--{name.replace('_', '-')} {why}")
