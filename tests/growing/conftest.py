"""A tiny policy and a tiny critic, and prompts for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrlhf_jax.quickstart.dataset import write_dataset
from tests import tiny

# Untied, because a tied model of random weights says the same token for ever.
UNTIED = {"tie_word_embeddings": False}
SCENES = {"prompts": 5, "ranked": 4}


@pytest.fixture(scope="session")
def policy(tmp_path_factory) -> Path:
    """It ends a text at one byte of sixteen, so that some of its answers are whole."""
    found = tiny.checkpoint(tmp_path_factory.mktemp("policy") / "policy", tiny.config(text=UNTIED), seed=1)
    (found / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(0, 256, 16))}))
    return found


@pytest.fixture(scope="session")
def critic(tmp_path_factory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("critic") / "critic", tiny.config(text=UNTIED), seed=2, reward_head=True)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> dict[str, Path]:
    """The quickstart's scenes: `prompts` without responses, and `ranked`, with those of the quickstart."""
    found = write_dataset(tmp_path_factory.mktemp("scenes"), seed=3, scenes=SCENES, questions_per_scene=1)
    rows = [json.loads(line) for line in found["prompts"].read_text().splitlines()]
    for row in rows:
        del row["responses"]
    found["prompts"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found
