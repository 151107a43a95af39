"""`JAX_NUM_CPU_DEVICES=4 python -m tests.training.mesh_rounding DIR`: what rounding makes of implicit margins, and of draws.

The margins of a tiny model with random weights before its first update, whose reference log-probs are of single rows on one
device, so that nothing but rounding makes them differ from 0. For each dtype, length of responses and mesh: by how much they
differ from those of one device, and in how many of 100 draws of mode beta_dpo, `filtered: 0.2`, other pairs are drawn.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.huggingface.load import load_model
from mmrlhf_jax.inference.forward import forward
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.objectives import beta_dpo
from mmrlhf_jax.objectives.pair_draws import pair_noise
from mmrlhf_jax.sharding.feed import place
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from tests import ranked
from tests.training import groups

ONE = {"data": 1, "fsdp": 1}
MESHES = [{"fsdp": 4}, {"fsdp": 2, "context": 2}, {"tensor": 2, "context": 2}, {"tensor": 4}]
WORDS = (4, 40, 300)
KEYS = 100


def main(directory: Path) -> None:
    checkpoint, examples = groups.checkpoint(directory / "model"), groups.examples(directory / "data")
    for words in WORDS:
        batch = groups.packed(groups.load(checkpoint, 1)[1], [longer(example, words) for example in examples], "answer", rows=4)
        used = batch.pair_weights != 0
        tokens = np.mean([np.bincount(row, minlength=9)[:2].mean() for row in batch.responses[:3]])
        for dtype in ("float32", "bfloat16"):
            rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(len(batch.tokens))]
            references = np.concatenate([logps(checkpoint, ONE, dtype, row) for row in rows])
            one = margins(logps(checkpoint, ONE, dtype, batch) - references, batch)
            for axes in MESHES:
                there = margins(logps(checkpoint, axes, dtype, batch) - references, batch)
                others = np.mean([(a != b).any() for a, b in zip(draws(one, batch), draws(there, batch), strict=True)])
                print(
                    f"{dtype}, {tokens:.0f} tokens a response, {axes}: margins differ by up to"
                    f" {np.abs(there - one)[used].max():.1e} nat, {others:.0%} of the draws are others",
                    flush=True,
                )


def longer(example, words: int):
    """The example with responses of so many words."""
    rng, record = np.random.default_rng(3), example.record
    texts = [dataclasses.replace(response, text=ranked.sentence(rng, words)) for response in record.responses]
    return dataclasses.replace(example, record=record.replace_responses(texts))


def logps(checkpoint: Path, axes: dict[str, int], dtype: str, batch: RowBatch) -> np.ndarray:
    """The summed log-probs of the responses, float64[B, R], on a mesh of these axes."""
    mesh = make_mesh(axes, jax.devices()[: math.prod(axes.values())])
    with use_mesh(mesh), matmul_precision(dtype):
        model = load_model(checkpoint, mesh=mesh, remat="none", dtype=dtype)
        return np.asarray(jax.jit(lambda rows: forward(model, rows, chunk=16).logps)(place(batch, mesh)), np.float64)


def margins(ratios: np.ndarray, batch: RowBatch) -> np.ndarray:
    """The implicit margins, float64[B, P], of log-ratios float64[B, R]."""
    chosen, rejected = (np.take_along_axis(ratios, batch.pairs[..., side], axis=1) for side in (0, 1))
    return chosen - rejected


def draws(found: np.ndarray, batch: RowBatch) -> list[np.ndarray]:
    """The pairs that each key draws in the first step, bool[B, P]."""
    weights, found = batch.pair_weights, jnp.float32(found)
    mean, std = beta_dpo.running_statistics(jnp.float32(0), jnp.float32(0), found, weights, 0.9)
    noises = [pair_noise(jax.random.key(number), batch.response_ids, batch.pairs) for number in range(KEYS)]
    return [np.asarray(beta_dpo.drawn_pairs(noise, found, weights, mean, std, 0.2)) for noise in noises]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
