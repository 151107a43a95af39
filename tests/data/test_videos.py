"""Sizes and times of a video's frames, from the file or folder to the example, and through a build."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mmrlhf_jax.data import media
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.built_examples import LAYOUTS_FILE, BuiltExamples
from mmrlhf_jax.data.encode import media_layout
from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.data.media import read_video_frames
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.shards import plan_shards
from mmrlhf_jax.data.videos import FRAMES_FILE, frames_at, video_layout
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.video import VideoLayout
from tests import ranked

ROW = {"prompt": "What happens?", "responses": [{"text": "Rain.", "rank": 1}, {"text": "Sun.", "rank": 2}]}


def write_video(path: Path, frames: int = 40, rate=10) -> Path:
    """A video of 64 x 48."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for grey in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_folder(folder: Path, frames: int = 7, size: tuple[int, int] = (30, 20)) -> Path:
    folder.mkdir(parents=True)
    for number in range(frames):
        (folder / f"{number}.png").write_bytes(ranked.picture(size, number))
    return folder


def write_source(place: Path, /, **videos: str) -> Path:
    """`records.jsonl` with a record for each name of a video."""
    path = place / "records.jsonl"
    path.write_text("".join(json.dumps({"id": name, "video": video} | ROW) + "\n" for name, video in videos.items()))
    return path


@pytest.fixture
def source(tmp_path):
    """A video file, a folder of frames, and a folder whose frames are named by a file."""
    folder = tmp_path / "source"
    write_folder(folder / "clip")
    write_folder(folder / "known", 3)
    (folder / "known" / FRAMES_FILE).write_text('{"numbers": [0, 50, 99], "total": 100, "rate": 25}')
    write_video(folder / "clip.mp4")
    return write_source(folder, file="clip.mp4", folder="clip", known="known")


# One video


@pytest.mark.parametrize("count", [1, 4, 60])
def test_a_file_has_its_own_size_and_rate(tmp_path, count):
    path = write_video(tmp_path / "clip.mp4")
    found = video_layout(path, count, rate=99.0)
    assert found == VideoLayout(count, (48, 64), tuple(np.linspace(0, 39, count, dtype=int).tolist()), 40, 10.0)
    assert found.times == tuple(number / 10 for number in found.numbers) and found.total / found.rate == 4.0
    frames = read_video_frames(path, count)
    assert {Image.open(io.BytesIO(data)).size[::-1] for data in frames} == {found.size} and len(frames) == count


def test_only_the_first_frame_is_decoded(tmp_path, monkeypatch):
    path, seen = write_video(tmp_path / "clip.mp4"), []
    turned = media.upright
    monkeypatch.setattr("mmrlhf_jax.data.videos.upright", lambda frame, path: seen.append(frame.pts) or turned(frame, path))
    monkeypatch.setattr("mmrlhf_jax.data.media.upright", None)
    video_layout(path, 8)
    assert seen == [0]


def test_the_size_is_that_of_the_video_as_it_is_shown(tmp_path):
    import av

    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        stream.set_display_rotation(90)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    assert video_layout(path, 2).size == (64, 48)


def test_a_folder_has_the_rate_that_is_given(tmp_path):
    folder = write_folder(tmp_path / "clip")
    assert video_layout(folder, 3) == VideoLayout(3, (20, 30), (0, 3, 6), 7, None)
    assert video_layout(str(folder), 3, rate=2.0).times == (0.0, 1.5, 3.0)


