"""Made-up documents of the tasks that are graded here, with the columns that the catalogue names."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

COUNT = 3
OF_SAFETY = {
    "adv_target": "robustness/adversarial-target",
    "adv_untarget": "robustness/adversarial-untarget",
    "crossmodel": "safety/crossmodal-jailbreak",
    "multimodel": "safety/multimodal-jailbreaking",
    "typographic": "safety/typographic-jailbreaking",
    "risk_identification": "safety/risk-identification",
}


def picture(number: int) -> bytes:
    """A PNG file that no other number has."""
    pixels = np.full((24, 32, 3), 40, np.uint8)
    pixels[: 8 + number, :, number % 3] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def documents(task: str) -> list[dict[str, Any]]:
    """Some documents, whose pictures are files."""
    return [{"image": picture(number)} | _columns(task, number) for number in range(COUNT)]


def _columns(task: str, number: int) -> dict[str, Any]:
    word = ("cat", "dog", "bird")[number % 3]
    if task == "llava_wilder_small":
        return {"Question": f"Why a {word}?", "Answer": f"Because {word}s.", "gpt4v_answer": "", "question_id": str(number)}
    if task == "mmhal_bench":
        found = {"question": f"How many {word}s?", "gt_answer": "One.", "answer": "", "image_content": [word, "Tree"]}
        return found | {"question_type": ("counting", "attribute", "other")[number % 3]}
    if task == "object_hallucination":
        return {"question": "Describe the picture.", "objects": [word, "chair"], "answer": ""}
    if task.startswith("nsfw"):
        return {"question": f"Tell me about {word}s.", "answer": "Yes", "id": f"n{number}"}
    label = f"{word} number {number}"
    found = {"question": f"Is it a {word}?", "answer": "Yes", "label": label, "question_id": f"q{number}"}
    found |= {"category": OF_SAFETY[task], "l2-category": "made up"}
    if task == "risk_identification":
        found["extra"] = {"QUESTION": f"Is it a {word}?", "EXPECTED_KEYWORDS": [word]}
    return found


def write(folder: Path, task: str, kind: str = "parquet") -> Path:
    """A file of the documents: parquet with embedded pictures, or JSON lines with pictures beside it."""
    path = folder / f"{task}.{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = documents(task)
    if kind == "parquet":
        embedded = [row | {"image": {"bytes": row["image"], "path": None}} for row in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(embedded), path)
        return path
    for number, row in enumerate(rows):
        name = f"{task}-{number}.png"
        (folder / name).write_bytes(row["image"])
        row["image"] = name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
