"""Made-up documents of the harness's tasks, with the columns that its code reads: two or three of each, small and different.

Their pictures are PIL images.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue")
SKILLS = {
    "split": "testmini",
    "language": "english",
    "source": "made up",
    "category": "math-targeted-vqa",
    "task": "geometry problem solving",
    "context": "geometry diagram",
    "grade": "elementary school",
    "skills": ["geometry reasoning"],
}


def picture(number: int, side: int = 24) -> Image.Image:
    """A picture that no other number has."""
    pixels = np.zeros((side, side + 8, 3), np.uint8)
    pixels[..., number % 3] = 60 + 40 * (number // 3)
    pixels[: side // 2, : 4 + number] = 255
    return Image.fromarray(pixels)


def encoded(number: int) -> str:
    """The same picture as base64, as some sets have it."""
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _mme() -> list[dict[str, Any]]:
    pairs = [("existence", 0), ("color", 1), ("code_reasoning", 2)]
    return [
        {
            "image": picture(n),
            "question": f"Is there {word}? Please answer yes or no.",
            "answer": answer,
            "category": category,
            "question_id": f"{category}/{n}.png",
        }
        for category, n in pairs
        for word, answer in (("a line", "Yes"), ("a sun", "No"))
    ]


def _mmbench() -> list[dict[str, Any]]:
    """Three questions, each with its options in two orders; one of them has the second order first."""
    places, options = ((0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1)), ("红色", "绿色", "蓝色")
    return [
        {
            "image": picture(n),
            "question": f"什么颜色 {n}?",
            **dict(zip("ABCD", (*options[turn:], *options[:turn], "nan"), strict=True)),
            "answer": "ABC"[n - turn],
            "index": n + turn * 1_000_000,
            "hint": "nan",
            "source": "made up",
            "split": "dev",
            "category": "color",
            "L2-category": "attribute",
        }
        for n, turn in places
    ]


def _answers(words: list[str]) -> list[dict[str, str]]:
    return [{"answer": word, "answer_confidence": "yes", "answer_id": str(n)} for n, word in enumerate(words)]


def _vqa(n: int) -> dict[str, Any]:
    return {
        "image": picture(n),
        "question": f"Which colour is {n}?",
        "question_id": n,
        "question_type": "what",
        "answer": COLOURS[n],
        "answers": _answers([COLOURS[n]] * 7 + ["grey"] * 3),
        "answer_type": "other",
        "image_id": n,
        "multiple_choice_answer": COLOURS[n],
    }


def _mathvista() -> list[dict[str, Any]]:
    asked = [
        ("multi_choice", "text", "5", ["3", "5"]),
        ("free_form", "integer", "7", None),
        ("free_form", "float", "1.5", None),
    ]
    return [
        {
            "decoded_image": picture(n),
            "question": f"What is {n}?",
            "question_type": kind,
            "answer_type": answer_type,
            "answer": answer,
            "query": f"Question: What is {n}?",
            "choices": choices,
            "precision": 1.0 if answer_type == "float" else None,
            "unit": None,
            "caption": "",
            "ocr": "",
            "pid": str(n),
            "metadata": SKILLS,
        }
        for n, (kind, answer_type, answer, choices) in enumerate(asked)
    ]


def _mathverse(version: str) -> list[dict[str, Any]]:
    return [
        {
            "image": picture(n),
            "question": f"Find x{n}.",
            "answer": "ABC"[n],
            "sample_index": str(n),
            "problem_index": str(n),
            "problem_version": version,
            "question_type": "multi-choice",
            "query_wo": f"Find x{n}. Answer with a letter.",
            "query_cot": f"Find x{n}, step by step.",
            "question_for_eval": f"Find x{n}.",
            "metadata": {"split": "testmini", "source": "made up", "subject": "Plane Geometry", "subfield": "Angle"},
        }
        for n in range(3)
    ]


def _videomme() -> list[dict[str, Any]]:
    return [
        {
            "videoID": f"clip{n // 2}",
            "question": f"What moves {n}?",
            "options": ["A. a ball", "B. a cat", "C. a car", "D. none"],
            "answer": "AB"[n % 2],
            "domain": "Knowledge",
            "duration": ("short", "long")[n // 2],
            "sub_category": "Astronomy",
            "task_type": "OCR Problems",
            "question_id": f"{n}",
        }
        for n in range(4)
    ]


def _video(n: int, **more: Any) -> dict[str, Any]:
    return {
        "video_name": f"clip{n}",
        "question": f"What happens in {n}?",
        "answer": "A ball moves.",
        "question_1": "None",
        "question_2": "None",
    } | more


def _consistency() -> list[dict[str, Any]]:
    return [_video(n, **{f"question_{side}": f"What moves in {n}, asked as {side}?"}) for n in range(2) for side in (1, 2)]


def _interleave() -> list[dict[str, Any]]:
    kinds = [
        ("multi-choice", "RAVEN", "A"),
        ("open-ended", "Spot-the-Diff", "the line is longer"),
        ("multi-choice", "NLVR2_Mantis", "B"),
    ]
    return [
        {
            **{f"image_{place}": picture(3 * n + place) if place < 2 else None for place in range(16)},
            "question": ("<image> and <image>: what differs?", "What differs?")[n % 2],
            "question_type": kind,
            "answer": answer,
            "sample_id": str(n),
            "sub_task": task,
        }
        for n, (kind, task, answer) in enumerate(kinds)
    ]


def _reals(number: str) -> list[dict[str, Any]]:
    return [
        {
            number: n,
            "bytes": encoded(n),
            "question": f"Which colour is {n}?",
            "multi-choice options": ["(A) red", "(B) green", "(C) blue", "(D) grey", "(E) none"],
            "answer": "ABC"[n],
            "category": "Perception/Diagram and Table" if n else "Reasoning/Monitoring",
            "l2-category": "colour",
        }
        for n in range(3)
    ]


def _pope() -> list[dict[str, Any]]:
    return [
        {"image": picture(n // 2), "question": f"Is there a thing {n}?", "answer": ("yes", "no")[n % 2], "question_id": str(n)}
        for n in range(4)
    ]


def _rows(**columns: Any) -> list[dict[str, Any]]:
    """Three rows of an image, and of what `columns` makes of their number."""
    return [
        {"image": picture(n)} | {name: make(n) if callable(make) else make for name, make in columns.items()} for n in range(3)
    ]


_OCR = ("Regular Text Recognition", "Scene Text-centric VQA", "Handwritten Mathematical Expression Recognition")
_CHOICES = {f"choice_{letter}": colour for letter, colour in zip("ABCD", (*COLOURS, "grey"), strict=True)}
_ASK = {"question": lambda n: f"Which colour is {n}?"}

DOCUMENTS = {
    "llava_in_the_wild": _rows(
        **_ASK,
        gpt_answer="It is a colour.",
        caption="A line.",
        category=lambda n: ("conv", "detail", "complex")[n],
        question_id=lambda n: n,
    ),
    "llava_wilder_small": _rows(
        Question=lambda n: f"Which colour is {n}?", Answer="A colour.", gpt4v_answer="A colour.", question_id=lambda n: str(n)
    ),
    "wildvision_0617": _rows(instruction=lambda n: f"Describe {n}.", **{"claude-3-sonnet-20240229": "A line."}),
    "mme": _mme(),
    "mmbench_cn_dev": _mmbench(),
    "mmstar": _rows(
        **_ASK,
        answer=lambda n: "ABC"[n],
        category=lambda n: ("math", "math", "logical reasoning")[n],
        l2_category=lambda n: ("geometry", "geometry", "common reasoning")[n],
        index=lambda n: n,
    ),
    "seedbench_2_plus": _rows(
        **_ASK,
        **_CHOICES,
        answer=lambda n: "ABC"[n],
        question_id=lambda n: str(n),
        question_image_type=lambda n: ("chart", "map", "web")[n],
    ),
    "vqav2_val_lite": [_vqa(n) for n in range(3)],
    "ai2d": _rows(**_ASK, options=lambda n: list(COLOURS), answer=lambda n: str(n)),
    "chartqa_lite": _rows(
        **_ASK, answer=lambda n: ("12", "red", "7.5")[n], type=lambda n: ("human_test", "augmented_test", "human_test")[n]
    ),
    "docvqa_val_lite": _rows(**_ASK, answers=lambda n: [COLOURS[n], "grey"], questionId=lambda n: str(n)),
    "infovqa_val_lite": _rows(**_ASK, answers=lambda n: [COLOURS[n]], questionId=lambda n: str(n)),
    "ocrbench": _rows(**_ASK, answer=lambda n: [COLOURS[n]], dataset="made up", question_type=lambda n: _OCR[n]),
    "textvqa_val": _rows(**_ASK, answers=lambda n: [COLOURS[n]] * 6 + ["grey"] * 4, question_id=lambda n: n, ocr_tokens=["a"]),
    "websrc_val": [
        {
            "image": encoded(n),
            "question": f"Which colour is {n}?",
            "answer": COLOURS[n],
            "domain": "auto",
            "id": str(n),
            "page_id": str(n),
        }
        for n in range(3)
    ],
    "mmerealworld_lite": _reals("index"),
    "mmerealworld_cn": _reals("index"),
    "realworldqa": _rows(**_ASK, answer=lambda n: ("A", "2", "Yes")[n]),
    "mathvista_testmini_cot": _mathvista(),
    "mathvista_testmini_format": _mathvista(),
    "mathvista_testmini_solution": _mathvista(),
    "mathverse_testmini_vision_intensive": _mathverse("Vision Intensive"),
    "mathverse_testmini_vision_dominant": _mathverse("Vision Dominant"),
    "mathverse_testmini_vision_only": _mathverse("Vision Only"),
    "pope_adv": _pope(),
    "pope_pop": _pope(),
    "pope_random": _pope(),
    "videomme_w_subtitle": _videomme(),
    "videomme": _videomme(),
    "videochatgpt_gen": [_video(n) for n in range(2)],
    "videochatgpt_temporal": [_video(n) for n in range(2)],
    "videochatgpt_consistency": _consistency(),
    "video_dc499": [_video(n) for n in range(2)],
    "llava_interleave_bench_in_domain": _interleave(),
    "mmmu_pro_vision": _rows(
        id=lambda n: f"test_Art_{n}", subject="Art", options="['a', 'b', 'c', 'd']", answer=lambda n: "ABC"[n]
    ),
}