def test_frames_of_a_folder_that_names_them_are_not_sampled_twice(tmp_path):
    """Of 4 frames, sampled from 100, every other one is taken: their times are those in the video. The file goes before the
    key."""
    folder = write_folder(tmp_path / "clip", 4)
    (folder / FRAMES_FILE).write_text('{"numbers": [0, 33, 66, 99], "total": 100, "rate": 25.0}')
    assert video_layout(folder, 2, rate=7.0) == VideoLayout(2, (20, 30), (0, 99), 100, 25.0)
    assert video_layout(folder, 4).times == (0.0, 33 / 25, 66 / 25, 99 / 25)
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"packed/{file.name}")
    (inside,) = SourceExamples(write_source(tmp_path, a="packed"), tmp_path / "clips.zip", video_frames=4)
    assert inside.video == video_layout(folder, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must have `numbers` of the frames, and `total`"),
        ('{"numbers": [0, 1, 2], "rate": 2}', "must have `numbers` of the frames, and `total`"),
        ('{"numbers": [0, true, 2], "total": 9, "rate": 2}', "must have `numbers` of the frames, and `total`"),
        ('{"numbers": [0, 2, 1], "total": 9, "rate": 2}', "`numbers` must ascend and be less than `total`, which is 9"),
        ('{"numbers": [0, 1, 9], "total": 9, "rate": 2}', "`numbers` must ascend and be less than `total`, which is 9"),
        (
            '{"numbers": [0, 1, 2], "total": 9, "rate": 0}',
            "rate must be a number of frames per second from 0.001 to",
        ),
        ('{"numbers": [0, 1], "total": 9, "rate": 2}', "names 2 frames, and the folder has 3"),
    ],
)
def test_a_damaged_file_of_frames_is_named(tmp_path, content, message):
    folder = write_folder(tmp_path / "clip", 3)
    (folder / FRAMES_FILE).write_text(content)
    examples = SourceExamples(write_source(tmp_path, a="clip"))
    with pytest.raises(UserError, match=rf"record 'a': .*clip/frames\.json: {message}") as raised:
        examples.layout(0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), True, 1e-9, 1e300])
def test_a_rate_that_is_no_rate_is_refused(source, rate):
    with pytest.raises(UserError, match=r"frames_per_second must be a number of frames per second from 0\.001 to"):
        open_examples(source, frames_per_second=rate)


# Examples


def test_layouts_and_examples_of_a_source_agree(source):
    examples = SourceExamples(source, video_frames=3, frames_per_second=2.0)
    for number, example in enumerate(examples):
        assert media_layout(example) == examples.layout(number) and example.video == examples.layout(number).video
    assert [examples.layout(number).video.rate for number in range(3)] == [10.0, 2.0, 25.0]
    assert [examples.layout(number).frames for number in range(3)] == [3, 3, 3]


def test_the_fingerprint_depends_on_the_times_that_the_media_do_not_tell(tmp_path, source):
    plain = SourceExamples(source, video_frames=3).fingerprint
    twice, thrice = (SourceExamples(source, video_frames=3, frames_per_second=rate).fingerprint for rate in (2, 3))
    assert len({plain, twice, thrice}) == 3
    named = source.parent / "known" / FRAMES_FILE
    named.write_text(named.read_text().replace("25", "24"))
    assert SourceExamples(source, video_frames=3).fingerprint != plain
    alone = write_source(source.parent, file="clip.mp4")
    found = [SourceExamples(alone, frames_per_second=rate).fingerprint for rate in (None, 2, 3)]
    assert len({*found}) == 1  # a file tells its own


# Built data sets


def test_a_build_keeps_sizes_and_times(source, tmp_path):
    built = build(source, tmp_path / "built", video_frames=3, frames_per_second=2.0, jobs=1)
    original = SourceExamples(source, video_frames=3, frames_per_second=2.0)
    assert list(built) == list(original) and [built.layout(i) for i in range(3)] == [original.layout(i) for i in range(3)]
    assert built.fingerprint == original.fingerprint
    assert [example.video.rate for example in BuiltExamples(tmp_path / "built", 5.0)] == [10.0, 2.0, 25.0]
    assert BuiltExamples(tmp_path / "built", 5.0).fingerprint == built.fingerprint  # no frame has its time from the key
    mixed = open_examples([str(tmp_path / "built"), str(source)], video_frames=3, frames_per_second=2.0)
    assert [mixed[i].video for i in range(6)] == [example.video for example in original] * 2


