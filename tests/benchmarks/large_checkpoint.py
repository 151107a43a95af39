"""Memory and exactness at real size: a checkpoint of LLaVA-OneVision 7B's shapes is written, loaded and exported.

    python -m tests.benchmarks.large_checkpoint OUT --tokenizer DIR [--layers 28]

Names and shapes are those of transformers' own model (built on no device), values are random bfloat16, in shards of 5 GB. It
is then loaded into arrays of its dtype and exported by `mmrlhf export`, each in a process of its own whose peak memory the
kernel reports, and every exported tensor is compared with its source byte by byte. OUT needs twice 16 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import safe_open

from mmrlhf_jax.huggingface.tensors import TensorPlan, write_tensors
from mmrlhf_jax.models.llava_onevision.published import published_settings

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHARD_BYTES = 5 * 10**9
LOAD = """
import sys, jax, jax.numpy as jnp
from mmrlhf_jax.huggingface.load import load_model
from mmrlhf_jax.sharding.mesh import make_mesh
from flax import nnx
model = load_model(sys.argv[1], mesh=make_mesh({}, jax.devices()[:1]), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
leaves = jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
print(sum(leaf.nbytes for leaf in leaves))
"""


def config(layers: int) -> dict:
    """`config.json` of LLaVA-OneVision 7B with this many language layers."""
    settings = published_settings("7b")
    return settings | {
        "model_type": "llava_onevision",
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "vision_config": settings["vision_config"] | {"vision_use_head": False},
        "text_config": settings["text_config"] | {"num_hidden_layers": layers},
        "image_token_index": 151646,
        "video_token_index": 151647,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def shapes(settings: dict) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of transformers' model."""
    import torch
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig.from_dict(settings))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def values(name: str, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    """Random bfloat16 of every sign and fraction, around 0.01; the same for the same name."""

    def draw() -> np.ndarray:
        rng = np.random.default_rng(list(name.encode()))
        bits = rng.integers(0, 2**16, shape, np.uint16)
        return ((bits & 0x80FF) | 0x3C00).view(BFLOAT16)

    return draw


def write(out: Path, tokenizer: Path, layers: int) -> int:
    """The checkpoint; bytes of its tensors."""
    out.mkdir(parents=True)
    settings = config(layers)
    (out / "config.json").write_text(json.dumps(settings))
    for file in tokenizer.iterdir():
        shutil.copy(file, out)
    plans = [TensorPlan(name, shape, BFLOAT16, values(name, shape)) for name, shape in shapes(settings).items()]
    write_tensors(out, plans, SHARD_BYTES)
    return sum(plan.nbytes for plan in plans)


def measured(title: str, command: list[str]) -> None:
    """Run a command; print its time and the peak of resident memory among the processes run so far."""
    started = time.monotonic()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"{title}: {time.monotonic() - started:.0f} s, peak resident memory so far {peak / 2**20:.2f} GiB", flush=True)


def names(path: Path) -> list[str]:
    with safe_open(path, framework="np") as file:
        return list(file.keys())


def tensors(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    for path in sorted(directory.glob("*.safetensors")):
        for name in names(path):
            with safe_open(path, framework="np") as file:
                yield name, file.get_tensor(name)


def compare(source: Path, exported: Path) -> int:
    """How many tensors are equal, byte by byte. Raises SystemExit for one that is not, or is missing or surplus."""
    where = {name: path for path in exported.glob("*.safetensors") for name in names(path)}
    count = 0
    for name, tensor in tensors(source):
        if name not in where:
            raise SystemExit(f"the export lacks {name}")
        with safe_open(where.pop(name), framework="np") as file:
            other = file.get_tensor(name)
        if other.shape != tensor.shape or other.tobytes() != tensor.tobytes():
            raise SystemExit(f"{name}: differs in the export")
        count += 1
    if where:
        raise SystemExit(f"surplus in the export: {sorted(where)[:3]}")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=28)
    arguments = parser.parse_args()
    source, exported = arguments.out / "source", arguments.out / "exported"
    print(f"{write(source, arguments.tokenizer, arguments.layers) / 1e9:.2f} GB of tensors written", flush=True)
    export = "from mmrlhf_jax.cli import main; main()"
    measured("export", ["-c", export, "export", str(source), str(exported)])
    measured("load", ["-c", LOAD, str(source)])
    print(f"{compare(source, exported)} exported tensors are equal to their source, byte by byte")


if __name__ == "__main__":
    main()
