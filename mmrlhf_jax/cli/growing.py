"""Verbs that grow data: `annotate`, `best-of-n`, `review export|import`, and `expand`."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrlhf_jax import commands
from mmrlhf_jax.commands import options
from mmrlhf_jax.commands.options import path_argument, path_option

verbs = typer.Typer()
review = typer.Typer(help="People look through a grown data set.", no_args_is_help=True)
verbs.add_typer(review, name="review")

Policy = Annotated[
    str | None,
    options.model_or_address_option(
        "--policy",
        "--policy-endpoint",
        help="Model that answers: directory or hub id, or a server's http address.",
    ),
]
PolicyModel = Annotated[str | None, typer.Option(help="The policy's name at its server; default: the only one there.")]
Critic = Annotated[str, path_option("--critic", help="Reward model: Hugging Face directory or hub id.")]
CriticEndpoint = Annotated[
    str | None,
    typer.Option(help="Address of a server (vLLM, SGLang) that writes the critiques, which --critic then scores."),
]
CriticModel = Annotated[str | None, typer.Option(help="The critic's name at that server; default: the only one there.")]
Prompts = Annotated[
    str, path_option("--data", help="Prompts: records without responses, or any ranked source, whose responses are not used.")
]
Out = Annotated[str, path_option("--out", writes=True, help="Directory to make, or to go on with.")]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Answers per prompt.")]
Critiques = Annotated[
    int, typer.Option("--critiques", min=0, help="Critiques per answer: 1 is greedy, more are sampled, 0 rewards without one.")
]
HeldOutOf = Annotated[
    list[str] | None,
    path_option("--held-out-of", help="Benchmark file whose prompts, and near ones, are left out; may be given several times."),
]
Reuse = Annotated[
    str | None,
    path_option("--reuse", help="Directory of an earlier run over the same prompts, whose samples are judged anew."),
]
Temperature = Annotated[float, typer.Option(min=0.0, callback=options.finite, help="Temperature of the answers.")]
TopK = Annotated[int, typer.Option(min=0, help="Number of likeliest tokens to draw from; 0: all.")]
TopP = Annotated[float, typer.Option(help="Share of probability to draw from.", callback=options.finite)]
MinP = Annotated[float, typer.Option(help="Least share of the likeliest probability.", callback=options.finite)]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of answers and critiques.")]
AnswerTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")]
CritiqueTokens = Annotated[int, typer.Option("--max-critique-tokens", min=1, help="Longest critique.")]
CritiqueTemperature = Annotated[
    float,
    typer.Option("--critique-temperature", callback=options.finite, help="Temperature of critiques, if there are several."),
]
Grown = Annotated[str, path_argument(help="Directory of `mmrlhf annotate`.")]

# Options that say how the policy answers, which --reuse takes from the earlier run.
_SAMPLING = ("samples", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "policy_model")


@verbs.command()
def annotate(
    context: typer.Context,
    critic: Critic,
    data: Prompts,
    out: Out,
    policy: Policy = None,
    policy_model: PolicyModel = None,
    critic_endpoint: CriticEndpoint = None,
    critic_model: CriticModel = None,
    samples: Samples = 8,
    critiques: Critiques = 1,
    tie: Annotated[
        float | None,
        typer.Option(min=0.0, callback=options.finite_or_none, help="Margin of rewards below which answers tie; default: 0.3."),
    ] = None,
    calibrate: Annotated[
        str | None,
        path_option(help="Pairs that people ranked, unknown to the critic: the tie is the least margin with 90 % agreement."),
    ] = None,
    z: Annotated[
        float, typer.Option(min=0.0, callback=options.finite, help="Standard errors within which answers tie (--critiques 2+).")
    ] = 1.0,
    held_out_of: HeldOutOf = None,
    keep_responses: Annotated[
        bool, typer.Option("--keep-responses", help="Judge the data's own responses beside the samples.")
    ] = False,
    reuse: Reuse = None,
    max_new_tokens: AnswerTokens = 512,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    max_critique_tokens: CritiqueTokens = 512,
    critique_temperature: CritiqueTemperature = 1.0,
    round_number: Annotated[int, typer.Option("--round", min=1, help="Number of this round, kept in the records.")] = 1,
    concurrency: options.Concurrency = 64,
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    video_fps: options.VideoFps = None,
    frames_per_second: options.FramesPerSecond = None,
    dtype: options.GenerationDtype = None,
    batch: options.BatchSize = 16,
    template: options.Template = None,
    slots: options.Slots = 8192,
    workers: options.Workers = 0,
    launch: options.HostsApart = None,
) -> None:
    """Rank a policy's sampled answers by a critic: data that trains as it is. Goes on where it was stopped."""
    _check_reuse(context, policy, reuse)
    how = dict(
        samples=samples,
        max_new_tokens=max_new_tokens,
        sampling=dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed),
        judging=dict(count=critiques, most=max_critique_tokens, temperature=critique_temperature, seed=seed),
        tie=tie,
        calibrate=calibrate,
        z=z,
        held_out_of=held_out_of,
        keep_responses=keep_responses,
        reuse=reuse,
        critic_endpoint=critic_endpoint,
        critic_model=critic_model,
        round=round_number,
        concurrency=concurrency,
        media=(media_root, video_frames, video_fps, frames_per_second),
        loading=dict(dtype=dtype, template=template, batch=batch, slots=slots, workers=workers),
    )
    commands.annotate.annotate(policy, policy_model, critic, data, out, launch, **how)


