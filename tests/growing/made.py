"""Grown directories as `mmrlhf annotate` leaves them, without any model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrlhf_jax.growing.directory import GrownDirectory
from tests import ranked


def answer(text: str, reward: float, rank: int, **more: Any) -> dict[str, Any]:
    return {"text": text, "reward": reward, "rank": rank, "model": "policy", "flags": []} | more


def row(name: str, *answers: dict[str, Any], prompt: str = "What is it?", source: str = "scenes", **more: Any) -> dict:
    return {"id": name, "prompt": f"{prompt} ({name})", "source": source, "responses": list(answers)} | more


def directory(path: Path, rows: Sequence[dict[str, Any]], pictures: int = 0) -> Path:
    """Every record has so many pictures of its own."""
    grown = GrownDirectory(path)
    grown.settle({"round": 1}, {"policy": "p", "critic": "c"})
    written = []
    for number, each in enumerate(rows):
        names = [f"media/{number}_{place}.png" for place in range(pictures)]
        for place, name in enumerate(names):
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(ranked.picture((40, 30), 10 * number + place))
        written.append(each | ({"images": names} if names else {}))
    (path / "records.jsonl").write_text("".join(json.dumps(each) + "\n" for each in written))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def verdict(entry: dict[str, Any], ratings: dict[str, int | str], who: str = "anna", **more: Any) -> dict[str, Any]:
    """A line as the page saves it: `ratings` by the digest of an answer; "same" as the one above."""
    answers = [
        {"digest": digest} | ({"same_as_above": True} if ratings[digest] == "same" else {"rating": ratings[digest]})
        for digest in entry["answers"]
    ]
    when = "2026-03-01T10:00:00Z"
    return {"id": entry["id"], "prompt": entry["prompt"], "answers": answers, "who": who, "when": when, "tool": "page"} | more
