"""Attention's kernels for GPUs: interpreted, against NumPy in float64, and what XLA's GPU compiler makes of them.

Nothing runs on a device. The tests of compilation need the CUDA plugin of jax.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.attention import backends, pallas_gpu, tiles_gpu
from mmrlhf_jax.models.attention.pallas_gpu import Blocks, KernelBlocks
from mmrlhf_jax.models.attention.visibility import most_pairs, segment_starts
from tests.cuda_plugin import needs_cuda_plugin
from tests.models.trees import oracle, oracle_gradients, random_tree, visible

KERNELS = ["attention_forward", "attention_keys_gradient", "attention_queries_gradient"]
TARGETS = ["a100_80g", "l40s", "h100", "b200"]
EVERYTHING = np.iinfo(np.int32).max


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that short rows have many, of other sizes for queries than for keys."""
    blocks = KernelBlocks(Blocks(32, 16, 4, 1), Blocks(16, 32, 4, 1), Blocks(32, 16, 4, 1))
    monkeypatch.setattr(pallas_gpu, "_chosen", lambda dim, dtype: blocks)


def example(length: int, heads: int, kv_heads: int, dim: int, dtype=np.float32):
    """Queries, keys, values and a cotangent of two rows."""
    rng = np.random.default_rng(length)
    counts = heads, kv_heads, kv_heads, heads
    return [rng.normal(size=(2, length, count, dim)).astype(np.float32).astype(dtype) for count in counts]


def value_and_gradients(q, k, v, until, cotangent, causal=True, since=None):
    out, pull = jax.vjp(lambda q, k, v: pallas_gpu.attend(causal, True, q, k, v, until, since), q, k, v)
    return out, *pull(cotangent)


def assert_the_oracles(q, k, v, until, cotangent, tolerance: float, causal=True):
    """Values and gradients are within `tolerance` of the largest entry."""
    found = value_and_gradients(q, k, v, until, cotangent, causal)
    assert {x.dtype for x in found} == {q.dtype}
    seen = visible(until, causal)
    for actual, right in zip(found, (oracle(q, k, v, seen), *oracle_gradients(q, k, v, seen, cotangent)), strict=True):
        np.testing.assert_allclose(np.asarray(actual, np.float64), right, rtol=0, atol=tolerance * np.abs(right).max())


def trees(length: int) -> np.ndarray:
    """A row of trees and then padding; and a row that is a trunk with branches of one token each, with padding at its end."""
    single = np.arange(length) + 1
    single[: length // 3] = length - 5
    return np.stack([random_tree(np.random.default_rng(length), length, (3, length), padding=4), single]).astype(np.int32)


SHAPES = [(61, 1, 1, 128), (70, 4, 1, 72), (64, 4, 4, 64), (59, 7, 1, 80), (35, 6, 2, 112)]


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_the_oracles_under_random_trees(small_blocks, shape, dtype, tolerance):
    q, k, v, cotangent = example(*shape, dtype)
    assert_the_oracles(q, k, v, trees(shape[0]), cotangent, tolerance)


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_the_blocks_that_gpus_get_give_the_same(dtype, tolerance):
    q, k, v, cotangent = example(150, 2, 1, 64, dtype)
    assert_the_oracles(q, k, v, trees(150), cotangent, tolerance)


@pytest.mark.long
@pytest.mark.parametrize("shape", [(50, 2, 2, 72), (65, 2, 2, 64)])
def test_full_attention_lets_every_query_see_every_key(small_blocks, shape):
    q, k, v, cotangent = example(*shape)
    assert_the_oracles(q, k, v, np.full((2, shape[0]), EVERYTHING, np.int32), cotangent, 1e-5, causal=False)


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(50, 2, 2, 80), (65, 2, 1, 64)])
def test_in_segments_every_query_sees_the_keys_of_its_own(small_blocks, shape, dtype, tolerance):
    q, k, v, cotangent = example(*shape, dtype)
    lengths = [[1, 40, shape[0] - 42, 1], [20, 3, 17, shape[0] - 40]]
    until = np.stack([np.repeat(np.cumsum(each), each) for each in lengths]).astype(np.int32)
    found = value_and_gradients(q, k, v, until, cotangent, causal=False, since=segment_starts(until))
    same = until[:, :, None] == until[:, None, :]
    for actual, right in zip(found, (oracle(q, k, v, same), *oracle_gradients(q, k, v, same, cotangent)), strict=True):
        np.testing.assert_allclose(np.asarray(actual, np.float64), right, rtol=0, atol=tolerance * np.abs(right).max())


