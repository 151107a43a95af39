"""The `mmrlhf data` verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrlhf_jax import commands
from mmrlhf_jax.commands import options
from mmrlhf_jax.commands.options import RANKED_SOURCE, path_argument, path_option

verbs = typer.Typer(help="Build ranked data sets and look into them.", no_args_is_help=True)


@verbs.command()
def build(
    source: Annotated[str, path_argument(help=f"{RANKED_SOURCE}; or a mixture file (YAML).")],
    out: Annotated[str, path_argument(writes=True, help="Directory to make.")],
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    video_fps: options.VideoFps = None,
    frames_per_second: options.FramesPerSecond = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
    beam: Annotated[str | None, typer.Option(help='Run on Apache Beam, with options such as "--runner=DirectRunner".')] = None,
    contradictions: Annotated[str, typer.Option(help="Groups whose pairs contradict each other: error or drop.")] = "error",
    rank_by: Annotated[
        str | None,
        typer.Option(help="Rank groups that have no ranks by this score, the highest first: mean_score, or a score's name."),
    ] = None,
) -> None:
    """Check every record and medium of SOURCE and store them as ArrayRecord files in OUT. Continues an interrupted build."""
    commands.data.build(
        source, out, media_root, video_frames, jobs, beam, contradictions, rank_by, video_fps, frames_per_second
    )


@verbs.command()
def validate(
    source: Annotated[str, path_argument(help=f"{RANKED_SOURCE}; a mixture file; or a directory from `mmrlhf data build`.")],
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    video_fps: options.VideoFps = None,
    frames_per_second: options.FramesPerSecond = None,
    max_text: Annotated[int, typer.Option(min=1, help="Most characters of a prompt or response.")] = 200_000,
    most: Annotated[int, typer.Option(min=1, help="Findings to list of each kind.")] = 10,
    as_json: options.Json = False,
) -> None:
    """Check every record: media decode, ranks and scores agree, texts are sound. Exit status 1 if anything is wrong."""
    if commands.data.validate(source, media_root, video_frames, max_text, most, as_json, video_fps, frames_per_second):
        raise typer.Exit(1)


@verbs.command()
def stats(
    data: options.DataSet,
    model: Annotated[str | None, path_option(help="Model whose tokenizer counts; default: an estimate.")] = None,
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    video_fps: options.VideoFps = None,
    frames_per_second: options.FramesPerSecond = None,
    slots: Annotated[int, typer.Option(min=1, help="Row size that `dropped` refers to.")] = 8192,
    template: options.Template = None,
    out: Annotated[str, path_option(writes=True, help="Page to write.")] = "stats.html",
    as_json: options.Json = False,
) -> None:
    """Statistics of a data set: lengths, tiles, ties, scores, predicted packing. Writes a page with plots, or prints JSON."""
    commands.data.stats(data, model, media_root, video_frames, slots, template, out, as_json, video_fps, frames_per_second)


@verbs.command("show")
def show_group(
    data: options.DataSet,
    record_id: Annotated[str, typer.Argument(metavar="ID", help="The group's id.")],
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    video_fps: options.VideoFps = None,
    frames_per_second: options.FramesPerSecond = None,
    out: Annotated[str, path_option(writes=True, help="Page to write.")] = "group.html",
) -> None:
    """Write a page of one group: its images, the prompt, and the responses from best to worst with all their fields."""
    commands.data.show(data, record_id, media_root, video_frames, out, video_fps, frames_per_second)


@verbs.command()
def margins(
    data: options.DataSet,
    rewards: Annotated[
        str | None, path_option(help="Score file of these records. Default: the numbers that the records have.")
    ] = None,
    margins_from: Annotated[
        str, typer.Option("--margins", help="Where margins are from: rewards, human_scores or stored.")
    ] = "rewards",
    beta: options.ScaleBeta = None,
    w: options.ScaleW = None,
    k: options.ScaleK = None,
    negative_margins: Annotated[
        str | None, typer.Option(help="As objective.scaling.negative_margins: clamp, unclamped or drop.")
    ] = None,
    media_root: options.MediaRoot = None,
    out: Annotated[str, path_option(writes=True, help="Page to write.")] = "margins.html",
    as_json: options.Json = False,
) -> None:
    """Show how large reward margins are, how far they can be trusted, and what β they give. Writes a page, or prints JSON."""
    scale = dict(beta=beta, w=w, k=k, negative_margins=negative_margins)
    commands.data.margins(data, rewards, margins_from, media_root, out, as_json, **scale)
