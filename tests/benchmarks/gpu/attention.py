"""The language model's attention at the 7B model's head shapes: its rate against cuDNN's, and its error against float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmrlhf_jax.models.attention import attention
from mmrlhf_jax.models.layers import matmul_precision
from tests.benchmarks.gpu.timing import seconds_of

HEADS, KV_HEADS, DIM = 28, 4, 128
SLOTS, SMALL = (4096, 8192, 16384), (128, 256)
CHECKED = 300  # slots of the row that is compared with float64: no multiple of a block
BRANCHES = 4
# Products of a visible pair, head and dimension: two forward; five backward, of which one is the scores once more.
FORWARD, BOTH = 2 * 2, 2 * (2 + 5)


def measure(small: bool, report: Callable[[dict[str, Any]], None]) -> None:
    report({"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM})
    report({"errors": {dtype: errors(64 if small else CHECKED, dtype) for dtype in ("float32", "bfloat16")}})
    rows: list[dict[str, Any]] = []
    for slots in SMALL if small else SLOTS:
        for name, until in {"causal": np.full(slots, slots, np.int32), "tree": tree(slots)}.items():
            rows.append(rates(name, until, small))
            report({"rows": rows})


def tree(slots: int) -> np.ndarray:
    """`visible_until` of one group that fills a row: half of it the trunk, then branches of equal lengths."""
    until = np.full(slots, slots, np.int32)
    bounds = np.linspace(slots // 2, slots, BRANCHES + 1).astype(int)
    for start, end in itertools.pairwise(bounds):
        until[start:end] = end
    return until


def rates(name: str, until: np.ndarray, small: bool) -> dict[str, Any]:
    """FLOP/s of visible pairs in one row, forward, and forward with backward; cuDNN's where the row is causal."""
    slots = len(until)
    pairs = float((until - np.arange(slots, dtype=np.int64)).sum())
    q, k, v, g = arrays(slots, jnp.bfloat16)
    mask = jnp.asarray(until[None])
    calls = dict(repeats=2, calls=1) if small else dict(repeats=5, calls=10)

    def measured(forward: Callable) -> dict[str, Any]:
        both = jax.jit(lambda q, k, v, g: jax.vjp(forward, q, k, v)[1](g))
        times = {"forward": seconds_of(jax.jit(forward), q, k, v, **calls), "both": seconds_of(both, q, k, v, g, **calls)}
        work = {"forward": FORWARD * pairs * HEADS * DIM, "both": BOTH * pairs * HEADS * DIM}
        return {f"{name}_seconds": times[name] for name in times} | {
            f"{name}_flops_per_second": work[name] / times[name] for name in times
        }

    found: dict[str, Any] = {"mask": name, "slots": slots, "visible_share": pairs / (slots * (slots + 1) / 2)}
    with matmul_precision(jnp.bfloat16):
        found["ours"] = measured(lambda q, k, v: attention(q, k, v, mask))
        if name == "causal":
            found["cudnn"] = cudnn(measured)
    return found


def cudnn(measured: Callable[[Callable], dict[str, Any]]) -> dict[str, Any]:
    """cuDNN's figures, or the reason why there are none."""
    try:
        return measured(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn"))
    except Exception as error:  # whatever jax or cuDNN says: it is the comparison that is missing, not the part
        return {"reason": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}


def arrays(slots: int, dtype: Any) -> tuple[jax.Array, ...]:
    """Queries, keys, values and the gradient of the result, of one row."""
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return tuple(jax.random.normal(key, (1, slots, n, DIM), dtype) for key, n in zip(keys, heads, strict=True))


def errors(slots: int, dtype: str) -> dict[str, float]:
    """The largest error of the result and of each gradient, as a share of its largest value, against NumPy's float64."""
    q, k, v, g = arrays(slots, dtype)
    until = tree(slots)
    with matmul_precision(dtype):
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, jnp.asarray(until[None])), q, k, v)
        found = (out, *pull(g))
    wanted = in_float64(*(np.asarray(x[0].astype(jnp.float32), np.float64) for x in (q, k, v, g)), until)
    names = ("out", "dq", "dk", "dv")
    return {
        name: float(np.abs(np.asarray(x[0].astype(jnp.float32), np.float64) - y).max() / np.abs(y).max())
        for name, x, y in zip(names, found, wanted, strict=True)
    }


def in_float64(q, k, v, g, until: np.ndarray) -> tuple[np.ndarray, ...]:
    """(result, dq, dk, dv), all [S, heads, D]."""
    slots, heads, dim = q.shape
    group = heads // k.shape[1]
    wide_k, wide_v = (np.repeat(x, group, axis=1) for x in (k, v))
    here = np.arange(slots)
    visible = (here[None, :] <= here[:, None]) & (here[:, None] < until[None, :])
    scores = np.einsum("qhd,khd->hqk", q, wide_k) * dim**-0.5
    weights = np.where(visible, np.exp(scores - np.where(visible, scores, -np.inf).max(-1, keepdims=True)), 0.0)
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("hqk,khd->qhd", weights, wide_v)
    to_weights = np.einsum("qhd,khd->hqk", g, wide_v)
    to_scores = weights * (to_weights - (weights * to_weights).sum(-1, keepdims=True)) * dim**-0.5
    dq = np.einsum("hqk,khd->qhd", to_scores, wide_k)
    dk, dv = np.einsum("hqk,qhd->khd", to_scores, q), np.einsum("hqk,qhd->khd", weights, g)
    dk, dv = (x.reshape(slots, k.shape[1], group, dim).sum(axis=2) for x in (dk, dv))
    return out, dq, dk, dv
