"""Prompts that are also in a benchmark must not be grown: exact copies, and near ones.

A prompt is the same as a benchmark's if its pictures have the same pixels and its question the same words. It is near if the
pictures look alike (perceptual hashes at most NEAR_BITS of 64 apart) and the questions have mostly the same words (MinHash
similarity at least NEAR_TEXT). Of prompts without pictures the questions alone decide.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.places import PromptText

NEAR_BITS, NEAR_TEXT = 4, 0.8
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


class HeldOut:
    """The prompts of benchmarks. `find` says which of them a prompt is, exactly or nearly."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._exact: dict[str, str] = {}
        self._prints: dict[str, Print] = {}
        self._by_words = MinHashLSH(threshold=NEAR_TEXT, num_perm=PERMUTATIONS)

    def __len__(self) -> int:
        return len(self._prints)

    def add(self, name: str, examples: Iterable[Example]) -> None:
        """Add the prompts of a benchmark, by its name."""
        for number, example in enumerate(examples):
            found, key = print_of(example), f"{name}, record {example.record.id!r} ({number})"
            self._exact.setdefault(found.exact, key)
            self._prints[key] = found
            self._by_words.insert(key, _minhash(found.words))

    def find(self, prompt: Print) -> str | None:
        """The record of a benchmark that this prompt is, or is near to; None if there is none."""
        if prompt.exact in self._exact:
            return self._exact[prompt.exact]
        candidates = sorted(self._by_words.query(_minhash(prompt.words)))
        return next((key for key in candidates if _is_near(prompt, self._prints[key])), None)


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


def kept(examples, held_out: HeldOut) -> tuple[list[int], collections.Counter[str]]:
    """(indices of the examples that no benchmark has, counts of the others by the benchmark's name)."""
    found, dropped = [], collections.Counter()
    for index in range(len(examples)):
        same = held_out.find(print_of(examples[index]))
        if same is None:
            found.append(index)
        else:
            dropped[same.partition(",")[0]] += 1
    return found, dropped
