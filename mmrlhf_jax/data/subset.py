"""A subset of a data set, as a data set."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from mmrlhf_jax.data.examples import Example, Layout


class Subset:
    """The examples with the given indices, in the order of the indices."""

    def __init__(self, examples, numbers: Sequence[int]):
        self.examples, self.numbers = examples, list(numbers)
        self.records = [examples.records[i] for i in self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Example:
        return self.examples[self.numbers[index]]

    def layout(self, index: int) -> Layout:
        return self.examples.layout(self.numbers[index])

    def media_content(self, index: int) -> str | None:
        return self.examples.media_content(self.numbers[index])

    def where(self, index: int) -> str:
        return self.examples.where(self.numbers[index])

    @property
    def weights(self) -> np.ndarray | None:
        return None if self.examples.weights is None else self.examples.weights[self.numbers]

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.examples.fingerprint} {self.numbers}".encode()).hexdigest()
