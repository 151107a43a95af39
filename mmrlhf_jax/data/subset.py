"""A slice of a data set, as a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mmrlhf_jax.data.examples import Example


class Subset:
    """The examples with the given numbers, in their order."""

    def __init__(self, examples, numbers: Sequence[int]):
        self.examples, self.numbers = examples, list(numbers)
        self.records = [examples.records[i] for i in self.numbers]
        self.fingerprint = hashlib.sha256(f"{examples.fingerprint} {self.numbers}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Example:
        return self.examples[self.numbers[index]]
