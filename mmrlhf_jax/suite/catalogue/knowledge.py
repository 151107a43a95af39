"""General knowledge, charts and documents, and reading text: short answers about one picture.

References: lmms-eval 0.7.3, the folder in `tasks` that begins with the task's name.
"""

from __future__ import annotations

from mmrlhf_jax.suite.task import Data, Row, Task, single

_GENERAL, _CHART, _OCR = "general", "chart", "ocr"
_LITE = "lmms-lab-encoder/LMMs-Eval-Lite"

MME = Task(
    name="mme",
    harness_task="mme",
    data=Data("lmms-lab-encoder/MME", None, "test", 2374, 864_000_000),
    # At most 2000 + 800 points; the teaser's means fit only if 2400 (2389 to 2400) count as 100.
    # A document's value is that of its pair: 50 for each that is right, and 100 more if both are.
    rows=(
        Row(
            "mme",
            "MME",
            ("mme_perception_score", "mme_cognition_score"),
            _GENERAL,
            unit="points",
            full=2400.0,
            pooling="sum of groups",
        ),
    ),
    media="image",
    judge="none",
    max_new_tokens=16,
    columns={
        "image": "image",
        "question": "text",
        "answer": "Yes or No",
        "category": "one of 14 names",
        "question_id": "text, the same for two documents",
    },
)

MMBENCH = Task(
    name="mmbench_cn_dev",
    harness_task="mmbench_cn_dev",
    data=Data("lmms-lab-encoder/MMBench", "cn", "dev", 4329, 238_000_000),
    # A question is a hit if it is right with its options in all of several orders; each order is a document, and the first one
    # has the question's value.
    rows=(Row("mmbench", "MMBench", ("gpt_eval_score",), _GENERAL),),
    media="image",
    judge="unparsable",
    max_new_tokens=256,
    columns={
        "image": "image",
        "question": "text",
        **dict.fromkeys("ABCD", "text"),
        "answer": "letter",
        "index": "integer",
        **dict.fromkeys(("hint", "source", "split", "category", "L2-category"), "text"),
    },
)

MMSTAR = Task(
    name="mmstar",
    harness_task="mmstar",
    data=Data("Lin-Chen/MMStar", None, "val", 1500, 43_000_000),
    rows=(Row("mmstar", "MMStar", ("average",), _GENERAL, factor=100.0, pooling="mean of groups"),),
    media="image",
    judge="none",
    max_new_tokens=None,
    columns={
        "image": "image",
        "question": "text",
        "answer": "letter",
        "category": "one of 6 names",
        "l2_category": "text",
        "index": "integer",
    },
)

SEEDBENCH_2_PLUS = Task(
    name="seedbench_2_plus",
    harness_task="seedbench_2_plus",
    data=Data("doolayer/SEED-Bench-2-Plus", None, "test", 2277, 227_000_000),
    rows=(Row("seedbench_2_plus", "SeedBench2-Plus", ("seedbench_2_plus_all",), _GENERAL, factor=100.0),),
    media="image",
    judge="none",
    max_new_tokens=16,
    columns={
        "image": "image",
        "question": "text",
        **dict.fromkeys(("choice_A", "choice_B", "choice_C", "choice_D"), "text"),
        "answer": "letter",
        "question_id": "text",
        "question_image_type": "chart, map or web",
    },
)

VQAV2 = Task(
    name="vqav2_val_lite",
    harness_task="vqav2_val_lite",
    data=Data(_LITE, "vqav2_val", "lite", 500, 79_000_000),
    rows=(Row("vqav2", "VQAv2", ("exact_match",), _GENERAL, factor=100.0),),
    media="image",
    judge="none",
    max_new_tokens=16,
    columns={
        "image": "image",
        "question": "text",
        "answers": "list of 10 objects with the key answer",
        "answer": "text",
        "question_id": "integer",
        **dict.fromkeys(("question_type", "answer_type", "multiple_choice_answer"), "text"),
    },
)

AI2D = Task(
    name="ai2d",
    harness_task="ai2d",
    data=Data("lmms-lab-encoder/ai2d", None, "test", 3088, 140_000_000),
    rows=(Row("ai2d", "AI2D", ("exact_match,flexible-extract",), _CHART, factor=100.0),),
    media="image",
    judge="none",
    max_new_tokens=16,
    columns={"image": "image", "question": "text", "options": "list of texts", "answer": "index of an option, as text"},
)

CHARTQA = Task(
    name="chartqa_lite",
    harness_task="chartqa_lite",
    data=Data(_LITE, "chartqa", "lite", 500),
    rows=(Row("chartqa", "ChartQA", ("relaxed_overall",), _CHART, factor=100.0),),
    media="image",
    judge="none",
    max_new_tokens=16,
    columns={"image": "image", "question": "text", "answer": "text", "type": "human_test or augmented_test"},
)


def _anls(name: str, title: str, size: int) -> Task:
    """Average normalised Levenshtein similarity of short answers about a document."""
    return Task(
        name=f"{name}_val_lite",
        harness_task=f"{name}_val_lite",
        data=Data(_LITE, f"{name}_val", "lite", 500, size),
        rows=(Row(name, title, ("anls",), _CHART, factor=100.0),),
        media="image",
        judge="none",
        max_new_tokens=32,
        columns={"image": "image", "question": "text", "answers": "list of texts", "questionId": "text"},
    )


DOCVQA, INFOVQA = _anls("docvqa", "DocVQA", 249_000_000), _anls("infovqa", "InfoVQA", 234_000_000)

OCRBENCH = Task(
    name="ocrbench",
    harness_task="ocrbench",
    data=Data("echo840/OCRBench", None, "test", 1000),
    # The harness divides by 1000, however many documents were scored; here it is by their number.
    rows=(Row("ocrbench", "OCRBench", ("ocrbench_accuracy",), _OCR, factor=100.0),),
    media="image",
    judge="none",
    max_new_tokens=128,
    columns={
        "image": "image",
        "question": "text",
        "answer": "list of texts",
        "dataset": "text",
        "question_type": "one of 10 names",
    },
)

TEXTVQA = Task(
    name="textvqa_val",
    harness_task="textvqa_val",
    data=Data("lmms-lab-encoder/textvqa", None, "validation", 5000, 8_100_000_000),
    rows=(Row("textvqa", "TextVQA", ("exact_match",), _OCR, factor=100.0),),
    media="image",
    judge="none",
    max_new_tokens=None,
    columns={
        "image": "image",
        "question": "text",
        "answers": "list of 10 texts",
        "question_id": "integer",
        "ocr_tokens": "list of texts",
    },
)

WEBSRC = Task(
    name="websrc_val",
    harness_task="websrc_val",
    data=Data("rootsautomation/websrc", None, "dev", 52_826),
    rows=(Row("websrc", "WebSRC", ("websrc_squad_f1",), _OCR, factor=100.0),),
    media="image",
    judge="none",
    max_new_tokens=16,
    columns={
        "image": "image file as base64",
        "question": "text",
        "answer": "text",
        "domain": "one of 11 names",
        "id": "text",
        "page_id": "text",
    },
)

BENCHMARKS = (
    single("MME", MME),
    single("MMBench", MMBENCH),
    single("MMStar", MMSTAR),
    single("SeedBench2-Plus", SEEDBENCH_2_PLUS),
    single("VQAv2", VQAV2),
    single("AI2D", AI2D),
    single("ChartQA", CHARTQA),
    single("DocVQA", DOCVQA),
    single("InfoVQA", INFOVQA),
    single("OCRBench", OCRBENCH),
    single("TextVQA", TEXTVQA),
    single("WebSRC", WEBSRC),
)
