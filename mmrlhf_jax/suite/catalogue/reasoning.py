"""Real-world scenes, mathematics, and questions about several pictures.

References: lmms-eval 0.7.3, `tasks/mme_realworld`, `tasks/realworldqa`, `tasks/mathvista`, `tasks/mathverse`,
`tasks/mmmu_pro`, and the task llava_interleave_bench_in_domain.
"""

from __future__ import annotations

from mmrlhf_jax.suite.task import Benchmark, Data, Row, Task, single

_REAL_WORLD, _MATH, _MULTI_IMAGE = "real_world", "math", "multi_image"


def _mme_realworld(name: str, title: str, harness_task: str, data: Data) -> Task:
    return Task(
        name=harness_task,
        harness_task=harness_task,
        data=data,
        rows=(Row(name, title, ("mme_realworld_score",), _REAL_WORLD, factor=100.0),),
        media="image",
        judge="none",
        max_new_tokens=16,
        columns={
            "bytes": "image file as base64",
            "question": "text",
            "multi-choice options": "list of texts",
            "answer": "letter",
            "category": "Perception/... or Reasoning/..., with one of 5 names",
            "l2-category": "text",
            "index": "integer",
        },
    )


MME_REALWORLD = Benchmark(
    "mmerealworld",
    "MME-RealWorld",
    (
        _mme_realworld(
            "mmerealworld_en",
            "MME-RealWorld en",
            "mmerealworld_lite",
            Data("yifanzhang114/MME-RealWorld-lite-lmms-eval", None, "train", 1919),
        ),
        _mme_realworld(
            "mmerealworld_cn",
            "MME-RealWorld cn",
            "mmerealworld_cn",
            Data("yifanzhang114/MME-RealWorld-CN-Lmms-eval", None, "train", 5917),
        ),
    ),
)

REALWORLDQA = Task(
    name="realworldqa",
    harness_task="realworldqa",
    data=Data("lmms-lab-encoder/RealWorldQA", None, "test", 765, 678_000_000),
    rows=(Row("realworldqa", "RealWorldQA", ("exact_match",), _REAL_WORLD, factor=100.0),),
    media="image",
    judge="none",
    max_new_tokens=16,
    columns={"image": "image", "question": "text", "answer": "text"},
)


def _mathvista(prompt: str) -> Task:
    """MathVista with one of three prompts. Where no document is right, the harness gives None instead of 0."""
    return Task(
        name=f"mathvista_testmini_{prompt}",
        harness_task=f"mathvista_testmini_{prompt}",
        data=Data("AI4Math/MathVista", None, "testmini", 1000, 880_000_000),
        rows=(Row(f"mathvista_{prompt}", f"MathVista {prompt}", ("llm_as_judge_eval",), _MATH),),
        media="image",
        judge="unparsable",
        max_new_tokens=16384,
        columns={
            "decoded_image": "image",
            **dict.fromkeys(("pid", "question", "query", "answer"), "text"),
            "question_type": "multi_choice or free_form",
            "answer_type": "text, integer, float or list",
            "choices": "list of texts, or null",
            "precision": "number, or null",
            **dict.fromkeys(("unit", "caption", "ocr"), "text, or null"),
            "metadata": "object: split, language, source, category, task, context, grade, and skills, a list",
        },
    )


def _mathverse(version: str) -> Task:
    return Task(
        name=f"mathverse_testmini_{version}",
        harness_task=f"mathverse_testmini_{version}",
        data=Data("CaraJ/MathVerse-lmmseval", "testmini_version_split", version, 788, 154_000_000),
        rows=(
            Row(
                f"mathverse_{version}",
                f"MathVerse {version.replace('_', ' ')}",
                ("gpt_eval_score",),
                _MATH,
                factor=100.0,
                part_of="mathverse",
            ),
        ),
        media="image",
        judge="always",
        max_new_tokens=1024,
        columns={
            "image": "image",
            **dict.fromkeys(("sample_index", "problem_index", "problem_version", "question", "answer"), "text"),
            "question_type": "multi-choice or free-form",
            **dict.fromkeys(("query_wo", "query_cot", "question_for_eval"), "text"),
            "metadata": "object: split, source, subject, subfield",
        },
    )


MATHVISTA = Benchmark("mathvista_testmini", "MathVista", tuple(map(_mathvista, ("cot", "format", "solution"))))
MATHVERSE = Benchmark(
    "mathverse_testmini_vision",
    "MathVerse",
    tuple(map(_mathverse, ("vision_intensive", "vision_dominant", "vision_only"))),
)

INTERLEAVE = Task(
    name="llava_interleave_bench_in_domain",
    harness_task="llava_interleave_bench_in_domain",
    data=Data("lmms-lab-encoder/LLaVA-NeXT-Interleave-Bench", "in_domain", "test", 12_900, 3_180_000_000),
    rows=(
        Row(
            "interleave",
            "LLaVA-Interleave",
            ("overall_score",),
            _MULTI_IMAGE,
            factor=100.0,
            pooling="mean of groups",
        ),
    ),
    media="images",
    judge="none",
    max_new_tokens=16,
    columns={
        **dict.fromkeys((f"image_{number}" for number in range(16)), "image, or null"),
        "question": "text",
        "question_type": "multi-choice or open-ended",
        "answer": "text",
        "sample_id": "text",
        "sub_task": "one of the names in lmms_eval/tasks/*_interleave_bench/utils.py",
    },
)

# By the harness alone, "A." and "(A)" are wrong (`harness/corrected.py`).
MMMU_PRO = Task(
    name="mmmu_pro_vision",
    harness_task="mmmu_pro_vision",
    data=Data("MMMU/MMMU_Pro", "vision", "test", 1730, 1_630_000_000),
    rows=(Row("mmmu_pro", "MMMU-Pro", ("mmmu_acc",), _MULTI_IMAGE, factor=100.0),),
    media="image",
    judge="none",
    max_new_tokens=256,
    columns={"image": "image", "id": "text", "subject": "one of 30 names", "options": "text of a list", "answer": "letter"},
)

REAL_WORLD = (MME_REALWORLD, single("RealWorldQA", REALWORLDQA))
MATH = (MATHVISTA, MATHVERSE)
MULTI_IMAGE = (single("LLaVA-NeXT-Interleave", INTERLEAVE), single("MMMU-Pro", MMMU_PRO))