def test_a_rate_may_be_given_after_the_build(source, tmp_path):
    build(source, tmp_path / "built", video_frames=3, jobs=1)
    plain, timed = BuiltExamples(tmp_path / "built"), open_examples(tmp_path / "built", frames_per_second=2.0)
    assert [example.video.rate for example in plain] == [10.0, None, 25.0]
    assert [example.video.rate for example in timed] == [10.0, 2.0, 25.0]
    assert timed[1].video.times == (0.0, 1.5, 3.0) and timed.layout(1).video == timed[1].video
    other = BuiltExamples(tmp_path / "built", 3.0)
    assert len({plain.fingerprint, timed.fingerprint, other.fingerprint}) == 3


def test_an_older_build_has_the_number_of_frames_alone(source, tmp_path):
    build(source, tmp_path / "built", video_frames=3, jobs=1)
    path = tmp_path / "built" / LAYOUTS_FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(row["frames"] == 3 and row.pop("video") for row in rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    older = BuiltExamples(tmp_path / "built", 2.0)
    older._files = {}  # as of a build that did not store digests
    assert [older.layout(i).video for i in range(3)] == [VideoLayout(3)] * 3
    assert [example.video for example in older] == [VideoLayout(3)] * 3
    assert media_layout(older[1]).video == VideoLayout(3, (20, 30))
    assert older.fingerprint == BuiltExamples(tmp_path / "built").fingerprint


def test_a_shard_is_written_again_if_the_times_have_changed(source, tmp_path):
    def key(rate: float | None = None) -> str:
        examples = SourceExamples(source, video_frames=3, frames_per_second=rate)
        (shard,) = plan_shards(examples, epath.Path(tmp_path / "data"), epath.Path(tmp_path / "notes"))
        return shard.key

    keys = [key(), key(), key(2.0), key(3.0)]
    (source.parent / "known" / FRAMES_FILE).write_text('{"numbers": [0, 5, 9], "total": 10, "rate": 24}')
    keys.append(key())
    assert keys[0] == keys[1] and len({*keys}) == 4


# Sampling by the second


@pytest.mark.parametrize(
    ("seconds", "most", "expected"),
    [
        (8, 768, 16),
        (8, 10, 10),
        (8, 9, 8),  # an even number
        (1, 768, 4),  # at least 4
        (0.3, 768, 2),  # of 3 frames
        (0.1, 768, 1),
        (3.9, 768, 6),  # 7.8 a second, rounded down
    ],
)
def test_frames_are_sampled_by_the_second_as_the_vendor_counts_them(seconds, most, expected):
    total = round(10 * seconds)
    assert frames_at(2.0, total, 10.0, most) == expected


def test_examples_are_sampled_by_the_second(source, tmp_path):
    """4 seconds of video at 1.5 frames a second; 7 frames at 2 a second; and the 3 that there are of another 4 seconds."""
    rates = dict(video_fps=1.5, frames_per_second=2.0)
    examples = SourceExamples(source, video_frames=768, **rates)
    assert [len(example.frames) for example in examples] == [examples.layout(i).frames for i in range(3)] == [6, 4, 3]
    assert examples[0].video.numbers == tuple(np.linspace(0, 39, 6, dtype=int)) and examples[2].video.numbers == (0, 50, 99)
    assert [SourceExamples(source, video_frames=2, **rates).layout(i).frames for i in range(3)] == [2, 2, 2]
    built = build(source, tmp_path / "built", video_frames=768, jobs=1, **rates)
    assert list(built) == list(examples) and built.fingerprint == examples.fingerprint
    others = [SourceExamples(source, video_frames=768, video_fps=fps, frames_per_second=2.0).fingerprint for fps in (None, 2.0)]
    assert len({built.fingerprint, *others}) == 3


def test_a_folder_without_times_cannot_be_sampled_by_the_second(source):
    examples = SourceExamples(source, video_fps=2.0)
    for read in (examples.layout, examples.media_files, examples.__getitem__):
        with pytest.raises(
            UserError, match=r"record 'folder': .*clip: data\.video_fps \(--video-fps\) needs the times"
        ) as raised:
            read(1)
        assert "set data.frames_per_second (--frames-per-second)" in str(raised.value)
