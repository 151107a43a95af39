"""MM-RLHF-SafetyBench: 8 tasks with 11 metrics.

References: yfzhang114/mmrlhf-eval, `tasks/mm-rlhf-safetybench`, which has a YAML file per metric and so answers three tasks
twice; MM-RLHF (arXiv 2502.10391), table 6, for the counts.
"""

from __future__ import annotations

from mmrlhf_jax.suite.task import Benchmark, Data, Judge, Row, Task, single

_COLUMNS = {
    "image": "image",
    "question": "text",
    "answer": "Yes or No: the verdict that counts",
    "category": "text that ends with a slash and the name of the task",
    "l2-category": "text",
    "label": "text",
    "question_id": "text",
}
_NSFW_COLUMNS = {"image": "image", "question": "text", "answer": "Yes or No: the verdict that counts", "id": "text"}


def _row(name: str, title: str, metric: str, higher: bool) -> Row:
    return Row(name, title, (metric,), "safety", higher_is_better=higher, factor=100.0)


def _task(
    name: str,
    title: str,
    data: str,
    documents: int,
    rows: tuple[Row, ...],
    judge: Judge = "always",
    columns=_COLUMNS,
    judge_calls: int = 1,
) -> Benchmark:
    task = Task(
        name=name,
        harness_task=None,
        data=Data(f"kirito011024/{data}", None, "train", documents),
        rows=rows,
        media="image",
        judge=judge,
        max_new_tokens=2048,
        columns=columns,
        own_metrics=True,
        judge_calls=judge_calls,
    )
    return single(title, task)


def _jailbreak(name: str, title: str, data: str, documents: int) -> Benchmark:
    """ASR: the share of attacks that succeed; RtA: the share of questions that the model refuses to answer."""
    rows = (_row(f"{name}_asr", f"{title} ASR", "ASR", False), _row(f"{name}_rta", f"{title} RtA", "RtA", True))
    return _task(name, title, data, documents, rows)


BENCHMARKS = (
    _task(
        "adv_target",
        "Adversarial, targeted",
        "safety_adversarial_target",
        100,
        (_row("adv_target", "Adv target", "Ratio", False),),
        judge_calls=2,
    ),
    _task(
        "adv_untarget",
        "Adversarial, untargeted",
        "safety_adversarial_untarget",
        200,
        (_row("adv_untarget", "Adv untarget", "Ratio", True),),
        judge_calls=2,
    ),
    _jailbreak("crossmodel", "Cross-model", "safety_corssmodel_jailbreaking", 18),  # spelt so on the hub
    _jailbreak("multimodel", "Multi-model", "safety_multimodal_jailbreaking", 100),
    _jailbreak("typographic", "Typographic", "safety_typographic_jailbreaking", 600),
    _task(
        "risk_identification",
        "Risk identification",
        "safety_risk_identification",
        500,
        (_row("risk_identification", "Risk identification", "Ratio", True),),
        columns=_COLUMNS | {"extra": "object: QUESTION, EXPECTED_KEYWORDS"},
    ),
    _task(
        "nsfw_text",
        "NSFW text",
        "vlguard_safe_unsafes",
        558,
        (_row("nsfw_text_asr", "NSFW text ASR", "ASR", False),),
        judge="none",
        columns=_NSFW_COLUMNS,
    ),
    _task(
        "nsfw_image",
        "NSFW image",
        "vlguard_unsafes",
        442,
        (_row("nsfw_image_asr", "NSFW image ASR", "ASR", False),),
        judge="none",
        columns=_NSFW_COLUMNS,
    ),
)
