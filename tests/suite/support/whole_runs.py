"""Runs of all of MM-RLHF's tasks, with made-up values about the paper's figures, for pages that look like those of users."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mmrlhf_jax.suite import resampling, results
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.published import FIGURES
from mmrlhf_jax.suite.results import Document, Figure, Results
from mmrlhf_jax.suite.run_directory import FILE, VERSION
from mmrlhf_jax.suite.task import Row, Task

MANY, FEW = 2700, 12  # documents of Video-MME, and of every other task
LOST = "the judge did not answer: HTTP 429, rate limit reached for requests (10 tries)"
UNPLAYABLE = "videomme/data/fFjv93ACGo8.mp4: there is no such file"
LONG = "The picture shows a street with a bicycle, a red bus and two people who wait beside a traffic light. " * 12


def write(directory: Path, published: str, *, without: tuple[str, ...] = ()) -> Path:
    """A run about the figures of a published model. `without` are tasks that were not run."""
    (directory / "media").mkdir(parents=True)
    for number in range(3):
        (directory / "media" / f"{number}.jpg").write_bytes(_picture(number))
    about = {"version": VERSION, "model": f"models/{directory.name}", "judge": "gpt-4o", "settings": SETTINGS}
    (directory / FILE).write_text(json.dumps(about))
    generator = np.random.default_rng(len(published))
    for task in MM_RLHF.tasks.values():
        if task.name not in without:
            results.write(directory, _results(task, FIGURES[published], generator))
    return directory


SETTINGS = {"fingerprint": "4f1c9ba2e07d6a51", "dtype": "bfloat16", "template": "default", "harness": "lmms-eval 0.7.3"}


def _results(task: Task, figures: dict[str, float], generator: np.random.Generator) -> Results:
    count = MANY if task.name.startswith("videomme") else FEW
    means = {row.name: figures[row.part_of or row.name] for row in task.rows}
    documents = tuple(_document(task, number, means, generator) for number in range(count))
    settings = {"max_new_tokens": task.new_tokens, "temperature": 0.0} | ({} if task.judge == "none" else {"judge": "gpt-4o"})
    harness = "mmrlhf_jax" if task.own_metrics else "lmms-eval 0.7.3"
    return Results(task.name, harness, settings, {row.name: _figure(row, documents) for row in task.rows}, documents)


def _document(task: Task, number: int, means: dict[str, float], generator: np.random.Generator) -> Document:
    lost = {"always": LOST}.get(task.judge) if number == 3 else UNPLAYABLE if task.media == "video" and number == 5 else None
    values = {row.name: _value(row, means[row.name], generator) for row in task.rows}
    words = f"Question {number} of {task.name}? {'Пожалуйста, опишите. ' if number % 4 == 1 else ''}"
    answer = LONG if number % 5 == 2 else "" if number == 7 else "A bus.\nIt is red."
    media = (f"{number % 3}.jpg",) if number % 4 else ("0.jpg", "1.jpg", "2.jpg")
    return Document(str(number), str(number // 2), words, media, answer, "a red bus", {} if lost else values, missing=lost)


def _value(row: Row, mean: float, generator: np.random.Generator) -> float:
    """Of a rate all or nothing, of a scale a step near its mean."""
    if row.full == 100.0:
        return 100.0 * float(generator.random() < mean / 100)
    return float(np.clip(round(mean + generator.normal() * (row.full or 100.0) / 10), 0, row.full or 100.0))


def _figure(row: Row, documents: tuple[Document, ...]) -> Figure:
    mean = resampling.estimate(row, documents)
    return Figure(None, LOST) if mean is None else resampling.figure(row, documents, mean.value)


def _picture(number: int) -> bytes:
    image = Image.new("RGB", (480, 320 if number else 900), ("#8aa6c1", "#c1a68a", "#a6c18a")[number])
    ImageDraw.Draw(image).rectangle((60 + 40 * number, 80, 220, 240), fill="#b92e38")
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()
