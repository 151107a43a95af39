"""Prompts that are also in a benchmark must not be grown: exact copies, and near ones.

A prompt is the same as a benchmark's if its pictures have the same pixels and its question the same words. It is near if the
pictures look alike (perceptual hashes at most NEAR_BITS of 64 apart) and the questions have mostly the same words (MinHash
similarity at least NEAR_TEXT). Of prompts without pictures the questions alone decide.
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
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Print:
    """What a prompt is recognised by."""

    exact: str  # digest of pixels and words
    pictures: tuple[int, ...]  # perceptual hashes, 64 bits each
    words: frozenset[str]  # pairs of neighbouring words


def print_of(example: Example) -> Print:
    """The print of an example's prompt. UserError for a picture that cannot be read."""
    where = f"record {example.record.id!r}"
    images = [decode_image(data, where) for data in (*example.images, *example.frames)]
    words = normalised(example.record.prompt_text())
    digest = hashlib.sha256(" ".join(words).encode())
    for image in images:
        digest.update(f"{image.size}".encode() + image.tobytes())
    return Print(digest.hexdigest(), tuple(map(_perceptual, images)), frozenset(_runs(words)))


def normalised(prompt: PromptText) -> list[str]:
    """The words of a prompt, without case, punctuation, accents' different spellings, and the places of media."""
    text = prompt if isinstance(prompt, str) else " ".join(prompt)
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _runs(words: Sequence[str], size: int = 2) -> list[str]:
    return [" ".join(words[start : start + size]) for start in range(max(1, len(words) - size + 1))]


def _perceptual(image) -> int:
    import imagehash

    return int(np.packbits(imagehash.phash(image).hash).view(">u8")[0])


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
    return all(any((one ^ other).bit_count() <= NEAR_BITS for other in many) for one in few)


def _minhash(words: Iterable[str]):
    from datasketch import MinHash

    found = MinHash(num_perm=PERMUTATIONS)
    found.update_batch([word.encode() for word in words])
    return found


def compared(examples, indices: Sequence[int], held_out: HeldOut) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index, line): the benchmark's record that an example's prompt is, or is near to, if there is one."""
    progress = Progress("comparing prompts with benchmarks", len(indices))
    for index in indices:
        same = held_out.find(print_of(examples[index]))
        line: dict[str, Any] = {"id": examples.records[index].id}
        yield index, line if same is None else line | {"same_as": same._asdict()}
        progress.update()
