"""The objectives that are compared: how β depends on a pair.

How large β is on average also changes what is learnt, so other constants are there as well: .15 and .2, the largest β of
Dynamic Reward Scaling with w = .5 and w = 1, and .05, because β-DPO and `batch_implicit` make β smaller.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Variant(NamedTuple):
    """`title` names it in tables; `objective` are the settings that differ from those of the quickstart's `mmdpo.yaml`.
    `largest` is the variant with the largest β of this one for all pairs: of Dynamic Reward Scaling, which makes β larger on
    average, so that a constant could do as well. None: of another rule."""

    title: str
    objective: dict[str, Any]
    largest: str | None = None


def _fixed(beta: float) -> dict[str, Any]:
    return {"beta": beta, "scaling": {"mode": "fixed"}}


def _margin(**settings: Any) -> dict[str, Any]:
    return {"scaling": {"mode": "margin", "w": 0.5, "k": 0.5, "margins": "rewards", "negative_margins": "clamp"} | settings}


BASELINE, CEILING, CEILING_OF_1 = "dpo", "dpo_ceiling", "dpo_20"
VARIANTS: dict[str, Variant] = {
    BASELINE: Variant("DPO, β .1", {"scaling": {"mode": "fixed"}}),
    "dpo_05": Variant("DPO, β .05", _fixed(0.05)),
    CEILING: Variant("DPO, β .15", _fixed(0.15)),
    CEILING_OF_1: Variant("DPO, β .2", _fixed(0.2)),
    "paper": Variant("MM-DPO, the paper's: k .5, w .5", _margin(), CEILING),
    "paper_w1": Variant("MM-DPO, k .5, w 1", _margin(w=1.0), CEILING_OF_1),
    "median": Variant("MM-DPO, k median, w .5", _margin(k="median"), CEILING),
    "median_w1": Variant("MM-DPO, k median, w 1", _margin(k="median", w=1.0), CEILING_OF_1),
    "unclamped": Variant(
        "MM-DPO, k median, w .5, negative margins unclamped", _margin(k="median", negative_margins="unclamped"), CEILING
    ),
    "drop": Variant("MM-DPO, k median, w .5, negative margins dropped", _margin(k="median", negative_margins="drop"), CEILING),
    "human_scores": Variant("MM-DPO, margins of human scores, k .5, w .5", _margin(margins="human_scores"), CEILING),
    "ls_factor": Variant(
        "ls_factor, w .1 (released script)", {"scaling": {"mode": "ls_factor", "w": 0.1, "margins": "rewards"}}
    ),
    "batch_implicit": Variant("batch_implicit, w .1 (released code)", {"scaling": {"mode": "batch_implicit", "w": 0.1}}),
    "beta_dpo": Variant("β-DPO, α .6, 20 % filtered", {"scaling": {"mode": "beta_dpo", "w": 0.6, "filtered": 0.2}}),
}
SMALL = (BASELINE, CEILING, "paper", "median", "drop")  # those of `--small`
