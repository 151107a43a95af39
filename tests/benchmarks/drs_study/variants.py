"""The objectives that are compared: how β depends on a pair.

A larger β on average also changes what is learnt, so the constants .15 and .2 are there as well: the largest β of Dynamic
Reward Scaling with w = .5 and w = 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Variant(NamedTuple):
    """`objective` are the settings that differ from those of the quickstart's `mmdpo.yaml`; `title` names it in tables."""

    title: str
    objective: dict[str, Any]


def _margin(**settings: Any) -> dict[str, Any]:
    return {"scaling": {"mode": "margin", "w": 0.5, "k": 0.5, "margins": "rewards", "negative_margins": "clamp"} | settings}


BASELINE, CEILING = "dpo", "dpo_ceiling"
VARIANTS: dict[str, Variant] = {
    BASELINE: Variant("DPO, β .1", {"scaling": {"mode": "fixed"}}),
    "dpo_ceiling": Variant("DPO, β .15", {"beta": 0.15, "scaling": {"mode": "fixed"}}),
    "dpo_20": Variant("DPO, β .2", {"beta": 0.2, "scaling": {"mode": "fixed"}}),
    "paper": Variant("MM-DPO, the paper's: k .5, w .5", _margin()),
    "paper_w1": Variant("MM-DPO, k .5, w 1", _margin(w=1.0)),
    "median": Variant("MM-DPO, k median, w .5", _margin(k="median")),
    "median_w1": Variant("MM-DPO, k median, w 1", _margin(k="median", w=1.0)),
    "unclamped": Variant(
        "MM-DPO, k median, w .5, negative margins unclamped", _margin(k="median", negative_margins="unclamped")
    ),
    "drop": Variant("MM-DPO, k median, w .5, negative margins dropped", _margin(k="median", negative_margins="drop")),
    "human_scores": Variant("MM-DPO, margins of human scores, k .5, w .5", _margin(margins="human_scores")),
    "ls_factor": Variant(
        "ls_factor, w .1 (released script)", {"scaling": {"mode": "ls_factor", "w": 0.1, "margins": "rewards"}}
    ),
    "batch_implicit": Variant("batch_implicit, w .1 (released code)", {"scaling": {"mode": "batch_implicit", "w": 0.1}}),
    "beta_dpo": Variant("β-DPO, α .6, 20 % filtered", {"scaling": {"mode": "beta_dpo", "w": 0.6, "filtered": 0.2}}),
}
SMALL = (BASELINE, "dpo_ceiling", "paper", "median", "drop")  # those of `--small`
