"""Videos of Qwen2.5-VL: sizes, patches of time, and positions.

Positions have no oracle: transformers 5.24 lets the text behind a long clip overlap it. The tables below are worked out by hand
from the vendor's rule. The frame of time t begins floor(t x interval) behind the clip's beginning, with interval =
tokens_per_second x 2 / (sampled frames per second), and what follows begins one behind the largest position of the clip.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import Limit
from mmrlhf_jax.data.examples import Layout
from mmrlhf_jax.data.index import build_index
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.over_budget import within_budget
from mmrlhf_jax.data.positions import Clip, three_axes
from mmrlhf_jax.data.rows import Budget, empty_row, group_size
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.models import registry
from mmrlhf_jax.models.patch_geometry import LEAST_BLOCKS, window_order
from mmrlhf_jax.models.patch_processors import END, START
from mmrlhf_jax.models.qwen2_5_vl.geometry import Qwen25Geometry
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.pieces import Special, Visual
from mmrlhf_jax.planning.workload import measured_workload
from mmrlhf_jax.records import RankedRecord, Response
from mmrlhf_jax.training.work import batch_work
from tests import ranked
from tests.families import qwen2_5_vl as family
from tests.prompts import every_frame, noise
from tests.test_every_family import mmrlhf, with_video

LIMITS = (4 * 196, 128 * 196)
TINY = Qwen25Geometry(7, 2, 2, 2, *LIMITS, *LIMITS)
PUBLISHED = Qwen25Geometry()
SECOND = VideoLayout(4, (28, 42), (0, 3, 6, 9), 10, 10.0)  # of one second, with sampled frames at 4 a second


# Positions


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        pytest.param(
            [1, Clip(2, 1, 2, 1.0), 2],  # as for Qwen2-VL, which has no interval
            [(0, 0, 0), (1, 1, 1), (1, 1, 2), (2, 1, 1), (2, 1, 2), (3, 3, 3), (4, 4, 4)],
            id="one position a patch",
        ),
        pytest.param(
            # tokens_per_second 2, frames sampled at 3 a second: 2 x 2 / 3 = 1.33 a patch, so 0, 1, 2, 4 and not 0, 1, 2, 3.
            [2, Clip(4, 1, 1, 2 * (2 / 3)), 1],
            [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 2, 2), (4, 2, 2), (6, 2, 2), (7, 7, 7)],
            id="a fraction is rounded down behind the multiplication",
        ),
        pytest.param(
            # One frame in two seconds: 2 x 2 / 0.5 = 8. The text begins behind the time of the last patch, not behind its row.
            [Clip(3, 2, 1, 8.0), 2],
            [(0, 0, 0), (0, 1, 0), (8, 0, 0), (8, 1, 0), (16, 0, 0), (16, 1, 0), (17, 17, 17), (18, 18, 18)],
            id="a long clip",
        ),
        pytest.param(
            # Half a position a patch: 0, 0, 1. The text begins behind the longest side.
            [Clip(3, 1, 3, 0.5), 1, (1, 2), 1],
            [
                (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 0, 0), (1, 0, 1), (1, 0, 2),
                (3, 3, 3), (4, 4, 4), (4, 4, 5), (6, 6, 6),
            ],
            id="a short clip, and an image behind it, which is not scaled",
        ),
    ],
)  # fmt: skip
def test_positions_are_the_vendors_rule(runs, expected):
    np.testing.assert_array_equal(three_axes(runs), expected)


def test_the_interval_is_that_of_the_sampled_frames():
    """Frames 0, 3, 6, 9 of ten are 0.3 s apart; of 32 at the same places, 0.8 s stand for each of four."""
    assert TINY.interval(SECOND) == pytest.approx(2 * 2 * 0.3)
    assert TINY.interval(dataclasses.replace(SECOND, total=32)) == pytest.approx(2 * 2 * 0.8)
    assert Qwen25Geometry(tokens_per_second=4).interval(SECOND) == pytest.approx(4 * 2 * 0.3)


@pytest.mark.parametrize(("total", "rate", "count"), [(77, 23.976, 5), (300, 30.0, 20), (41, 24.0, 4), (10, 10.0, 10)])
def test_of_frames_that_the_vendors_processor_samples_it_is_the_vendors(total, rate, count):
    """`sample_frames` of Qwen2's video processor takes every total / count-th frame, rounded down."""
    metadata = pytest.importorskip("transformers.video_utils").VideoMetadata
    numbers = [int(number) for number in np.arange(0, total, total / count)]
    theirs = metadata(total_num_frames=total, fps=rate, frames_indices=numbers)
    ours = VideoLayout(count, None, tuple(numbers), total, rate)
    assert PUBLISHED.interval(ours) == pytest.approx(2 * 2 / theirs.sampled_fps) and list(ours.times) == theirs.timestamps


