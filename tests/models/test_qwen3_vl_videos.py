"""Videos of Qwen3-VL: the times before each patch of time, and the sizes of frames.

Oracles: transformers' `Qwen3VLProcessor._calculate_timestamps` and `smart_resize` of its video processor, and texts by hand.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mmrlhf_jax.data.encode import make_encoder
from mmrlhf_jax.data.examples import Layout
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.models.qwen3_vl.geometry import Qwen3Geometry
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.pieces import Special, Text, Visual
from mmrlhf_jax.records import RankedRecord, Response
from tests.families import qwen3_vl as family

PUBLISHED = Qwen3Geometry()
NTSC = 23.976
SIZE = (32, 48)  # two rows of three blocks at the tiny model's patches of 8 pixels

# (numbers of the sampled frames, frames per second) -> the times that stand before the patches of time, by hand
TIMES = {
    ((0,), NTSC): ["0.0"],
    ((24,), NTSC): ["1.0"],  # 1.001
    ((0, 48), NTSC): ["1.0"],  # the mean of 0 and 2.002
    ((0, 12, 24, 36, 47), NTSC): ["0.3", "1.3", "2.0"],  # 0.2503, 1.2513, and 1.9603 twice
    ((0, 15, 30), 30.0): ["0.2", "1.0"],  # 0.25 is rounded to even
    ((0, 1, 2, 3, 4, 5, 6), 2.0): ["0.2", "1.2", "2.2", "3.0"],
    ((0, 3600, 7200), 1.0): ["1800.0", "7200.0"],
}


def video_of(numbers: tuple[int, ...], rate: float, size=SIZE) -> VideoLayout:
    return VideoLayout(len(numbers), size, numbers, numbers[-1] + 1, rate)


@pytest.mark.parametrize(("numbers", "rate"), TIMES, ids=str)
def test_times_stand_before_every_patch_of_time(numbers, rate):
    pytest.importorskip("torch")
    from transformers import Qwen3VLProcessor

    (plan,) = PUBLISHED.plans([], video_of(numbers, rate, (256, 256)))
    texts = [piece.text for piece in plan.pieces if isinstance(piece, Text)]
    theirs = Qwen3VLProcessor._calculate_timestamps(None, list(numbers), rate, 2)
    assert texts == [f"<{time:.1f} seconds>" for time in theirs] == [f"<{time} seconds>" for time in TIMES[numbers, rate]]
    visual = (Special("<|vision_start|>"), Visual(64, (8, 8)), Special("<|vision_end|>"))
    assert plan.pieces == tuple(piece for text in texts for piece in (Text(text), *visual))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 31])
@pytest.mark.parametrize("rate", [NTSC, 29.97, 60.0, 0.5])
def test_times_are_those_of_transformers_processor(count, rate):
    pytest.importorskip("torch")
    from transformers import Qwen3VLProcessor

    numbers = np.sort(np.random.default_rng(count).choice(5000, count, replace=False)).tolist()
    (plan,) = PUBLISHED.plans([], video_of(tuple(numbers), rate))
    texts = [piece.text for piece in plan.pieces if isinstance(piece, Text)]
    theirs = Qwen3VLProcessor._calculate_timestamps(None, list(numbers), rate, 2)
    assert texts == [f"<{time:.1f} seconds>" for time in theirs]


@pytest.mark.parametrize(("numbers", "rate"), TIMES, ids=str)
@pytest.mark.parametrize("template", ["checkpoint", "qwen_1_5"])
def test_a_conversation_about_a_video_is_the_vendors(tmp_path, template, numbers, rate):
    """The pair that the chat template writes is replaced with the medium: none stands around the whole video."""
    directory = family.checkpoint(tmp_path)
    encoder = make_encoder(load_tokenizer(directory), read_sizes(directory), template)
    record = RankedRecord("one", "What?", (Response("A kite."),), (), "clip")
    (conversation,) = encoder.conversations(record, encoder.plans(record, Layout((), video_of(numbers, rate))))
    pads = "<|image_pad|>" * 6
    video = "".join(f"<{time} seconds><|vision_start|>{pads}<|vision_end|>" for time in TIMES[numbers, rate])
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    before, behind = ("", "") if template == "checkpoint" else (system, "\n")
    expected = f"{before}<|im_start|>user\n{video}{behind}What?<|im_end|>\n<|im_start|>assistant\nA kite.<|im_end|>\n"
    assert encoder.tokenizer.tokenizer.decode(conversation.tokens, skip_special_tokens=False) == expected
    assert conversation.is_visual.sum() == 6 * len(TIMES[numbers, rate])


# Sizes


def drawn(count: int):
    """(frames, height, width) of videos, of which a third have a side of less than a block."""
    rng = np.random.default_rng(0)
    for number in range(count):
        low, high = (1, 32) if number % 3 == 0 else (32, 2500)
        height, width = int(rng.integers(low, high)), int(rng.integers(1, 1500))
        yield int(rng.integers(2, 200)), *((height, width) if rng.integers(2) else (width, height))


@pytest.mark.parametrize("limits", [(4096, 25165824), (131072, 786432), (1 << 22, 1 << 23)])
@pytest.mark.parametrize("most", [None, 32 * 32, 200_000, 10**9])
def test_sizes_of_frames_are_those_of_transformers_video_processor(limits, most):
    """The limits of a whole clip, and `data.max_pixels` of each frame as a limit of that many frames together."""
    pytest.importorskip("torch")
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    geometry = dataclasses.replace(PUBLISHED, video_min_pixels=limits[0], video_max_pixels=limits[1]).within_pixels(most)
    bounded = 0
    for frames, height, width in drawn(300):
        highest = limits[1] if most is None else min(limits[1], most * frames)
        try:
            theirs = smart_resize(frames, height, width, 2, 32, min(limits[0], highest), highest)
        except ValueError:
            with pytest.raises(UserError, match="more than 200 times as long as wide"):
                geometry.video_size(frames, height, width)
            continue
        assert geometry.video_size(frames, height, width) == theirs
        bounded += frames * theirs[0] * theirs[1] < frames * height * width
    assert bounded > 20 or most == 10**9


def test_a_frame_more_than_200_times_as_long_as_wide_is_called_a_frame():
    with pytest.raises(UserError, match="a frame of 40000 x 100 pixels is more than 200 times as long as wide"):
        PUBLISHED.video_size(4, 100, 40000)


def test_a_limit_of_blocks_holds_for_long_frames_and_where_the_number_of_patches_of_time_is_rounded():
    """24 frames of 1026 x 22 pixels had 504 blocks at a limit of 456, because no side is shorter than a block."""
    (strip,) = PUBLISHED.plans([], video_of(tuple(range(24)), 2.0, (22, 1026)), 456)
    assert 400 < strip.tiles <= 456
    smaller = 0
    for frames, height, width in drawn(150):
        if max(height, width) > 150 * min(height, width):
            continue
        video = video_of(tuple(range(frames)), 2.0, (height, width))
        (whole,) = PUBLISHED.plans([], video)
        for limit in PUBLISHED.smaller_media([], video)[::5]:
            (plan,) = PUBLISHED.plans([], video, limit)
            assert plan.tiles <= limit or limit < 16
            smaller += plan.tiles < whole.tiles
    assert smaller > 300


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 9, 30, 31])
def test_no_video_has_more_blocks_than_there_is_room_for(frames):
    """5 frames have 3 patches of time, of which transformers' limit counts 2."""
    geometry = dataclasses.replace(PUBLISHED, video_max_pixels=1 << 20)
    found = [geometry.plans([], video_of(tuple(range(frames)), 2.0, (side, side)))[0].tiles for side in range(64, 2048, 16)]
    assert max(found) <= geometry.most_blocks(frames)
    assert frames != 5 or max(found) > geometry.video_max_pixels // (2 * 32**2)


