"""The layout of a video: sizes and times of the frames that `media.read_video_frames` gives, without decoding it whole."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.images import image_size
from mmrlhf_jax.data.media import MediaFile, count_frames, decoding, images_in, read_media, upright, video_files, video_stream
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.faults import retried
from mmrlhf_jax.finite import is_finite
from mmrlhf_jax.models.geometry import evenly_spaced
from mmrlhf_jax.models.video import VideoLayout

RATES = (1e-3, 1e5)  # frames per second: one in a quarter of an hour, and more than any camera for films takes
LEAST_FRAMES = 4  # that are sampled of a short video at a rate
# A file in a folder of frames that were sampled from a video: which frames of it they are.
FRAMES_FILE = "frames.json"


def check_rate(rate: float | None, key: str) -> None:
    """UserError unless `rate`, frames per second, is None or a number that a video can have, so that times are finite and
    positions of time have 32 bits."""
    slowest, fastest = RATES
    if rate is not None and (not is_finite(rate) or not slowest <= rate <= fastest):
        raise UserError(f"{key} must be a number of frames per second from {slowest} to {fastest}, found {shown(rate)}")


def frames_at(fps: float, total: int, rate: float, most: int) -> int:
    """How many of a video's `total` frames are sampled at `fps` a second: an even number, because a patch of a video holds two,
    of at least LEAST_FRAMES and at most `most`, as far as there are so many.

    As `sample_frames` of transformers `models/qwen2_vl/video_processing_qwen2_vl.py` counts them.
    """
    wanted = int(min(max(total / rate * fps, LEAST_FRAMES), most, total))
    return max(1, wanted // 2 * 2)


def video_layout(
    path: str | MediaFile,
    most: int,
    fps: float | None = None,
    rate: float | None = None,
    root: str | epath.Path | None = None,
) -> VideoLayout:
    """The layout of a video of which `most` frames are sampled, or `fps` of each second (`frames_at`). `rate` is that of the
    frames in a folder that does not tell it.

    A video file is read once to count its frames, and only its first frame is decoded, for its size and how it is to be turned.
    Of a folder of frames the first image's header is read, and its FRAMES_FILE. UserError as in `read_video_frames`, and for a
    FRAMES_FILE that is damaged or of other frames.
    """
    path = epath.Path(path) if isinstance(path, str) else path
    if not path.is_dir():
        with decoding(path):
            total, found, size = retried(lambda: _header(path), f"{path}")
        if size is None:
            raise UserError(f"{path}: the video has no frames; replace it or remove the record")
        return _sampled(VideoLayout(total, size, tuple(range(total)), total, found), most, fps, path)
    first = video_files(path, 1, root)[0]
    size = image_size(read_media(first, str(path)), f"{path}: {first.name}")
    total = len(images_in(path))
    check_rate(rate, "frames_per_second")
    stored = read_frames_file(path) or VideoLayout(total, None, tuple(range(total)), total)
    if stored.rate is None:
        stored = dataclasses.replace(stored, rate=rate)
    if len(stored.numbers) != total:
        raise UserError(f"{path}/{FRAMES_FILE}: names {len(stored.numbers)} frames, and the folder has {total}; write it again")
    return _sampled(dataclasses.replace(stored, size=size), most, fps, path)


def _sampled(video: VideoLayout, most: int, fps: float | None, path: MediaFile) -> VideoLayout:
    """`video` of which only sampled frames are taken."""
    if fps is None:
        return video.keep(evenly_spaced(video.frames, most))
    if video.rate is None:
        raise UserError(
            f"{path}: data.video_fps (--video-fps) needs the times of a video's frames, and this folder of frames does not tell"
            " them; set data.frames_per_second (--frames-per-second) to their rate"
        )
    return video.keep(evenly_spaced(video.frames, min(frames_at(fps, video.total, video.rate, most), video.frames)))


def _header(path: MediaFile) -> tuple[int, float | None, tuple[int, int] | None]:
    """(number of frames, frames per second, (height, width) of the first frame as it is shown; None: there is none)."""
    import av

    with path.open("rb") as file:
        total = count_frames(file, path)
        file.seek(0)
        with av.open(file) as container:
            stream = video_stream(container, path)
            rate = stream.average_rate or stream.guessed_rate
            first = next(container.decode(stream), None)
            size = None if first is None else upright(first, path).size[::-1]
    return total, float(rate) if rate else None, size


def frames_files(path: MediaFile) -> list[MediaFile]:
    """The FRAMES_FILE of a folder of frames, if it has one; a video file has none."""
    return [file for file in path.iterdir() if file.name == FRAMES_FILE] if path.is_dir() else []


def read_frames_file(folder: MediaFile) -> VideoLayout | None:
    """The layout that the FRAMES_FILE of a folder of frames tells; None if it has none."""
    if not (found := frames_files(folder)):
        return None
    file, where = found[0], f"{found[0]}"
    try:
        found = strict_json.loads(read_media(file, where))
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error}); write it again, or remove it") from error
    numbers, total, rate = (found.get(name) if isinstance(found, dict) else None for name in ("numbers", "total", "rate"))
    if not (isinstance(numbers, list) and all(_is_count(number) for number in numbers) and _is_count(total)):
        raise UserError(f"{where}: must have `numbers` of the frames, and `total`; write it again, or remove it")
    if numbers != sorted(numbers) or not numbers or numbers[-1] >= total:
        raise UserError(f"{where}: `numbers` must ascend and be less than `total`, which is {total}; write it again")
    check_rate(rate, f"{where}: rate")
    return VideoLayout(len(numbers), None, tuple(numbers), total, rate)


def write_frames_file(video: VideoLayout) -> bytes:
    """The content of the FRAMES_FILE of a folder of this video's sampled frames."""
    return strict_json.dumps({"numbers": video.numbers, "total": video.total, "rate": video.rate}).encode()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