@pytest.mark.long
def test_a_row_of_padding_only_sees_itself_and_stays_finite(small_blocks):
    q, k, v, cotangent = example(37, 2, 1, 16)
    until = np.broadcast_to(np.arange(37, dtype=np.int32) + 1, (2, 37))
    out, *gradients = value_and_gradients(q, k, v, until, cotangent)
    np.testing.assert_allclose(out, np.repeat(v, 2, axis=2), atol=1e-6)
    dq, dk, dv = gradients
    np.testing.assert_allclose(dv, cotangent.sum(axis=2, keepdims=True), atol=1e-5)
    # Softmax over one key is 1 whatever its score is.
    np.testing.assert_allclose(dq, np.zeros_like(q), atol=1e-5)
    np.testing.assert_allclose(dk, np.zeros_like(k), atol=1e-5)


def test_a_head_is_one_or_two_powers_of_two_that_cover_it():
    sizes = {64: [64], 72: [64, 16], 80: [64, 16], 96: [64, 32], 112: [128], 128: [128], 144: [128, 16], 256: [256]}
    assert {dim: [width for _, width in tiles_gpu.pieces(dim)] for dim in sizes} == sizes
    for dim in range(16, 257):
        starts, widths = zip(*tiles_gpu.pieces(dim), strict=True)
        assert list(starts) == [0, widths[0]][: len(widths)] and all(width.bit_count() == 1 for width in widths)
        assert dim <= tiles_gpu.padded(dim) < 1.3 * dim + 16


def test_auto_takes_the_kernels_on_gpus_for_the_heads_that_they_can_hold():
    assert backends.uses_kernel("auto", "gpu", 128) and not backends.uses_kernel("xla", "gpu", 128)
    assert not backends.uses_kernel("auto", "gpu", 8) and not backends.uses_kernel("auto", "cpu", 128)
    with pytest.raises(UserError, match="pallas takes heads of 16 to 256 on GPUs, not 264; take auto or xla"):
        backends.uses_kernel("pallas", "gpu", 264)


@pytest.mark.parametrize("capability", ["7.5", "gfx942"])
def test_gpus_that_the_kernels_do_not_support_get_xla(monkeypatch, capability):
    class Old:
        compute_capability = capability

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Old()])
    assert not backends.uses_kernel("auto", "gpu", 64)
    with pytest.raises(UserError, match=f"needs NVIDIA GPUs of compute capability 8.0 or later, not {capability}"):
        backends.uses_kernel("pallas", "gpu", 64)
    Old.compute_capability = "12.0"
    assert backends.uses_kernel("auto", "gpu", 64)


def compiled(dumps: Path, part: str, target: str, sizes: int | str, backend: str, *lengths: int) -> list[dict]:
    """What `gpu_compile.py` finds for rows of each length. But for float32, Blackwell and XLA's own attention, XLA refuses
    kernels that spill registers."""
    script = Path(__file__).with_name("gpu_compile.py")
    command = [sys.executable, str(script), str(dumps), part, target, str(sizes), backend, *map(str, lengths)]
    flags = f"--xla_dump_to={dumps} --xla_dump_hlo_as_text=true"
    if "float32" not in part and target != "b200" and backend != "xla":
        flags += " --xla_gpu_fail_ptx_compilation_on_register_spilling=true"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": flags}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@needs_cuda_plugin
