"""Compile attention, or the models' layers, for GPUs that are not here. Run by `test_attention_gpu.py`.

    python tests/models/gpu_compile.py DUMPS attention h100 128 pallas 2048 4096
    python tests/models/gpu_compile.py DUMPS language h100 4x1 auto 8192

print one line of JSON per number of slots: temporaries in bytes per device, the kernels in the program and their FLOPs at most,
its arrays that hold the scores of many queries and keys, and the atomic operations in the kernels' PTX. Instead of "attention",
"float32 attention" is that of arrays in float32 (all else is in bfloat16), "full attention" that of a vision tower, and
"segment attention" that of a tower whose rows have several frames; instead of "language", any part of `layer_programs.py`.

A process of its own, since XLA reads its flags once; they must have it write its dumps to the folder DUMPS.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from functools import partial
from importlib import resources
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}

import jax
import jax.numpy as jnp
from jax.experimental.topologies import get_topology_desc
from jax.sharding import NamedSharding, PartitionSpec

from mmrlhf_jax.models.attention import attention, full_attention, segment_attention
from mmrlhf_jax.models.attention.xla import QUERY_BLOCKS
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from tests.models.layer_programs import KERNELS, PARTS

# query heads and key/value heads
HEADS = {"attention": (28, 4), "float32 attention": (28, 4), "full attention": (16, 16), "segment attention": (16, 16)}
SHAPE = re.compile(r"\b[a-z]\w+\[([\d,]+)\]")
FLOPS = re.compile(r"flops\\22: \\22(\d+)")
ATOMIC = re.compile(r"(?<!\w)(?:atom|red)\.")


def devices_of(target: str, count: int) -> list:
    """Devices of the kind that `planning/targets` describes."""
    text = (resources.files("mmrlhf_jax.planning") / "targets" / f"{target}.txt").read_text()
    return list(get_topology_desc(topology_name=target, platform="cuda", topology=f"1x1x{count}", target_config=text).devices)


def lower_attention(mesh, slots: int, part: str, dim: int, backend: str):
    """Attention of one row and its gradients."""
    whole, dtype = NamedSharding(mesh, PartitionSpec()), jnp.float32 if part.startswith("float32") else jnp.bfloat16
    queries, keys = (jax.ShapeDtypeStruct((1, slots, heads, dim), dtype, sharding=whole) for heads in HEADS[part])
    until = jax.ShapeDtypeStruct((1, slots), jnp.int32, sharding=whole)

    def run(q, k, v, until, cotangent):
        ways = {"full attention": full_attention, "segment attention": partial(segment_attention, until=until)}
        way = ways.get(part, partial(attention, visible_until=until))
        out, pull = jax.vjp(partial(way, backend=backend), q, k, v)
        return out, pull(cotangent)

    return jax.jit(run).lower(queries, keys, keys, until, queries)


def score_arrays(text: str, slots: int) -> list[str]:
    """Arrays of the program with two dimensions that are long for a row, or one that is as long as all pairs of its slots."""
    long = min(slots // 4, 512)
    return sorted(name for name, sizes in shapes(text) if sum(s >= long for s in sizes) > 1 or max(sizes) >= slots**2)


def score_arrays_of_layers(text: str, slots: int) -> list[str]:
    """The same in a program that has the layers' other long arrays: those with the slots of a row twice, or with the slots of a
    row and of a block of queries (as XLA's attention takes them) for several heads."""
    block = QUERY_BLOCKS[1]
    blocks = (name for name, sizes in shapes(text) if {block, slots} <= set(sizes) and math.prod(sizes) > block * slots)
    return sorted({*blocks, *(name for name, sizes in shapes(text) if sizes.count(slots) > 1)})


def shapes(text: str) -> list[tuple[str, list[int]]]:
    """Every shape in the program's text, as it is written there and as numbers."""
    return [(name, [int(size) for size in name.split(",")]) for name in {match[1] for match in SHAPE.finditer(text)}]


def main(folder: str, part: str, target: str, sizes: str, backend: str, *lengths: str) -> None:
    axes = [int(size) for size in sizes.split("x")] if part in PARTS else [1, 1]
    mesh = make_mesh(dict(zip(("fsdp", "tensor"), axes, strict=True)), devices_of(target, axes[0] * axes[1]))
    for slots in map(int, lengths):
        with use_mesh(mesh):
            if part in HEADS:
                lowered = lower_attention(mesh, slots, part, int(sizes), backend)
            else:
                lowered, _ = PARTS[part](mesh, slots, backend)
            made = lowered.compile()
        text, dumps = made.as_text(), Path(folder)
        ptx = [found for found in (file.read_text() for file in dumps.glob("*.ptx")) if ".entry attention_" in found]
        scores = (score_arrays if part in HEADS else score_arrays_of_layers)(text, slots)
        line = {"slots": slots, "temporaries": made.memory_analysis().temp_size_in_bytes, "score_arrays": scores}
        line["kernels"] = sorted({name for name in KERNELS if f'name = "{name}"' in text})
        line["flops"] = sum(map(int, FLOPS.findall(text)))
        line |= {"kernel_programs": len(ptx), "atomics": sum(len(ATOMIC.findall(found)) for found in ptx)}
        for file in dumps.iterdir():
            file.unlink()
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
