"""Verbs that run a model: `logprobs`, `generate`, `score` and `serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrlhf_jax import commands
from mmrlhf_jax.commands import options
from mmrlhf_jax.commands.options import path_option

verbs = typer.Typer()


@verbs.command()
def logprobs(
    model: options.Model,
    data: options.Source,
    out: Annotated[str, path_option(writes=True, help="JSON lines: per response, its sum of log-probs and number of tokens.")],
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    video_fps: options.VideoFps = None,
    frames_per_second: options.FramesPerSecond = None,
    dtype: options.Dtype = "float32",
    batch: options.BatchSize = 4,
    template: options.Template = None,
    slots: options.Slots = 8192,
    workers: options.Workers = 0,
    launch: options.HostsApart = None,
) -> None:
    """Compute the log-probability of every response under the model."""
    loading = dict(dtype=dtype, template=template, batch=batch, slots=slots, workers=workers)
    commands.logprobs.logprobs(model, data, out, media_root, video_frames, launch, video_fps, frames_per_second, **loading)


@verbs.command()
def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Option(help="The prompt; `<image>` in it is the place of an image.")],
    image: Annotated[list[str] | None, path_option(help="Image file; may be given several times.")] = None,
    video: Annotated[str | None, path_option(help="Video file, or folder of frames.")] = None,
    video_frames: options.VideoFrames = 32,
    video_fps: options.VideoFps = None,
    frames_per_second: options.FramesPerSecond = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, callback=options.finite, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Number of likeliest tokens to draw from; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Share of probability to draw from.", callback=options.finite)] = 1.0,
    min_p: Annotated[float, typer.Option(help="Least share of the likeliest probability.", callback=options.finite)] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text before which the answer ends; may be given several times.")
    ] = None,
    dtype: options.GenerationDtype = None,
    template: options.Template = None,
) -> None:
    """Answer a prompt about images or a video."""
    sampling = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    how = dict(dtype=dtype, template=template, max_new_tokens=max_new_tokens, stops=stop or [])
    commands.generate.generate(model, prompt, image or [], video, video_frames, video_fps, frames_per_second, **how, **sampling)


@verbs.command()
def score(
    model: options.Model,
    data: options.Source,
    out: Annotated[
        str, path_option(writes=True, help="JSON lines: per response, its reward and the critique it was scored with.")
    ],
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    video_fps: options.VideoFps = None,
    frames_per_second: options.FramesPerSecond = None,
    critique: options.CritiqueMode = "written",
    max_new_tokens: options.CritiqueTokens = 512,
    dtype: options.GenerationDtype = None,
    batch: options.BatchSize = 16,
    template: options.Template = None,
    slots: options.Slots = 8192,
    workers: options.Workers = 0,
    launch: options.HostsApart = None,
    critic_endpoint: Annotated[
        str | None,
        typer.Option(help="Address of a server (vLLM, SGLang) that writes the critiques, which --model then scores."),
    ] = None,
    critic_model: Annotated[str | None, typer.Option(help="Name of its model, if it serves several.")] = None,
    concurrency: options.Concurrency = 64,
    beta: options.ScaleBeta = None,
    w: options.ScaleW = None,
    k: options.ScaleK = None,
) -> None:
    """Write a critique of every response, then compute its reward. Ends with how far the rewards' margins can be trusted."""
    loading = dict(dtype=dtype, template=template, batch=batch, slots=slots, workers=workers)
    asked = dict(
        video_fps=video_fps,
        frames_per_second=frames_per_second,
        critic_endpoint=critic_endpoint,
        critic_model=critic_model,
        concurrency=concurrency,
        beta=beta,
        w=w,
        k=k,
    )
    commands.score.score(model, data, out, media_root, video_frames, critique, max_new_tokens, launch, **asked, **loading)


@verbs.command()
def serve(
    model: options.Model,
    data: Annotated[str | None, path_option(help="Data whose records requests may name by id.")] = None,
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    video_fps: options.VideoFps = None,
    frames_per_second: options.FramesPerSecond = None,
    host: Annotated[str, typer.Option(help="Address to listen at. Others than loopback need MMRLHF_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="Name of the model in requests; default: --model.")] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Longest prompt, media included.")] = 4096,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer; for rewards, response and critique.")] = 1024,
    grace: Annotated[float, typer.Option(min=0, help="Seconds for running requests at the end.")] = 30.0,
    dtype: options.GenerationDtype = None,
    batch: options.BatchSize = 16,
    template: options.Template = None,
) -> None:
    """Serve chat and rewards over HTTP, for OpenAI's clients and for trainers."""
    place = dict(host=host, port=port, name=name, prompt_tokens=prompt_tokens, new_tokens=new_tokens, grace=grace)
    loading = dict(dtype=dtype, batch=batch, template=template)
    commands.serve.serve(model, data, media_root, video_frames, video_fps, frames_per_second, **place, **loading)
