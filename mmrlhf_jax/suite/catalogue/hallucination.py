"""Hallucination: what a model says of a picture that is not there.

References: lmms-eval 0.7.3, `tasks/pope`; yfzhang114/mmrlhf-eval, `tasks/mmhal_bench` and `tasks/objecthallusion`.
"""

from __future__ import annotations

from mmrlhf_jax.suite.task import Benchmark, Data, Row, Task, single

_HALLUCINATION = "hallucination"


def _pope(harness_task: str, split: str) -> Task:
    """Yes or no: is this object in the picture? (By the harness alone, "Yes." is wrong: `harness/corrected.py`.)"""
    return Task(
        name=harness_task,
        harness_task=harness_task,
        data=Data("lmms-lab-encoder/POPE", "Full", split, 3000, 255_000_000),
        rows=(Row(harness_task, f"POPE {split}", ("pope_accuracy",), _HALLUCINATION, factor=100.0),),
        media="image",
        judge="none",
        max_new_tokens=128,
        columns={"image": "image", "question": "text", "answer": "yes or no", "question_id": "text"},
    )


POPE = Benchmark(
    "pope", "POPE", (_pope("pope_adv", "adversarial"), _pope("pope_pop", "popular"), _pope("pope_random", "random"))
)

MMHAL = Task(
    name="mmhal_bench",
    harness_task=None,
    data=Data("DogNeverSleep/MMHal-Bench", None, "train", 96),
    rows=(
        Row(
            "mmhal_rate",
            "MMHal rate",
            ("hallucination_rate",),
            _HALLUCINATION,
            higher_is_better=False,
            factor=100.0,
        ),
        Row("mmhal_score", "MMHal score", ("mmhal_bench_average_score",), _HALLUCINATION, unit="of 6", full=6.0),
    ),
    media="image",
    judge="always",
    max_new_tokens=1024,
    columns={
        "image": "image",
        "question": "text",
        "gt_answer": "text",
        "answer": "text",
        "image_content": "list of texts",
        "question_type": "one of 8 names",
    },
    own_metrics=True,
)


def _chair(level: str) -> Row:
    """CHAIR_i: the share of objects named that are not there; CHAIR_s: the share of answers that name one.

    CHAIR_i is a ratio of sums: a document's value is its own share, and the weight is the number of objects that it names.
    """
    return Row(
        f"chair_{level}",
        f"Object-Hal CHAIR_{level}",
        (f"CHAIR_{level}_score",),
        _HALLUCINATION,
        higher_is_better=False,
        factor=100.0,
    )


OBJECT_HALLUCINATION = Task(
    name="object_hallucination",
    harness_task=None,
    data=Data("DogNeverSleep/Hallucination_COCO", None, "train", 300, 111_000_000),
    rows=(_chair("i"), _chair("s")),
    media="image",
    judge="none",
    max_new_tokens=1024,
    columns={"image": "image", "question": "text", "objects": "list of COCO's names of objects", "answer": "text"},
    own_metrics=True,
)

BENCHMARKS = (POPE, single("MMHal-Bench", MMHAL), single("Object-Hal", OBJECT_HALLUCINATION))
