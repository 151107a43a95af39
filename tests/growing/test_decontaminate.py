"""Prompts of benchmarks are found again, also when they were saved otherwise or worded a little differently."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

pytest.importorskip("imagehash")
pytest.importorskip("datasketch")

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.growing.decontaminate import HeldOut, Same, compared, print_of
from mmrlhf_jax.records import RankedRecord
from tests.evaluation import rows

QUESTION = "What is the man in the red coat holding in his left hand, and where is he going with it?"


def scene(seed: int, size=(320, 240)) -> Image.Image:
    """A smooth picture with structure at several scales."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return image.filter(ImageFilter.GaussianBlur(2))


def saved(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def example(question: str, *images: bytes, name: str = "p") -> Example:
    return Example(RankedRecord(name, question, (), tuple(f"{i}.png" for i in range(len(images)))), images)


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    found = HeldOut()
    found.add("mm", [example(f"{QUESTION} ({seed})" if seed else QUESTION, saved(scene(seed))) for seed in range(20)])
    found.add("text", [example("Name three rivers of the south of France and the seas that they end in.")])
    return found


@pytest.mark.parametrize(
    ("question", "picture", "exact"),
    [
        (QUESTION, saved(scene(0)), True),
        (QUESTION.upper().replace(",", " -"), saved(scene(0), "BMP"), True),  # the same words, another file of the same pixels
        (QUESTION, saved(scene(0), "JPEG", quality=70), False),
        (QUESTION, saved(scene(0).resize((200, 150))), False),
        (QUESTION.replace("going", "walking"), saved(scene(0), "JPEG", quality=85), False),
    ],
    ids=["same", "same pixels and words", "compressed", "smaller", "one word and compressed"],
)
def test_a_benchmarks_prompt_is_found(held_out, question, picture, exact):
    assert held_out.find(print_of(example(question, picture))) == Same("mm", "p", exact)


@pytest.mark.parametrize(
    ("question", "pictures"),
    [
        (QUESTION, [saved(scene(99))]),
        ("How many windows does the house on the hill have?", [saved(scene(0))]),
        (QUESTION, []),
        (QUESTION.replace("the man in the red coat", "a woman").replace("left hand", "bag"), [saved(scene(0))]),
        ("Name three rivers.", []),
    ],
    ids=["another picture", "another question", "no picture", "half of the words", "a part of the words"],
)
def test_another_prompt_is_kept(held_out, question, pictures):
    assert held_out.find(print_of(example(question, *pictures))) is None


def test_without_pictures_the_words_decide(held_out):
    same = "Name three rivers of the south of France, and the seas that they end in!"
    assert held_out.find(print_of(example(same))) == Same("text", "p", True)


CHINESE = "图中这个穿着红色外套的男人左手里拿着什么东西，他正要带着它到哪里去呢？"


def one_colour(level: int, size=(60, 40), form: str = "PNG") -> bytes:
    return saved(Image.new("RGB", size, (level, level, level)), form)


@pytest.mark.parametrize(
    ("question", "picture", "found"),
    [
        (CHINESE.replace("红", "蓝"), one_colour(255), True),  # one character of thirty-four
        (CHINESE[:17], one_colour(255), False),
        (CHINESE, one_colour(250, (120, 80), "JPEG"), True),  # of another size
        (CHINESE, one_colour(0), False),  # blank too, but black
        (CHINESE, saved(scene(1)), False),
    ],
)
def test_scripts_without_spaces_and_pictures_of_one_colour(question, picture, found):
    held_out = HeldOut()
    held_out.add("zh", [example(CHINESE, one_colour(255))])
    assert (held_out.find(print_of(example(question, picture))) is not None) == found


def test_prompts_of_signs_alone_are_told_apart():
    held_out = HeldOut()
    held_out.add("signs", [example("😀?")])
    assert held_out.find(print_of(example(" 😀? "))).exact and held_out.find(print_of(example("🚗?"))) is None


BENCHMARKS = {
    "mm_rlhf": ([row for row in rows.mm_rlhf() if "image" in row][:12], "image"),
    "vl": (rows.vl()[:12], "image_path"),
    "vl_as_pairs": (rows.vl_as_pairs()[:12], "image"),
    "multimodal": (rows.multimodal()[:12], "Image"),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_prompts_of_the_known_benchmarks_are_found_in_their_own_forms(tmp_path, name):
    published, field = BENCHMARKS[name]
    for row in published:
        picture = tmp_path / row[field]
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(saved(scene(sum(map(ord, row[field])))))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in published))
    examples = open_examples(tmp_path / "rows.jsonl", prompts=True)
    assert {record.images for record in examples.records} == {(row[field],) for row in published}
    found = HeldOut()
    found.add(name, examples)
    for row in published:
        content = (tmp_path / row[field]).read_bytes()
        asked = next(row[key] for key in ("prompt", "query", "Text") if key in row)
        assert found.find(print_of(example(asked, content))).exact
        assert found.find(print_of(example("Who painted the wall behind the left tree?", content))) is None


class Examples(list):
    @property
    def records(self):
        return [each.record for each in self]


def test_prompts_are_compared_one_by_one(held_out):
    examples = Examples(example(QUESTION, saved(scene(seed)), name=str(seed)) for seed in (0, 50, 51))
    found = dict(compared(examples, [0, 2], held_out))
    assert found == {0: {"id": "0", "same_as": {"benchmark": "mm", "record": "p", "exact": True}}, 2: {"id": "51"}}


def test_a_prompt_with_a_broken_picture_is_left_to_the_policy(held_out):
    examples = Examples([example(QUESTION, b"no picture", name="broken"), example(QUESTION, saved(scene(0)), name="same")])
    found = dict(compared(examples, [0, 1], held_out))
    assert found[0] == {"id": "broken"} and found[1]["same_as"]["exact"]


def test_of_many_questions_with_four_fifths_of_the_words_in_common_almost_none_is_missed():
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(4000)]
    asked = [list(rng.choice(words, 40, replace=False)) for _ in range(150)]
    found = HeldOut()
    found.add("text", [example(" ".join(question)) for question in asked])
    near = [[*question[:-3], "x", "y", "z"] for question in asked]  # 36 of 42 pairs of words in common: 0.86
    assert sum(found.find(print_of(example(" ".join(question)))) is not None for question in near) >= 149
    far = [question[:30] + [f"x{number}" for number in range(10)] for question in asked]  # 29 of 49: 0.59
    assert not any(found.find(print_of(example(" ".join(question)))) for question in far)
