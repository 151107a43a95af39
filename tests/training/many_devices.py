"""`python -m tests.training.many_devices DIR CASE ...`: the group step on every device here against the oracle on one.

A process of its own, because the number of virtual CPU devices is settled when jax starts (`test_devices.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax

from mmrlhf_jax.tasks import task_of
from tests.training import groups
from tests.training.groups import LORA, OBJECTIVES, assert_same_step, packed, pair_expanded

# objective, LoRA, accumulation
CASES = [("mm-dpo", LORA, 4), ("reward model", None, 1), ("mm-dpo", None, 1), ("reward model", LORA, 4), ("beta-dpo", None, 1)]


def main(directory: Path, numbers: list[int]) -> None:
    checkpoint, examples = groups.checkpoint(directory / "model"), groups.examples(directory / "data")
    devices = len(jax.devices())
    for name, lora, accumulation in (CASES[number] for number in numbers):
        objective = OBJECTIVES[name]
        mesh, model = groups.load(checkpoint, 1, lora)
        task = task_of(objective)
        expected = groups.step(mesh, model, objective, pair_expanded(model, examples, task.conversation), lora=lora)
        mesh, model = groups.load(checkpoint, devices, lora)
        rows = packed(model, examples, task.conversation, per_row=1, rows=devices * accumulation)
        assert_same_step(groups.step(mesh, model, objective, rows, accumulation=accumulation, lora=lora), expected)
        print(f"{name}, lora {lora is not None}, accumulation {accumulation}: equal on {devices} devices")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(number) for number in sys.argv[2:]])
