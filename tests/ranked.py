"""Small ranked data sets for tests: noise pictures of given sizes, prompts and responses with ranks, critiques and rewards."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORDS = ("the", "a", "red", "blue", "small", "large", "kite", "bird", "sky", "over", "under", "near", "is", "not", "there")


def picture(size: tuple[int, int], seed: int) -> bytes:
    """A PNG of (width, height) random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words)).capitalize() + "."


def rows(ranks: Sequence[Sequence[int]], images: Sequence[Sequence[tuple[int, int]]], seed: int = 0) -> list[dict[str, Any]]:
    """One record per entry: `ranks[i]` are its responses' ranks, `images[i]` the sizes of its pictures."""
    rng = np.random.default_rng(seed)
    out = []
    for i, (of_group, sizes) in enumerate(zip(ranks, images, strict=True)):
        responses = [
            {
                "text": sentence(rng, int(rng.integers(1, 7))),
                "rank": rank,
                "critique": sentence(rng, int(rng.integers(2, 8))),
                "reward": round(float(rng.normal()), 3),
                "scores": {"helpfulness": 5 - rank, "faithfulness": 4, "ethics": 5},
            }
            for rank in of_group
        ]
        files = [f"{i}_{j}.png" for j in range(len(sizes))]
        out.append({"id": f"group-{i}", "images": files, "prompt": sentence(rng, 5), "responses": responses})
    return out


def write(directory: Path, ranks: Sequence[Sequence[int]], images: Sequence[Sequence[tuple[int, int]]], seed: int = 0) -> Path:
    """`records.jsonl` and its pictures in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    made = rows(ranks, images, seed)
    for i, (row, sizes) in enumerate(zip(made, images, strict=True)):
        for name, size in zip(row["images"], sizes, strict=True):
            (directory / name).write_bytes(picture(size, 100 * seed + i))
    path = directory / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path
