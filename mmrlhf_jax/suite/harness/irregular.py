"""What is irregular in the harness's metrics, by the names that it gives them (lmms-eval 0.7.3, `tasks/*/utils.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Tasks that call their judge in an aggregation, about documents that belong together, instead of document by document; and what
# is noted of a document -> to which others it belongs.
JUDGED_TOGETHER: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "mmbench_cn_dev": lambda noted: noted["index"] % 1_000_000,  # one question with its options in several orders
    "videochatgpt_consistency": lambda noted: noted["video_name"],  # one question asked in two ways
}

# Metrics whose documents are scored in pairs.
IN_PAIRS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "mme_perception_score": lambda noted: (noted["category"], noted["question_id"]),
    "mme_cognition_score": lambda noted: (noted["category"], noted["question_id"]),
}

# Metrics of which 0 is given as None (mathvista).
ZERO_IS_NONE = {"llm_as_judge_eval"}

_WINS = {"model_b": 100.0, "tie": 50.0, "model_a": 0.0}

# Metrics that say nothing of a single document: what a document's own value is instead.
OWN_VALUES: Mapping[str, Callable[[Any], float]] = {
    "elo_scores": lambda noted: _WINS[noted["winner"]],  # a rating that is fitted to all battles
    "pope_f1_score": lambda noted: noted["score"],  # 0 for a "no" that is right
}

# The weight of a document's value: a share of the sum of the other model's scores.
WEIGHTS: Mapping[str, Callable[[Any], float]] = {
    metric: lambda noted: noted["scores"][0]
    for metric in ("gpt_eval_llava_all", "gpt_eval_llava_conv", "gpt_eval_llava_detail", "gpt_eval_llava_complex")
}


def _sub_task(noted: Mapping[str, Any], module: Mapping[str, Any]) -> str | None:
    """The group of a sub-task: the harness has a list of sub-tasks for each."""
    return next((name for name, each in module.items() if isinstance(each, list) and noted["sub_task"] in each), None)


# The group of a document, in metrics that are means or sums over groups. `module` are the names of the aggregation's module.
GROUPS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]] = {
    "mme_perception_score": lambda noted, module: noted["category"],
    "mme_cognition_score": lambda noted, module: noted["category"],
    "average": lambda noted, module: noted["l2_category"],
    "overall_score": _sub_task,
}


def counts(noted: Any) -> bool:
    """Whether a document counts for a metric (llava_in_the_wild marks those of other categories)."""
    return not (isinstance(noted, Mapping) and isinstance(noted.get("scores"), Sequence) and -999 in noted["scores"])
