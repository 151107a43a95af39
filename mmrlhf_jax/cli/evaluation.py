"""The `mmrlhf eval` verbs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
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
    video_fps: options.VideoFps = None,
    frames_per_second: options.FramesPerSecond = None,
    critique: options.CritiqueMode = "written",
    critiques: Annotated[
        int, typer.Option(min=1, help="Critiques per response. One is greedy; of several sampled ones rewards are averaged.")
    ] = 1,
    temperature: Annotated[
        float, typer.Option(min=0.01, callback=options.finite, help="Temperature of sampled critiques.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of sampled critiques.")] = 0,
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
    given = _given(context)
    if scores is not None:
        _refuse(given & _OF_A_MODEL, "says how a model makes rewards, and those of --scores are there already")
    if critique != "written":
        _refuse(given & {"max_new_tokens"}, f"is for critiques that the model writes, not for --critique {critique}")
    if critiques == 1:
        _refuse(given & {"temperature", "seed"}, "is for sampled critiques, and a single one is greedy: give --critiques 2")
    source = commands.eval.Source(data, media_root, video_frames, benchmark, grouping, video_fps, frames_per_second)
    criticise = dict(count=critiques, most=max_new_tokens, temperature=temperature, seed=seed)
    loading = dict(dtype=dtype, batch=batch, template=template, slots=slots, workers=workers)
    commands.eval.reward_bench(source, model, scores, out, launch, critique, criticise, blind, as_json, **loading)


def _command(
    context: typer.Context,
    *,
    model: options.Policy = None,
    policy_endpoint: options.PolicyEndpoint = None,
    policy_model: options.PolicyModel = None,
    against: options.Against = None,
    against_model: options.AgainstModel = None,
    data: options.LocalDocuments = None,
    judge: options.JudgeAddress = None,
    judge_model: options.JudgeModel = None,
    judge_thinking: options.JudgeThinking = 0,
    judge_concurrency: options.JudgeConcurrency = 32,
    judge_again: options.JudgeAgain = False,
    attack_judge: options.AttackJudge = None,
    attack_judge_model: options.AttackJudgeModel = None,
    attack_classifier: options.AttackClassifier = False,
    metrics: options.Metrics = "corrected",
    out: Annotated[
        str | None, path_option(writes=True, help="Folder for answers, verdicts, figures and page; can be continued.")
    ] = None,
    launch: options.HostsApart = None,
    limit: options.FirstDocuments = None,
    plan: options.Plan = False,
    as_json: options.JsonForTable = False,
    concurrency: options.PolicyConcurrency = 64,
    dtype: options.GenerationDtype = None,
    batch: options.BatchSize = 16,
    template: options.Template = None,
    slots: options.Slots = 8192,
    workers: options.Workers = 0,
) -> Any:
    """What the options say that every evaluation of a policy has, as a `commands.benchmarks.Command`."""
    said = commands.benchmarks
    loading = said.Loading(dtype=dtype, batch=batch, template=template, slots=slots, workers=workers)
    return said.Command(
        given=_given(context),
        policy=said.Model(model, policy_endpoint, policy_model, concurrency, loading),
        against=against,
        against_model=against_model,
        judged=said.JudgeOptions(
            (judge, judge_model),
            (attack_judge, attack_judge_model),
            attack_classifier,
            judge_thinking,
            judge_concurrency,
            judge_again,
        ),
        data=data or [],
        metrics=metrics,
        options=said.Options(limit=limit),
        launch=launch,
        out=out,
        plan=plan,
        print_json=as_json,
    )


def _of_a_policy(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that evaluates a policy, with the options of `_command` behind its own. It is called with what `_command` makes of
    these, and with its own."""
    shared, own = inspect.signature(_command, eval_str=True), inspect.signature(verb, eval_str=True)
    _, *parameters = own.parameters.values()
    names = {each.name for each in parameters}

    @functools.wraps(verb)
    def called(context: typer.Context, **given: Any) -> None:
        others = {name: value for name, value in given.items() if name not in names}
        verb(_command(context, **others), **{name: given[name] for name in names})

    context, *others = shared.parameters.values()
    together = [context, *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*parameters, *others))]
    called.__signature__ = inspect.Signature(together)
    called.__annotations__ = {each.name: each.annotation for each in together}
    return called


# Options that `--list` has besides itself.
_OF_LIST = {"list_all", "benchmark", "dimensions", "as_json"}


@verbs.command("benchmarks")
@_of_a_policy
def benchmarks(
    command: Any,
    list_all: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Print the benchmarks with their metrics, data and judges, and run none; with --json everything about them.",
        ),
    ] = False,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            help="Benchmarks or tasks of --list, separated by commas; it can be repeated. With --dimensions both are run."
            " Default: all.",
        ),
    ] = None,
    dimensions: Annotated[
        list[str] | None,
        typer.Option(
            help="Dimensions, separated by commas, all of whose benchmarks are run; it can be repeated. With --benchmark both"
            " are run."
        ),
    ] = None,
    video_frames: options.VideoFrames = 32,
    until: Annotated[
        bool, typer.Option("--until", help="End answers at the harness's stop strings, which cut long ones.")
    ] = False,
) -> None:
    """MM-RLHF's table: ten dimensions, of 27 benchmarks and the 8 tasks of its safety suite."""
    names, dimensions = benchmark or [], dimensions or []
    if list_all:
        _refuse(command.given - _OF_LIST, "is of a run, and --list runs nothing")
        commands.benchmarks.show_all(names, dimensions, command.print_json)
        return
    commands.benchmarks.benchmarks(command.asking(until=until, video_frames=video_frames), names, dimensions)


@verbs.command("safety-bench")
@_of_a_policy
def safety_bench(
    command: Any,
    benchmark: Annotated[
        list[str] | None,
        typer.Option("--benchmark", help="Some of the 8 tasks, separated by commas; it can be repeated. Default: all of them."),
    ] = None,
) -> None:
    """MM-RLHF-SafetyBench alone: 8 tasks, whose answers are made once, with 11 metrics."""
    commands.benchmarks.safety_bench(command, benchmark or [])


def _given(context: typer.Context) -> set[str]:
    """The options that stand on the command line."""
    return {name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"}


def _refuse(names: set[str], why: str) -> None:
    """UserError if there are any of these options."""
    for name in sorted(names):
        raise UserError(f"--{name.replace('_', '-')} {why}")
