"""Prompts that are also in a benchmark must not be grown: exact copies, and near ones.

A prompt is the same as a benchmark's if its pictures have the same pixels and its question the same words. It is near if the
pictures look alike (perceptual hashes at most NEAR_BITS of 64 apart; if they have one colour each, nearly the same one) and the
questions have mostly the same words (MinHash similarity at least NEAR_TEXT). Of prompts without pictures the questions alone
decide.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.places import PromptText
from mmrlhf_jax.progress import Progress

NEAR_BITS, NEAR_TEXT = 4, 0.8
LIKELY_TEXT = 0.65  # similarity from which the index of MinHashes proposes texts, so that it misses almost none of NEAR_TEXT
PERMUTATIONS = 128
FLAT, NEAR_COLOUR = 2.0, 16  # levels of 256: the deviation up to which a picture has one colour; equal colours' difference
# Thai, Lao, Burmese, Khmer, kana and Chinese characters: no spaces stand between words, so that each is one.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


class Picture(NamedTuple):
    """What a picture is recognised by: a perceptual hash of 64 bits, which says nothing where there is only one `colour`."""

    hash: int
    colour: tuple[int, ...] | None

    def looks_like(self, other: Picture) -> bool:
        if self.colour is None or other.colour is None:
            return self.colour == other.colour and (self.hash ^ other.hash).bit_count() <= NEAR_BITS
        return all(abs(one - two) <= NEAR_COLOUR for one, two in zip(self.colour, other.colour, strict=True))


@dataclasses.dataclass(frozen=True)
class Print:
    """What a prompt is recognised by."""

    exact: str  # digest of pixels and words
    pictures: tuple[Picture, ...]
    words: frozenset[str]  # pairs of neighbouring words


def print_of(example: Example) -> Print:
    """The print of an example's prompt. UserError for a picture that cannot be read."""
    where = f"record {example.record.id!r}"
    images = [decode_image(data, where) for data in (*example.images, *example.frames)]
    words = normalised(example.record.prompt_text())
    digest = hashlib.sha256(" ".join(words).encode())
    for image in images:
        digest.update(f"{image.size}".encode() + image.tobytes())
    return Print(digest.hexdigest(), tuple(map(_picture, images)), frozenset(_runs(words)))


def normalised(prompt: PromptText) -> list[str]:
    """The words of a prompt, without case, punctuation, accents' different spellings, and the places of media; where there are
    only signs, these."""
    text = prompt if isinstance(prompt, str) else " ".join(prompt)
    text = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(text) or text.split()


def _runs(words: Sequence[str], size: int = 2) -> list[str]:
    return [" ".join(words[start : start + size]) for start in range(max(1, len(words) - size + 1))]


def _picture(image) -> Picture:
    import imagehash

    pixels = np.asarray(image.convert("RGB").resize((32, 32))).reshape(-1, 3)
    colour = tuple(map(int, pixels.mean(0))) if pixels.std(0).max() <= FLAT else None
    return Picture(int(np.packbits(imagehash.phash(image).hash).view(">u8")[0]), colour)


class Same(NamedTuple):
    """The record of a benchmark that a prompt is (`exact`), or is near to."""

    benchmark: str
    record: str
    exact: bool


def check_installed() -> None:
    """UserError if a library is missing by which near copies are found."""
    try:
        import datasketch  # noqa: F401
        import imagehash  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f'--held-out-of: {error.name} is not installed; pip install "mmrlhf-jax[grow]"') from None


class HeldOut:
    """The prompts of benchmarks. `find` says which of them a prompt is, exactly or nearly."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._exact: dict[str, int] = {}
        self._prompts: list[tuple[str, str, Print]] = []
        self._by_words = MinHashLSH(threshold=LIKELY_TEXT, num_perm=PERMUTATIONS)

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, benchmark: str, examples) -> None:
        """Add the prompts of a benchmark, by its name."""
        progress = Progress(f"prompts of {benchmark}", len(examples))
        for index in range(len(examples)):
            example = examples[index]
            found, number = print_of(example), len(self._prompts)
            self._exact.setdefault(found.exact, number)
            self._prompts.append((benchmark, example.record.id, found))
            self._by_words.insert(number, _minhash(found.words))
            progress.update()

    def find(self, prompt: Print) -> Same | None:
        """The record of a benchmark that this prompt is, or is near to; None if there is none."""
        if (number := self._exact.get(prompt.exact)) is not None:
            return Same(*self._prompts[number][:2], True)
        for number in sorted(self._by_words.query(_minhash(prompt.words))):
            benchmark, record, other = self._prompts[number]
            if _is_near(prompt, other):
                return Same(benchmark, record, False)
        return None


def _is_near(first: Print, second: Print) -> bool:
    """Whether the words are mostly the same, and every picture of one looks like one of the other."""
    shared = len(first.words & second.words) / max(1, len(first.words | second.words))
    if shared < NEAR_TEXT or bool(first.pictures) != bool(second.pictures):
        return False
    few, many = sorted((first.pictures, second.pictures), key=len)
    return all(any(one.looks_like(other) for other in many) for one in few)


def _minhash(words: Iterable[str]):
    from datasketch import MinHash

    found = MinHash(num_perm=PERMUTATIONS)
    found.update_batch([word.encode() for word in words])
    return found


def compared(examples, indices: Sequence[int], held_out: HeldOut) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index, line): the benchmark's record that an example's prompt is, or is near to, if there is one. An example whose
    media cannot be read stays: the policy refuses it with the reason."""
    progress = Progress("comparing prompts with benchmarks", len(indices))
    for index in indices:
        try:
            same = held_out.find(print_of(examples[index]))
        except UserError:
            same = None
        line: dict[str, Any] = {"id": examples.records[index].id}
        yield index, line if same is None else line | {"same_as": same._asdict()}
        progress.update()
