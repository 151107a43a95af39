"""The parts of the benchmark, in the order of their worth: where time runs out, the last ones are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# Of jax on a card: the share of its memory that jax takes, as in the launch files.
CARD = {"XLA_CLIENT_MEM_FRACTION": "0.92"}
ON_THE_HOST = {"JAX_PLATFORMS": "cpu"}
UNCACHED = {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # a program from jax's cache has no text
DETERMINISTIC = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part runs `measure(small, report, **options)` of the module tests.benchmarks.gpu.MODULE in a process of its own.

    Those of the host plan for the card of the first part, whose kind is an option more.
    """

    name: str
    module: str
    seconds: float  # its time limit
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=lambda: CARD)


class Skipped(Exception):
    """Raised by a part that cannot run here; its message is the reason."""


def _step(name: str, seconds: float, size: str, layout: str) -> Part:
    return Part(name, "step", seconds, {"size": size, "layout": layout})


CARD_PART = Part("card", "card", 60)  # always the first: it tells whether there is a card
PARTS = (
    CARD_PART,
    Part("attention", "attention", 90),
    _step("step 0.5b", 80, "0.5b", "group"),
    _step("step 7b lora", 110, "7b", "group"),
    _step("pairs 0.5b", 80, "0.5b", "pair"),
    Part("torch 0.5b", "torch_step", 60, environment=ON_THE_HOST),
    Part("determinism", "determinism", 60, {"size": "0.5b"}),
    Part("decode 7b", "decode", 60, {"size": "7b"}),
    Part("determinism with flags", "determinism", 60, {"size": "0.5b"}, CARD | DETERMINISTIC),
    _step("pairs 7b lora", 90, "7b", "pair"),
    Part("plan 7b lora", "plan", 90, {"size": "7b"}, ON_THE_HOST | UNCACHED),
    Part("plan 0.5b", "plan", 90, {"size": "0.5b"}, ON_THE_HOST | UNCACHED),
)