@pytest.mark.parametrize("file", ["video_preprocessor_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("spelling", ["older", "newer"])
@pytest.mark.parametrize("most", [None, 600])
def test_limits_of_a_clip_count_in_either_spelling(tmp_path, file, spelling, most):
    pytest.importorskip("torch")
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    directory = family.checkpoint(tmp_path)
    stated = {"min_pixels": 7000, "max_pixels": 20000}
    if spelling == "newer":
        stated = {"size": {"shortest_edge": 7000, "longest_edge": 20000}}
    settings = json.loads((directory / "preprocessor_config.json").read_text())
    kept = {key: value for key, value in settings.items() if key not in ("size", "min_pixels", "max_pixels")}
    (directory / file).write_text(json.dumps(kept | stated))
    geometry = read_sizes(directory).geometry.within_pixels(most)
    seen = set()
    for frames, height, width in [(2, 20, 30), (4, 300, 200), (9, 40, 11), (30, 64, 64)]:
        highest = 20000 if most is None else min(20000, most * frames)
        theirs = smart_resize(frames, height, width, 2, 16, min(7000, highest), highest)
        assert geometry.video_size(frames, height, width) == theirs
        (plan,) = geometry.plans([], video_of(tuple(range(frames)), 2.0, (height, width)))
        assert plan.tiles == -(-frames // 2) * theirs[0] * theirs[1] // 256
        seen.add(theirs == (round(height / 16) * 16, round(width / 16) * 16))
    assert False in seen


def test_without_files_the_limits_are_those_of_published_checkpoints(tmp_path):
    """Of an image, and of all frames of a video together."""
    directory = family.checkpoint(tmp_path, family.config(**family.PUBLISHED_GEOMETRY))
    (directory / "preprocessor_config.json").unlink()
    geometry = read_sizes(directory).geometry
    assert (geometry.min_pixels, geometry.max_pixels) == (65536, 16777216)
    assert (geometry.video_min_pixels, geometry.video_max_pixels) == (4096, 25165824)