@verbs.command("best-of-n")
def best_of_n(
    context: typer.Context,
    critic: Critic,
    data: Prompts,
    out: Out,
    policy: Policy = None,
    policy_model: PolicyModel = None,
    critic_endpoint: CriticEndpoint = None,
    critic_model: CriticModel = None,
    samples: Samples = 8,
    keep: Annotated[int, typer.Option(min=1, help="Best answers of each prompt to keep.")] = 1,
    critiques: Critiques = 1,
    held_out_of: HeldOutOf = None,
    reuse: Reuse = None,
    max_new_tokens: AnswerTokens = 512,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    max_critique_tokens: CritiqueTokens = 512,
    critique_temperature: CritiqueTemperature = 1.0,
    round_number: Annotated[int, typer.Option("--round", min=1, help="Number of this round, kept in the records.")] = 1,
    concurrency: options.Concurrency = 64,
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    video_fps: options.VideoFps = None,
    frames_per_second: options.FramesPerSecond = None,
    dtype: options.GenerationDtype = None,
    batch: options.BatchSize = 16,
    template: options.Template = None,
    slots: options.Slots = 8192,
    workers: options.Workers = 0,
    launch: options.HostsApart = None,
) -> None:
    """Keep the best of a policy's sampled answers by a critic's rewards, for supervised training."""
    _check_reuse(context, policy, reuse)
    how = dict(
        samples=samples,
        max_new_tokens=max_new_tokens,
        sampling=dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed),
        judging=dict(count=critiques, most=max_critique_tokens, temperature=critique_temperature, seed=seed),
        held_out_of=held_out_of,
        reuse=reuse,
        critic_endpoint=critic_endpoint,
        critic_model=critic_model,
        round=round_number,
        concurrency=concurrency,
        media=(media_root, video_frames, video_fps, frames_per_second),
        loading=dict(dtype=dtype, template=template, batch=batch, slots=slots, workers=workers),
    )
    commands.annotate.best_of_n(policy, policy_model, critic, data, out, launch, keep=keep, **how)


@review.command("export")
def review_export(
    directory: Grown,
    to: Annotated[str, typer.Option(help="The tool: html (a page that needs none), label-studio or argilla.")] = "html",
    budget: Annotated[int, typer.Option(min=1, help="Records in the queue; raise it later for more of them.")] = 500,
    against: Annotated[
        str | None,
        path_option(help="Directory in which a second critic judged the same samples (`annotate --reuse`)."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also records that have verdicts, for those of other people.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice, and of the order in which answers are shown.")] = 0,
    out: Annotated[
        str | None, path_option(writes=True, help="Folder for the files; default: review/ in the directory.")
    ] = None,
) -> None:
    """Choose records for people to look through, and write them for a tool."""
    commands.review.export(directory, to, budget, seed=seed, against=against, again=again, out=out)


@review.command("import")
def review_import(
    directory: Grown,
    verdicts: Annotated[
        list[str],
        path_argument(help="Files that the page saved, JSON exports of Label Studio, or folders of Argilla's `to_disk`."),
    ],
) -> None:
    """Rank the records by people's verdicts; the critic's ranks are kept beside them."""
    commands.review.import_verdicts(directory, verdicts)


@verbs.command()
def expand(
    model: Annotated[
        str,
        options.model_or_address_option(
            "--model", "--endpoint", help="Who writes: a model's directory or hub id, or a server's http address."
        ),
    ],
    data: options.Source,
    out: Annotated[
        str, path_option(writes=True, help="JSON lines: the records, whose responses have an enhanced_critique as well.")
    ],
    endpoint_model: Annotated[
        str | None, typer.Option(help="The model's name at its server; default: the only one there.")
    ] = None,
    field: Annotated[str, typer.Option(help="Field of a response that holds the comment of a person.")] = "critique",
    with_media: Annotated[
        bool, typer.Option("--with-media", help="Show the writer the pictures or the video as well.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest critique; one that is cut off is not used.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0, callback=options.finite, help="0 is greedy.")] = 0.0,
    concurrency: options.Concurrency = 64,
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    video_fps: options.VideoFps = None,
    frames_per_second: options.FramesPerSecond = None,
    dtype: options.GenerationDtype = None,
    batch: options.BatchSize = 16,
    template: options.Template = None,
    launch: options.HostsApart = None,
) -> None:
    """Expand people's short comments to full critiques, beside them. Goes on where it was stopped."""
    how = dict(field=field, with_media=with_media, max_new_tokens=max_new_tokens, temperature=temperature)
    loading = dict(dtype=dtype, batch=batch, template=template)
    places = (model, endpoint_model, data, out, media_root, video_frames, launch)
    commands.expand.expand(
        *places, **how, video_fps=video_fps, frames_per_second=frames_per_second, concurrency=concurrency, loading=loading
    )


def _check_reuse(context: typer.Context, policy: str | None, reuse: str | None) -> None:
    """BadParameter unless there is a policy or the samples of one, and for options that these samples leave no room for."""
    if (policy is None) == (reuse is None):
        raise typer.BadParameter("give a model that answers (--policy), or the samples of an earlier run (--reuse)")
    given = [name for name in _SAMPLING if context.get_parameter_source(name).name == "COMMANDLINE"]
    if reuse is not None and given:
        options_given = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise typer.BadParameter(f"{options_given}: the samples of --reuse are there already; leave it out")
