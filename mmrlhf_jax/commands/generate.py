"""`mmrlhf generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.media import read_media, read_video_frames
from mmrlhf_jax.data.videos import check_rate, video_layout
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import compilation_cache
from mmrlhf_jax.inference.engine import Engine, Prompt
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.places import TAG, WrongMedia
from mmrlhf_jax.records import RankedRecord


def generate(
    model: str,
    prompt: str,
    images: Sequence[str],
    video: str | None,
    video_frames: int,
    video_fps: float | None,
    frames_per_second: float | None,
    *,
    dtype: str | None,
    template: str | None,
    max_new_tokens: int,
    stops: Sequence[str],
    **sampling: Any,
) -> None:
    """`sampling` are fields of `Sampling`."""
    if any(not stop for stop in stops):
        raise UserError("--stop: an empty text cannot end an answer")
    check_rate(video_fps, "--video-fps")
    check_rate(frames_per_second, "--frames-per-second")
    how = Sampling(**sampling)  # raises for values out of range, before the model is loaded
    if images and video is not None:
        raise UserError("give --image or --video; a prompt about both is not supported")
    pictures = tuple(read_media(epath.Path(path), "--image") for path in images)
    layout = None if video is None else video_layout(video, video_frames, video_fps, frames_per_second)
    frames = () if layout is None else tuple(read_video_frames(video, layout.frames))
    record = RankedRecord(id="prompt", prompt=prompt, responses=(), images=tuple(images), video=video)
    if not (pictures or frames) and (tag := TAG.search(prompt)):
        raise WrongMedia(f"--prompt: the prompt has the tag {tag[0]}, but there are no media; give --image or --video")
    record.prompt_text("--prompt")  # raises if tags and media do not match, before the model is loaded
    example = Example(record, pictures, frames, layout)
    compilation_cache.use()
    engine = Engine.load(model, dtype=dtype, template=template, batch=1)
    for piece in engine.stream(Prompt(example), engine.asked(max_new_tokens, sampling=how), stops):
        print(piece, end="", flush=True)
    print()
