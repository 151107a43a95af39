"""Captions: what a language model's first stage learns to see from. No question, nothing to prefer.

There is one form of them, the account, and a critique opens with it: the little that a model of this size can learn of seeing
in a minute, it learns once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmrlhf_jax.quickstart.scenes import PLACES, SceneObject, objects_from_key

PROMPT = "Say what the picture shows."


def account(objects: Sequence[SceneObject]) -> str:
    """Place by place, in reading order: "upper left large red circle, upper right nothing, ..."."""
    there = {thing.place: thing.phrase for thing in objects}
    return ", ".join(there.get(place, f"{place} nothing") for place in PLACES)


def caption_records(records_path: Path) -> Path:
    """`captions.jsonl` beside a split's records: for every picture one record, with its account as the only response."""
    captions = {}
    for line in records_path.read_text().splitlines():
        row = json.loads(line)
        name, text = row["id"].rsplit("-", 1)[0], f"The picture shows: {account(objects_from_key(row['scene']))}."
        caption = {"id": f"{name}-caption", "images": row["images"], "prompt": PROMPT, "source": row["source"]}
        captions[name] = caption | {"responses": [{"text": text}]}
    path = records_path.parent / "captions.jsonl"
    path.write_text("".join(f"{json.dumps(caption)}\n" for caption in captions.values()))
    return path


def with_captions(records_path: Path, captions_path: Path) -> Path:
    """`with_captions.jsonl`: the records, and the captions of their pictures."""
    path = records_path.parent / "with_captions.jsonl"
    path.write_text(records_path.read_text() + captions_path.read_text())
    return path
