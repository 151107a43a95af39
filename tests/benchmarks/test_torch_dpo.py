"""The comparison with PyTorch compares like with like: the same losses, step after step, on a model small enough for a test."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

SIZES = {"text": {"vocab_size": 300, "tie_word_embeddings": False}}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.long
def test_both_sides_have_the_same_losses_while_they_learn(checkpointing):
    """Pairs of three responses to two pictures; the first loss is that of the reference itself, later ones are not."""
    pytest.importorskip("torch")
    from tests.benchmarks import torch_dpo

    args = argparse.Namespace(responses=3, images=2, repeats=3, checkpointing=checkpointing)
    found = torch_dpo.compare(args, SIZES, response_tokens=20)
    ours, theirs = np.transpose(found["losses"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[-1] < ours[0]
