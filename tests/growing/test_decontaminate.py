"""Prompts of benchmarks are found again, also when they were saved otherwise or worded a little differently."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

pytest.importorskip("imagehash")
pytest.importorskip("datasketch")

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.growing.decontaminate import HeldOut, kept, print_of
from mmrlhf_jax.records import RankedRecord

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
    ("question", "picture"),
    [
        (QUESTION, saved(scene(0))),
        (QUESTION.upper().replace(",", " -"), saved(scene(0), "BMP")),  # the same words, another file of the same pixels
        (QUESTION, saved(scene(0), "JPEG", quality=70)),
        (QUESTION, saved(scene(0).resize((200, 150)))),
        (QUESTION.replace("going", "walking"), saved(scene(0), "JPEG", quality=85)),
    ],
    ids=["same", "same pixels and words", "compressed", "smaller", "one word and compressed"],
)
def test_a_benchmarks_prompt_is_found(held_out, question, picture):
    assert held_out.find(print_of(example(question, picture))) == "mm, record 'p' (0)"


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
    assert held_out.find(print_of(example(same))) == "text, record 'p' (0)"


def test_what_is_left_out_is_counted_by_benchmark(held_out):
    examples = [example(QUESTION, saved(scene(seed))) for seed in (0, 50, 51)]
    indices, dropped = kept(examples, held_out)
    assert indices == [1, 2] and dropped == {"mm": 1}
