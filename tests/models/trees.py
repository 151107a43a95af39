"""Random rows of trees, and what attention means under `visible_until`, in NumPy and float64."""

from __future__ import annotations

import numpy as np


def random_tree(rng: np.random.Generator, slots: int, groups: tuple[int, int] = (3, 14), padding: int = 4) -> np.ndarray:
    """`visible_until` of a row: groups of a trunk and branches, some branches trees themselves, then padding."""
    until = np.arange(slots) + 1
    start = 0
    while start < slots - padding and (end := start + int(rng.integers(*groups))) <= slots:
        _fill(until, start, end, rng)
        start = end
    return until.astype(np.int32)


def _fill(until: np.ndarray, start: int, end: int, rng: np.random.Generator) -> None:
    """A trunk from `start` whose keys last until `end`, and branches in what is left."""
    trunk = start + int(rng.integers(1, end - start + 1))
    until[start:trunk] = end
    while trunk < end:
        branch = trunk + int(rng.integers(1, end - trunk + 1))
        _fill(until, trunk, branch, rng)
        trunk = branch


def visible(until: np.ndarray, causal: bool = True) -> np.ndarray:
    """bool[B, query, key] of visible_until int[B, S]: q attends k iff k <= q < until[k]."""
    slots = np.arange(until.shape[1])
    seen = slots[:, None] < until[:, None, :]
    return seen & (slots[None, :] <= slots[:, None]) if causal else seen


def oracle(q, k, v, seen):
    """float64, one query and head at a time, over the keys that it sees."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    out = np.zeros_like(q)
    for b, i, h in np.ndindex(q.shape[:3]):
        keys = np.flatnonzero(seen[b, i])
        scores = k[b, keys, h // group] @ q[b, i, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights / weights.sum() @ v[b, keys, h // group]
    return out


def oracle_gradients(q, k, v, seen, cotangent):
    """float64 gradients of sum(cotangent * attention), by the softmax's own derivative."""
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
    group, scale = q.shape[2] // k.shape[2], q.shape[-1] ** -0.5
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b, i, h in np.ndindex(q.shape[:3]):
        keys, g = np.flatnonzero(seen[b, i]), h // group
        scores = scale * (k[b, keys, g] @ q[b, i, h])
        p = np.exp(scores - scores.max())
        p /= p.sum()
        dp = v[b, keys, g] @ cotangent[b, i, h]
        ds = scale * p * (dp - p @ dp)
        dq[b, i, h] += ds @ k[b, keys, g]
        dk[b, keys, g] += ds[:, None] * q[b, i, h]
        dv[b, keys, g] += p[:, None] * cotangent[b, i, h]
    return dq, dk, dv
