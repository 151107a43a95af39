"""Ranking groups of given lengths with random tokens and pixels, for measuring the cost of a step."""

from __future__ import annotations

import numpy as np

from mmrlhf_jax.data.positions import three_axes
from mmrlhf_jax.data.rows import EncodedGroup
from mmrlhf_jax.data.tokens import Conversation, token_tree
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.pieces import Visual
from mmrlhf_jax.records import strict_pairs

# Text tokens around the visual ones: system turn, question, headers.
PROMPT_TOKENS = 80


def synthetic_group(
    model: ModelConfig, *, images: int, responses: int, response_tokens: int = 200, seed: int = 0
) -> tuple[EncodedGroup, list[EncodedGroup]]:
    """(a group with a strict ranking of `responses` responses and all its pairs, each response as a group of its own).

    Every image is one square of the geometry's `image_size`. Response lengths vary by a tenth around `response_tokens`. Rewards
    and reference log-probs are made up.
    """
    rng = np.random.default_rng(seed)
    geometry, vocabulary = model.geometry, min(model.text.vocab_size, model.image_token)
    side = geometry.image_size
    plans = geometry.plans([(side, side)] * 2)[:1] * images  # a square image among several is one tile
    tokens = sum(plan.tokens for plan in plans)
    grids = [piece.grid for plan in plans for piece in plan.pieces if isinstance(piece, Visual)]
    tiles = rng.integers(0, 256, (sum(plan.tiles for plan in plans), *geometry.unit_shape), np.uint8)

    head, question = (rng.integers(0, vocabulary, PROMPT_TOKENS // 2) for _ in range(2))
    prompt = np.concatenate([head, np.full(tokens, model.image_token), question]).astype(np.int32)
    lengths = rng.integers(round(0.9 * response_tokens), round(1.1 * response_tokens) + 1, responses)
    conversations = []
    for i, length in enumerate(lengths):
        response = rng.integers(0, vocabulary, length)
        response[0] = i  # responses differ in their first token, so that the trunk is exactly the prompt
        whole, places = np.concatenate([prompt, response]).astype(np.int32), np.arange(len(prompt) + length)
        is_visual = (places >= len(head)) & (places < len(head) + tokens)
        positions = three_axes([len(head), *grids, len(question) + int(length)]) if geometry.position_axes == 3 else None
        conversations.append(Conversation(whole, places >= len(prompt), is_visual, positions))
    rewards = np.sort(rng.normal(0, 2, responses))[::-1].astype(np.float32)
    reference = (-np.log(vocabulary) * lengths).astype(np.float32)

    def group(chosen: list[int]) -> EncodedGroup:
        pairs = np.asarray(strict_pairs(chosen), np.int32).reshape(-1, 2)
        tree = token_tree([conversations[i] for i in chosen])
        return EncodedGroup(
            tree=tree,
            media=geometry.of_group(tiles, plans, tree.visual, tree.trunk),
            pairs=pairs,
            pair_weights=np.ones(len(pairs), np.float32),
            tie_weights=np.zeros(len(pairs), np.float32),
            pair_margins=np.full(len(pairs), np.nan, np.float32),
            response_weights=np.ones(len(chosen), np.float32),
            rewards=rewards[chosen],
            reference_logps=reference[chosen],
            response_ids=np.asarray(chosen, np.int32),
        )

    return group(list(range(responses))), [group([i]) for i in range(responses)]
