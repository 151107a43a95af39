"""Rotary embeddings of positions with one axis and with three. Oracle: transformers' Qwen2-VL."""

from __future__ import annotations

import numpy as np
import pytest

from mmrlhf_jax.models.decoder import TextConfig, rope, rotate

SECTIONS = (2, 3, 3)  # pairs of dimensions turned by time, height and width
CONFIG = TextConfig(
    vocab_size=8,
    hidden_size=16,
    intermediate_size=8,
    layers=1,
    heads=1,
    kv_heads=1,
    head_dim=16,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tied=True,
    rope_axes=tuple(np.repeat(np.arange(3), SECTIONS).tolist()),
)


def test_three_equal_axes_turn_as_one_does():
    positions = np.arange(40, dtype=np.int32).reshape(2, 20)
    one, three = (rope(p, CONFIG) for p in (positions, np.repeat(positions[..., None], 3, axis=-1)))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)


def test_pairs_turn_by_their_axis_as_in_transformers():
    torch = pytest.importorskip("torch")
    from transformers import Qwen2VLTextConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding, apply_rotary_pos_emb

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 3, 16)).astype(np.float32)
    positions = rng.integers(0, 50, (2, 7, 3)).astype(np.int32)
    ours = rotate(x, rope(positions, CONFIG))

    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(SECTIONS)}
    oracle = Qwen2VLRotaryEmbedding(Qwen2VLTextConfig(hidden_size=48, num_attention_heads=3, rope_parameters=parameters))
    q = torch.tensor(x).transpose(1, 2)
    cos, sin = oracle(q, torch.tensor(positions).permute(2, 0, 1))
    theirs, _ = apply_rotary_pos_emb(q, q, cos, sin)
    np.testing.assert_allclose(ours, theirs.transpose(1, 2).numpy(), atol=1e-5)
