"""Conversation: answers that a judge compares with those of another model.

Reference: the tasks of lmms-eval 0.7.3 that have these names.
"""

from __future__ import annotations

from mmrlhf_jax.suite.task import Data, Row, Task, single

_CONVERSATION = "conversation"


def _in_the_wild(name: str, title: str, metric: str, full: float | None = None) -> Row:
    """Judge's scores of the answers as a percentage of those of the reference answers, over one kind of questions or all.

    It is a ratio of means: a document's value is its own ratio, and the weight is the score of its reference answer.
    """
    return Row(name, title, (metric,), _CONVERSATION, full=full)


LLAVA_IN_THE_WILD = Task(
    name="llava_in_the_wild",
    harness_task="llava_in_the_wild",
    data=Data("lmms-lab-encoder/llava-bench-in-the-wild", None, "train", 60, 10_000_000),
    # The teaser's mean fits only if the three kinds, which "all" contains, do not count again.
    rows=(
        _in_the_wild("llava_w_all", "LLaVA-W all", "gpt_eval_llava_all", 100.0),
        _in_the_wild("llava_w_complex", "LLaVA-W complex", "gpt_eval_llava_complex"),
        _in_the_wild("llava_w_conv", "LLaVA-W conv", "gpt_eval_llava_conv"),
        _in_the_wild("llava_w_detail", "LLaVA-W detail", "gpt_eval_llava_detail"),
    ),
    media="image",
    judge="always",
    max_new_tokens=4096,
    columns={
        "image": "image",
        "question": "text",
        "gpt_answer": "text",
        "caption": "text",
        "category": "conv, detail or complex",
        "question_id": "text",
    },
)

# The harness opens the base64 text of a picture as a file, so that it never calls the judge, and gives every model 100.
LLAVA_WILDER = Task(
    name="llava_wilder_small",
    harness_task="llava_wilder_small",
    data=Data("lmms-lab-encoder/LLaVA-Bench-Wilder", None, "test", 128, 95_000_000),
    rows=(Row("llava_wilder", "LLaVA-Wilder", ("gpt_eval_llava_all",), _CONVERSATION),),
    media="image",
    judge="always",
    max_new_tokens=4096,
    columns={"image": "image", "Question": "text", "Answer": "text", "gpt4v_answer": "text", "question_id": "text"},
    own_metrics=True,
)

WILDVISION = Task(
    name="wildvision_0617",
    harness_task="wildvision_0617",
    data=Data("WildVision/wildvision-arena-data", "release_bench_0617_with_modelresponse", "test500", 500),
    # Between two models the rating is the share of battles that are won, a tie being half a win; for the win rate it is none.
    rows=(
        Row("wildvision_elo", "WildVision elo", ("elo_scores",), _CONVERSATION),
        Row("wildvision_win", "WildVision win", ("win_rates",), _CONVERSATION),
    ),
    media="image",
    judge="always",
    max_new_tokens=4096,
    columns={"image": "image", "instruction": "text", "claude-3-sonnet-20240229": "text"},
)

BENCHMARKS = (
    single("LLaVA-Wilder", LLAVA_WILDER),
    single("LLaVA-in-the-Wild", LLAVA_IN_THE_WILD),
    single("WildVision", WILDVISION),
)
