"""Captions of scenes, on which the language model is trained first, to use the image; they have no question or preference.

There are two forms: accounts list the objects place by place, and "things seen" list shapes with one attribute each. Critiques
have the same elements.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrlhf_jax import strict_json
from mmrlhf_jax.quickstart.scenes import PLACES, SHAPES, SceneObject, objects_from_key

PROMPT = "Say what the picture shows."
SEEN = "Seen"
THINGS_SEEN = 8  # per caption


def account(objects: Sequence[SceneObject], marks: Mapping[str, str] | None = None) -> str:
    """The objects in reading order of their places, each followed by its mark: "upper left large red circle wrong, ..."."""
    there, marks = {thing.place: thing.phrase for thing in objects}, marks or {}
    return ", ".join(f"{there.get(place, f'{place} nothing')} {marks.get(place, '')}".rstrip() for place in PLACES)


def things_seen(objects: Sequence[SceneObject], rng: random.Random) -> str:
    """Shapes in random order, mostly those in the image, each with its colour, size or place ("nothing" if it is absent)."""
    by_shape = {thing.shape: thing for thing in objects}
    found = []
    for _ in range(THINGS_SEEN):
        shape = rng.choice(SHAPES if rng.random() < 0.3 else list(by_shape))
        thing = by_shape.get(shape)
        found.append(
            f"{shape} {'nothing' if thing is None else rng.choice((thing.colour, thing.colour, thing.size, thing.place))}"
        )
    return ", ".join(found)


def caption_records(records_path: Path, seed: int) -> tuple[Path, Path]:
    """Write `accounts.jsonl` and `captions.jsonl` beside a split's records, with one record per image: the first with its
    account as response, the second also with a "things seen" response."""
    rng, accounts, captions = random.Random(f"{seed}/captions"), {}, {}
    for line in filter(None, records_path.read_text().split("\n")):
        row = strict_json.loads(line)
        name, objects = row["id"].rsplit("-", 1)[0], objects_from_key(row["scene"])
        if name in accounts:
            continue
        texts = [f"The picture shows: {account(objects)}.", f"{SEEN}: {things_seen(objects, rng)}."]
        record = {"id": f"{name}-caption", "images": row["images"], "prompt": PROMPT, "source": row["source"]}
        accounts[name] = record | {"responses": [{"text": texts[0]}]}
        captions[name] = record | {"responses": [{"text": text} for text in texts]}
    paths = records_path.parent / "accounts.jsonl", records_path.parent / "captions.jsonl"
    for path, records in zip(paths, (accounts, captions), strict=True):
        path.write_text("".join(f"{strict_json.dumps(record)}\n" for record in records.values()))
    return paths


def with_captions(records_path: Path, captions_path: Path) -> Path:
    """Write `with_captions.jsonl`: the records, followed by the captions of their images."""
    path = records_path.parent / "with_captions.jsonl"
    path.write_text(records_path.read_text() + captions_path.read_text())
    return path