@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_the_kernels_for_every_generation_have_no_atomics_and_leave_no_scores(tmp_path, target):
    (found,) = compiled(tmp_path, "attention", target, 128, "auto", 2048)
    assert found["kernels"] == KERNELS and found["kernel_programs"] == 3
    assert found["atomics"] == 0 and found["score_arrays"] == []


@needs_cuda_plugin
@pytest.mark.long
def test_memory_is_linear_in_slots_and_the_program_says_how_many_flops_its_kernels_have(tmp_path):
    short, middle, long = compiled(tmp_path, "attention", "h100", 128, "auto", 2048, 4096, 8192)
    assert middle["temporaries"] < 2.1 * short["temporaries"] and long["temporaries"] < 2.1 * middle["temporaries"]
    assert long["temporaries"] < 8192 * 28 * 128  # less than half of the queries
    once, back = backends.kernel_products("gpu", 8192, 7, 128, "bfloat16", causal=True)
    pairs = sum(each.count * most_pairs(8192, each.queries, each.keys, causal=True) for each in (*once, *back))
    assert long["flops"] == 2 * 28 * 128 * pairs and sum(each.count for each in back) == 7


@needs_cuda_plugin
@pytest.mark.long
def test_rows_that_are_shorter_than_a_block_get_the_kernels(tmp_path):
    for found in compiled(tmp_path, "attention", "h100", 64, "auto", 10, 40, 100):
        assert found["kernels"] == KERNELS and found["atomics"] == 0


@needs_cuda_plugin
@pytest.mark.long
@pytest.mark.parametrize(("target", "dim", "slots"), [("a100_80g", 72, 729), ("l40s", 64, 1025), ("h100", 72, 729)])
def test_the_towers_full_attention_gets_the_kernels(tmp_path, target, dim, slots):
    (found,) = compiled(tmp_path, "full attention", target, dim, "auto", slots)
    assert found["kernels"] == KERNELS and found["atomics"] == 0 and found["score_arrays"] == []


@needs_cuda_plugin
@pytest.mark.long
@pytest.mark.parametrize(("target", "dim"), [("a100_80g", 80), ("l40s", 64), ("h100", 80), ("b200", 72)])
def test_the_towers_segments_get_the_kernels(tmp_path, target, dim):
    """Rows of several frames, which may be of any size."""
    (found,) = compiled(tmp_path, "segment attention", target, dim, "auto", 8192)
    assert found["kernels"] == KERNELS and found["atomics"] == 0 and found["score_arrays"] == []


@needs_cuda_plugin
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dim", [16, 64, 72, 80, 96, 112, 128, 192, 256])
def test_every_head_size_compiles_for_every_generation(tmp_path, target, dim):
    (found,) = compiled(tmp_path, "attention", target, dim, "auto", 1024)
    assert found["kernels"] == KERNELS and found["atomics"] == 0


@needs_cuda_plugin
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_float32_compiles_for_every_generation(tmp_path, target, dim):
    (found,) = compiled(tmp_path, "float32 attention", target, dim, "auto", 1024)
    assert found["kernels"] == KERNELS and found["atomics"] == 0


@needs_cuda_plugin
@pytest.mark.slow
@pytest.mark.parametrize("slots", [8192, 16384])
@pytest.mark.parametrize("axes", ["4x1", "2x2"])
def test_long_rows_of_7b_layers_get_the_kernels_and_no_scores(tmp_path, slots, axes):
    """Rematerialised layers, sharded as in training."""
    (found,) = compiled(tmp_path, "language", "h100", axes, "auto", slots)
    assert found["kernels"] == KERNELS and found["score_arrays"] == [] and found["atomics"] == 0


@needs_cuda_plugin
@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "sizes", "slots", "scores"),
    [("attention", 128, 2048, "1,4,7,512,2048"), ("language", "2x2", 8192, "1,2,7,512,8192")],
)
def test_scores_that_are_written_to_memory_are_found(tmp_path, part, sizes, slots, scores):
    (found,) = compiled(tmp_path, part, "h100", sizes, "xla", slots)
    assert found["kernels"] == [] and scores in found["score_arrays"]
