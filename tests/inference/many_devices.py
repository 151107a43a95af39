"""`python -m tests.inference.many_devices DIR FAMILY`: groups of devices write what one device writes.

A process of its own, because the number of virtual CPU devices is settled when jax starts (`test_scheduler.py`).
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import jax

from mmrlhf_jax.inference.engine import Engine, Prompt
from mmrlhf_jax.inference.lane import Lane
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.records import Response
from mmrlhf_jax.sharding.mesh import make_mesh
from tests.families import FAMILIES, WITH_VIDEOS
from tests.inference.test_generate import example

MESHES = [{"data": 2}, {"data": 2, "tensor": 2}, {"data": 8}]


def prompts(*, video: bool = True) -> list[Prompt]:
    asked = [example("Why?", []), example("What is it?", [(40, 30)]), example("Both?", [(30, 30), (50, 20)])]
    texts = ["A kite.", "A", "A kite over the sea. " * 6, "", "No."]
    critiques = [Prompt(each, Response(text)) for each in asked for text in texts]
    last = [example("What happens?", 3)] if video else []
    return [Prompt(each) for each in (*asked, *last)] + critiques


LANE = Lane(rows=3, trunk=512, places=4, slots=4, branch=256)


def check_gathers(engine: Engine, mesh: dict[str, int]) -> None:
    """No program gathers weights or keys; over `tensor`, the decoding step gathers its logits, and a tower its activations.

    Without `decode with logprobs`: CPUs find the likeliest tokens of all rows on every device.
    """
    programs = engine.programs(LANE)
    for name in programs.names(tiles=() if "tensor" in mesh else (2,)):
        text = programs.lower(name).compile().as_text()
        found = set(re.findall(r"= (\w+\[[\d,]*\])\S* all-gather\(", text))
        logits = f"f32[{LANE.slots},{engine.config.text.vocab_size}]"
        assert found == ({logits} if name == "decode" and "tensor" in mesh else set()), (name, found)


def main(directory: Path, family: str) -> None:
    tests = FAMILIES[family]
    checkpoint = tests.checkpoint(directory, tests.config(text={"tie_word_embeddings": False}), reward_head=True)
    texts, given = [], prompts(video=family in WITH_VIDEOS)
    for mesh in ({}, *MESHES):
        devices = jax.devices()[: math.prod(mesh.values())]
        engine = Engine.load(str(checkpoint), batch=8, mesh=make_mesh(mesh, devices))
        asked = engine.asked(12, sampling=Sampling(temperature=1.0, seed=3), samples=2)
        sampled = [[text.tokens for text in each] for each in engine.write(given, asked)]
        texts.append((engine.generate_tokens(given, max_new_tokens=12), sampled))
        if mesh:
            check_gathers(engine, mesh)
            print(f"{family}: no program on {mesh} gathers weights")
    for mesh, found in zip(MESHES, texts[1:], strict=True):
        assert found == texts[0], f"{mesh}: other texts than on one device"
        print(f"{family}: the texts on {mesh} are those on one device")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
