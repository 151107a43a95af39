"""The `mmrlhf eval` verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrlhf_jax import commands
from mmrlhf_jax.commands import options

verbs = typer.Typer(help="Evaluate a model.", no_args_is_help=True)


@verbs.command("reward-bench")
def reward_bench(
    model: options.Model,
    data: options.Source,
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    critique: options.CritiqueMode = "written",
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
    """Compute ACC and ACC+ of a reward model over ranked data, per category."""
    loading = dict(dtype=dtype, template=template, batch=batch, slots=slots, workers=workers)
    commands.eval.reward_bench(model, data, media_root, video_frames, critique, blind, max_new_tokens, as_json, **loading)