def test_positions_reach_the_conversation(tmp_path):
    encoder = _encoder(tmp_path)
    record = RankedRecord("a", "What?", (Response("One.", 1), Response("Two.", 2)), video="clip")
    video = dataclasses.replace(SECOND, total=80)  # 8 seconds: patches 8 positions apart
    (conversation, _) = encoder.conversations(record, encoder.plans(record, Layout((), video)))
    where = np.flatnonzero(conversation.is_visual)
    positions = conversation.positions - conversation.positions[where[0]]
    assert len(where) == 2 * 2 * 3 and {*positions[where, 0]} == {0, 8}
    np.testing.assert_array_equal(positions[where[-1] + 1 : where[-1] + 3], [(9, 9, 9), (10, 10, 10)])


# Patches of time


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("size", [(30, 200), (41, 33)])
def test_pixels_are_those_of_transformers_processor_bit_for_bit(tmp_path, size, frames):
    """Two frames in a patch, whose pixels are those of transformers' images; windows and frames are patches of time."""
    pytest.importorskip("transformers")
    model, pictures = read_sizes(family.checkpoint(tmp_path)), noise([size] * frames)
    expected, (times, rows, columns) = family.frame_patches(model, pictures)
    blocks = model.geometry.cut_frames(pictures)
    (plan,) = model.geometry.plans([], every_frame(frames, size))
    visual = Visual(len(blocks), (rows // 2, columns // 2), times, 2 * 2 / 8 if frames > 2 else 1.0)
    assert plan.pieces == (Special(START), visual, Special(END))
    mean, std = np.float32(model.vision.image_mean), np.float32(model.vision.image_std)
    raster = blocks[plan.taps[:, 0]].reshape(-1, 3, 2 * 7 * 7)
    found = (raster.astype(np.float32) * np.float32(model.vision.rescale) - mean[:, None]) / std[:, None]
    np.testing.assert_allclose(found.reshape(len(expected), -1), expected, rtol=0, atol=1e-6)
    back = np.round((expected.reshape(raster.shape) * std[:, None] + mean[:, None]) * 255).astype(np.uint8)
    np.testing.assert_array_equal(raster, back)

    media = model.geometry.of_group(blocks, [plan], np.arange(plan.tokens), 99)
    of_frame = rows * columns // 4
    np.testing.assert_array_equal(media.frames, np.repeat(np.arange(1, times + 1) * of_frame, of_frame))
    _, ends = window_order(rows // 2, columns // 2, 2)
    np.testing.assert_array_equal(media.windows, np.concatenate([ends + time * of_frame for time in range(times)]))


def test_frames_that_a_short_video_repeats_are_taken_once():
    video = VideoLayout(6, (28, 28), (0, 0, 0, 1, 1, 2), 3, 3.0)
    assert TINY.frame_numbers(video) == [0, 3, 5]
    (plan,) = TINY.plans([], video)
    assert plan.pieces == (Special(START), Visual(2 * 4, (2, 2), 2, 2 * (2 / 3)), Special(END))


def test_a_frame_more_than_200_times_as_long_as_wide_is_called_a_frame():
    with pytest.raises(UserError, match="a frame of 500 x 1 pixels is more than 200 times as long as wide"):
        TINY.plans([], every_frame(4, (1, 500)))


def test_frames_of_different_sizes_are_refused():
    with pytest.raises(
        UserError, match="frames of a video have different sizes, 30 x 20 and 30 x 40 pixels; make them one size"
    ):
        TINY.cut_frames(noise([(20, 30), (40, 30)]))


@pytest.mark.parametrize("size", [(300, 400), (28, 42), (14, 500)])
@pytest.mark.parametrize("frames", [1, 3, 8, 13])
def test_smaller_media_makes_frames_smaller_and_then_fewer(size, frames):
    video = every_frame(frames, size)
    (whole,) = TINY.plans([], video)
    limits, times = TINY.smaller_media([], video), -(-frames // 2)
    assert limits == sorted(limits, reverse=True) and limits[0] < whole.tiles
    blocks_of_frame, seen = whole.tiles // times, set()
    for limit in limits:
        kept = TINY.frame_numbers(video, limit)
        (plan,) = TINY.plans([], video, limit)
        assert len(TINY.cut_frames([noise([size])[0]] * len(kept), video, limit)) == plan.tiles == plan.tokens
        assert plan.tiles <= limit or (size == (14, 500) and limit < 6)  # 1 x 5 blocks are the thinnest strip
        (_, piece, _) = plan.pieces
        if len(kept) < frames:
            assert limit // times < min(LEAST_BLOCKS, blocks_of_frame) and (kept[0], kept[-1]) in ((0, 0), (0, frames - 1))
        if piece.frames > 1:  # the clip is as long as before
            assert piece.interval == pytest.approx(2 * 2 * (frames - 1) / (len(kept) - 1) / 8.0)
        seen.add((piece.frames < times, piece.grid != whole.pieces[1].grid))
    assert frames < 3 or (True, True) in seen or size != (300, 400)
    assert (False, True) in seen or size != (300, 400)


def test_an_experiments_limit_of_pixels_counts_for_frames():
    (plan,) = TINY.within_pixels(20 * 196).plans([], every_frame(4, (300, 400)))
    assert plan.tiles <= 2 * 20
    loose = dataclasses.replace(TINY, video_max_pixels=30 * 196).within_pixels(100 * 196)
    assert (loose.max_pixels, loose.video_max_pixels) == (100 * 196, 30 * 196)


# What must be known of a video


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (
            VideoLayout(4),
            r"the size of a video's frames, which the data set was built without; remove it and run `mmrlhf data b",
        ),
        (VideoLayout(4, (28, 28)), r"the times of a video's frames, which the data set was built without; remove it and run"),
        (VideoLayout(4, (28, 28), (0, 1, 2, 3), 4), r"does not tell them; set data\.frames_per_second \(--frames-per-second\)"),
    ],
)
def test_a_video_of_which_too_little_is_known_is_refused_by_its_record(tmp_path, video, message):
    encoder, record = _encoder(tmp_path), RankedRecord("a", "What?", (Response("One.", 1),), video="clip")
    with pytest.raises(UserError, match=f"^record 'a': this model needs .*{message}") as raised:
        encoder.measure(record, Layout((), video))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("verb", "record"),
    [
        (("logprobs", "--model", "policy", "--data", "data/records.jsonl", "--out", "out.jsonl"), "group-0"),
        (("score", "--model", "judge", "--critique", "given", "--data", "data/records.jsonl", "--out", "out.jsonl"), "group-0"),
        (("eval", "reward-bench", "--model", "judge", "--critique", "given", "--data", "data/records.jsonl"), "group-0"),
        (("data", "stats", "data/records.jsonl", "--model", "policy", "--json"), "group-0"),
        (("generate", "--model", "policy", "--prompt", "What?", "--video", "data/clip", "--max-new-tokens", "1"), "prompt"),
        (("train", "experiment.yaml"), "group-0"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
@pytest.mark.long
def test_a_folder_of_frames_without_times_needs_the_key_everywhere(tmp_path, monkeypatch, capsys, verb, record):
    """One line that names the record and the key; with the key, or a file of the frames' times, the verb does its work."""
    monkeypatch.chdir(tmp_path)
    family.checkpoint(tmp_path / "policy")
    family.checkpoint(tmp_path / "judge", reward_head=True)
    with_video(ranked.write(tmp_path / "data", [(1, 2)], [[(30, 20)] * 5]))

    def run(rate: float | None) -> int:
        """Of `--frames-per-second`, or of the experiment's key."""
        data = f"{{path: data/records.jsonl, video_frames: 5, frames_per_second: {'null' if rate is None else rate}}}"
        batch = "{rows: 1, slots: 512, logprob_chunk: 64}"
        (tmp_path / "experiment.yaml").write_text(
            f"model: {{path: policy, dtype: float32, remat: none}}\ndata: {data}\nobjective: {{kind: supervised}}\n"
            f"batch: {batch}\nrun: {{directory: run, steps: 1}}\n"
        )
        options = () if verb[0] == "train" or rate is None else ("--frames-per-second", rate)
        return mmrlhf(*verb, *(() if verb[0] == "train" else ("--video-frames", 5)), *options)

    assert run(None) != 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert f"record {record!r}: this model needs the times of a video's frames" in line
    assert "data.frames_per_second (--frames-per-second)" in line
    assert run(2.0) == 0
    if verb[0] in ("generate", "data"):
        (tmp_path / "data" / "clip" / "frames.json").write_text('{"numbers": [0, 1, 2, 3, 4], "total": 5, "rate": 2}')
        assert run(None) == 0


def test_every_verb_that_samples_frames_takes_their_rate():
    import typer

    from mmrlhf_jax.cli import app

    def verbs(command, name):
        yield name, {parameter.name for parameter in command.params}
        for inner, each in getattr(command, "commands", {}).items():
            yield from verbs(each, f"{name} {inner}")

    taken = {name: names for name, names in verbs(typer.main.get_command(app), "mmrlhf") if "video_frames" in names}
    assert [name for name, names in taken.items() if not {"frames_per_second", "video_fps"} <= names] == [
        "mmrlhf eval benchmarks"
    ]
    assert len(taken) > 10  # the benchmarks' videos are files


def test_of_a_single_patch_of_time_no_times_are_needed():
    assert TINY.plans([], VideoLayout(2, (28, 28)))[0].tiles == 4


def test_visual_tokens_are_never_cut(tmp_path):
    encoder = _encoder(tmp_path)
    record = RankedRecord("a", "What?", (Response("One of them, and another.", 1),), video="clip")
    (short,) = encoder.conversations(record, encoder.plans(record, Layout((), SECOND)), most_targets=1)
    assert short.is_visual.sum() == 2 * 2 * 3 and short.is_target.sum() == 1
    assert encoder.measure(record, Layout((), SECOND), Limit(targets=1))[2] == 2 * 2 * 3


# Files


@pytest.mark.parametrize(
    ("stated", "limits"),
    [
        ({"min_pixels": 1000, "max_pixels": 9000}, (1000, 9000)),
        ({"size": {"shortest_edge": 1000, "longest_edge": 9000}}, (1000, 9000)),
        ({"min_pixels": 1000, "size": {"shortest_edge": 2000, "longest_edge": 9000}}, (1000, 9000)),
        ({}, (128 * 28 * 28, 768 * 28 * 28)),  # of transformers' class
        (None, (family.LIMITS["min_pixels"], family.LIMITS["max_pixels"])),  # no such file: that of images
    ],
)
@pytest.mark.parametrize("joint", [False, True])
def test_limits_of_frames_are_those_of_the_video_processor(tmp_path, stated, limits, joint):
    directory = family.checkpoint(tmp_path)
    images = json.loads((directory / "preprocessor_config.json").read_text())
    pixels = {key: images[key] for key in ("image_mean", "image_std", "patch_size")}
    if stated is not None:
        name, content = ("processor_config.json", {"video_processor": pixels | stated}) if joint else (None, pixels | stated)
        (directory / (name or "video_preprocessor_config.json")).write_text(json.dumps(content))
    geometry = read_sizes(directory).geometry
    assert (geometry.video_min_pixels, geometry.video_max_pixels) == limits
    assert (geometry.min_pixels, geometry.max_pixels) == tuple(family.LIMITS.values())


def test_positions_a_second_are_read_and_have_the_default_of_transformers_class(tmp_path):
    assert read_sizes(family.checkpoint(tmp_path / "stated")).geometry.tokens_per_second == 2
    raw = family.config()
    del raw["vision_config"]["tokens_per_second"]
    assert read_sizes(family.checkpoint(tmp_path / "class", raw)).geometry.tokens_per_second == 4


@pytest.mark.parametrize(("key", "value"), [("image_std", [0.5, 0.5, 0.5]), ("patch_size", 14), ("resample", 2)])
def test_a_video_processor_that_computes_other_pixels_is_refused(tmp_path, key, value):
    directory = family.checkpoint(tmp_path)
    pixels = json.loads((directory / "preprocessor_config.json").read_text())
    (directory / "video_preprocessor_config.json").write_text(json.dumps(pixels | {key: value}))
    with pytest.raises(UserError, match=rf"video_preprocessor_config\.json: the video processor has {key}"):
        read_sizes(directory)


def _encoder(directory):
    from mmrlhf_jax.data.encode import make_encoder

    return make_encoder(family.tokenizer(), read_sizes(family.checkpoint(directory)))


# Plans


def test_a_plan_counts_the_pairs_of_blocks_in_each_patch_of_time(tmp_path):
    """Of its own data and of assumed ones; the step counts the same (`batch_work`)."""
    directory = family.checkpoint(tmp_path / "model")
    data = with_video(ranked.write(tmp_path / "data", [(1, 2), (1, 2)], [[(50, 30), (20, 20)], [(36, 30)] * 5]))
    experiment = config.Experiment(
        model=config.Model(path=str(directory), dtype="float32", remat="none"),
        data=config.Data(path=str(data), video_frames=5, frames_per_second=2.0),
        objective=config.Supervised(),
        batch=config.Batch(rows=1, slots=1024, logprob_chunk=64),
        run=config.Run(directory=str(tmp_path / "run"), steps=1),
    )
    found = measured_workload(experiment, read_sizes(directory))
    (of_video,), of_images = TINY.plans([], every_frame(5, (30, 36), 2.0)), TINY.plans([(30, 50), (20, 20)])
    blocks = [plan.tiles for plan in of_images]
    assert found.rows == 1 and found.used["tiles"] == of_video.tiles + sum(blocks)
    assert found.seen_tiles == 3 * (of_video.tiles // 3) ** 2 + sum(count**2 for count in blocks)
    assert TINY.pairs_of_tiles([of_video]) == of_video.tiles**2 // 3

    row = empty_row(Budget(slots=256, tiles=of_video.tiles + 5, visual=200, targets=4, responses=2, pairs=1), TINY)
    slots = np.arange(of_video.tokens)
    TINY.place(
        row.media, TINY.of_group(TINY.cut_frames(noise([(30, 36)] * 5)), [of_video], slots, 99), slot=0, tile=0, visual=0
    )
    assert batch_work(jax.tree.map(lambda x: jnp.asarray(x)[None], row), 1).seen == of_video.tiles**2 // 3


# The whole way


def test_positions_of_a_short_clip_are_transformers():
    """Where times end before rows and columns do, transformers 5.24 is right: a fraction is rounded down there as well."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    with torch.device("meta"):
        raw = {key: value for key, value in family.config().items() if key in ("vision_config", "text_config")}
        model = Qwen2_5_VLModel(Qwen2_5_VLConfig(**raw))
    for frames, rows, columns, seconds in ((4, 5, 3, 2 / 3), (1, 2, 2, 9.0), (7, 3, 6, 0.4), (2, 2, 2, 0.5)):
        types = np.repeat([0, 2, 0], [3, frames * rows * columns, 2])[None]
        grid = torch.tensor([[frames, 2 * rows, 2 * columns]])
        given = dict(video_grid_thw=grid, second_per_grid_ts=[seconds])
        found, _ = model.get_rope_index(torch.zeros(types.shape).long(), torch.tensor(types).int(), **given)
        np.testing.assert_array_equal(three_axes([3, Clip(frames, rows, columns, 2 * seconds), 2]), found[:, 0].T)


def test_a_conversation_is_the_chat_template_with_a_video_in_it(tmp_path):
    encoder = _encoder(tmp_path)
    record = RankedRecord("a", "What happens?", (Response("Rain.", 1),), video="clip")
    (plan,) = plans = encoder.plans(record, Layout((), SECOND))
    found = encoder.tokens(encoder.open_pieces(record, None, 1), plans)
    content = [{"type": "video"}, {"type": "text", "text": "What happens?"}]
    tokenizer = family.tokenizer()
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    assert text.count("<|video_pad|>") == 1
    expected = tokenizer(text.replace("<|video_pad|>", "<|video_pad|>" * plan.tokens))["input_ids"]
    np.testing.assert_array_equal(np.where(found.is_visual, family.VIDEO_TOKEN, found.tokens), expected)


def test_limits_of_frames_come_back_from_an_export(tmp_path):
    directory = family.checkpoint(tmp_path / "model")
    pixels = json.loads((directory / "preprocessor_config.json").read_text())
    (directory / "video_preprocessor_config.json").write_text(json.dumps(pixels | {"min_pixels": 1000, "max_pixels": 9000}))
    model = read_sizes(directory)
    for name, content in registry.family("qwen2_5_vl").processors(model).items():
        (directory / name).write_text(json.dumps(content))
    assert read_sizes(directory) == model and model.geometry.video_max_pixels == 9000
    written = json.loads((directory / "video_preprocessor_config.json").read_text())
    assert written["video_processor_type"] == "Qwen2VLVideoProcessor" and written["size"]["longest_edge"] == 9000


def test_a_group_with_a_long_video_is_brought_into_a_row(tmp_path):
    """Its frames are made smaller or fewer, no further than needed, and what is delivered has the sizes that were planned."""
    data = with_video(ranked.write(tmp_path / "data", [(1, 2), (1, 2)], [[(20, 20)], [(120, 90)] * 9]))
    examples, encoder = open_examples(str(data), video_frames=9, frames_per_second=2.0), _encoder(tmp_path / "model")
    index = build_index(examples, encoder)
    whole, geometry, video = int(index.sizes[1][1]), encoder.geometry, examples.layout(1).video
    taken = []
    for most in (whole - 1, 5 * LEAST_BLOCKS, 3 * LEAST_BLOCKS, LEAST_BLOCKS):
        budget = Budget(slots=4096, tiles=most, visual=4096, targets=4096, responses=9, pairs=9)
        smaller = within_budget(index, examples, encoder, budget, ["smaller_media"])
        rows = Rows(examples, encoder, smaller, budget, seed=0)
        size = group_size(rows._encoded(1))
        np.testing.assert_array_equal(size, smaller.sizes[1])
        limit, larger = int(smaller.limits[1][0]), geometry.smaller_media([], video)
        larger = larger[: larger.index(limit)]
        assert size[1] <= most and all(geometry.plans([], video, each)[0].tiles > most for each in larger)
        taken.append(len(geometry.frame_numbers(video, limit)))
    assert taken == [9, 9, 8, 2]  # at a limit of 67 blocks, 4 patches of time of up to 16, which become 3 x 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cap_pixels_per_frame": True}, "the video processor has cap_pixels_per_frame, which is not supported"),
        (
            {"size": {"height": 56, "width": 56}},
            "the video processor: size has height; an area is limited by",
        ),
        ({"size": {"min_pixels": 3136, "max_pixels": 5000}}, "the video processor: size has max_pixels; an area is limited by"),
        ({"patch_size": 9}, "the video processor has patch_size 9"),
    ],
)
@pytest.mark.parametrize("with_images", [True, False])
def test_settings_that_would_change_pixels_in_another_way_are_refused(tmp_path, settings, message, with_images):
    """Also where the video processor has the only file."""
    directory = family.checkpoint(tmp_path)
    images = json.loads((directory / "preprocessor_config.json").read_text())
    if not with_images:
        (directory / "preprocessor_config.json").unlink()
        images |= {"image_mean": None, "image_std": None}
    (directory / "video_preprocessor_config.json").write_text(json.dumps(images | settings))
    with pytest.raises(UserError, match=rf"video_preprocessor_config\.json: {message}") as raised:
        read_sizes(directory)
    assert "\n" not in str(raised.value)
