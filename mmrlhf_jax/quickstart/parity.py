"""Checks an exported model against transformers: the difference of logits on the same tokens and images."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import numpy as np

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.data.rows import Budget, assemble_row, group_size, stack_rows
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh


def max_logit_difference(directory: os.PathLike[str], examples: Sequence[Example]) -> float:
    """The largest absolute difference of any logit, in float32, over the first response's conversation of each example.

    Needs torch. transformers preprocesses the images with its own image processor.
    """
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessorPil

    theirs = LlavaOnevisionForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    processor = LlavaOnevisionImageProcessorPil.from_pretrained(directory)
    engine = Engine.load(str(directory), mesh=make_mesh({}, jax.devices()[:1]))  # one row at a time
    worst = 0.0
    for example in examples:
        alone = example.record.replace_responses(example.record.responses[:1])
        tokens, ours = _our_logits(engine, Example(alone, example.images, example.frames, example.video))
        pictures = [decode_image(data, example.record.id) for data in example.images]
        pixels = processor(images=pictures, return_tensors="pt")
        with torch.no_grad():
            logits = theirs(input_ids=torch.from_numpy(tokens[None]).long(), **pixels).logits[0].numpy()
        worst = max(worst, float(np.abs(logits - ours).max()))
    return worst


def _our_logits(engine: Engine, example: Example) -> tuple[np.ndarray, np.ndarray]:
    """(int32[N] tokens, float32[N, V] logits) of the example's only conversation."""
    group = engine.encoder("answer").encode(example)
    budget = Budget(*(max(int(size), 1) for size in group_size(group)))
    row = stack_rows([assemble_row([group], budget, engine.config.geometry)])
    visual = row.media
    with use_mesh(engine.mesh), jax.default_matmul_precision("highest"):
        model = engine.model.whole()
        hidden = model(row.tokens, row.positions, row.visible_until, visual)
        return group.tree.tokens, np.asarray(hidden[0] @ model.language.vocabulary())
