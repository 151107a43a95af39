"""The model card names what a model was trained with: MM-DPO only where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrlhf_jax.config import load_experiment
from mmrlhf_jax.models.registry import FAMILIES, family
from mmrlhf_jax.training.card import conversion_card, model_card

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "overrides", "title"),
    [
        ("mmdpo", [], "a policy aligned with MM-DPO (beta by reward margins), trained"),
        (
            "mmdpo",
            ["objective.scaling.margins=human_scores"],
            "a policy aligned with MM-DPO (beta by margins of human scores), ",
        ),
        ("mmdpo", ["objective.scaling.w=0"], "a policy aligned with DPO (a fixed beta), trained"),
        ("dpo", [], "a policy aligned with DPO (a fixed beta), trained"),
        ("implicit", [], "a policy aligned with DPO (beta by implicit margins), trained"),
        ("ls_factor", [], "a policy aligned with DPO (beta by ls_factor), trained"),
        ("dpo", ["objective.losses={ipo: 1}"], "a policy aligned with the preference loss ipo (a fixed beta), trained"),
        (
            "mmdpo",
            ["objective.losses={hinge: 1, bco_pair: 0.5}"],
            "the preference loss hinge + 0.5 bco_pair under Dynamic Reward Scaling (beta by reward margins), trained",
        ),
        ("reward", [], "a critique-based reward model, trained"),
        ("reward_scalar", [], "a reward model without critiques, trained"),
        ("mmdpo", ["objective={kind: supervised}"], "a supervised policy, trained"),
    ],
)
def test_the_card_says_which_objective_it_was(name, overrides, title):
    experiment = load_experiment(CONFIGS / f"{name}_llava_ov_7b.yaml", overrides)
    card = model_card(experiment, family("llava_onevision"), 7, [{"step": 7, "loss": 0.5}])
    card, _, settings = card.partition("Resolved configuration")
    assert title in card and "| loss | 0.5 |" in card and "kind: " in settings
    papers = name.startswith("reward") or "MM-DPO" in title or "Dynamic Reward Scaling" in title
    assert ("arXiv 2502.10391" in card) == papers
    assert ("MM-DPO" in card) == ("MM-DPO" in title)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_card_of_a_converted_model_says_in_whose_naming_it_is(name):
    made = family(name)
    for naming in made.names.namings:
        card = conversion_card("models/base", made, naming, "bfloat16")
        assert f"(`{made.publishers[naming]}`) naming as bfloat16" in card and made.title in card
