"""The quickstart's ranked multimodal data set: records about rendered scenes, byte for byte the same for the same seed."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path

from PIL import Image

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.quickstart.questions import Question, ask
from mmrlhf_jax.quickstart.responses import respond
from mmrlhf_jax.quickstart.scenes import Scene, render, sample_scene
from mmrlhf_jax.records import RankedRecord

# Relative frequency of each kind of question, among those that the scene allows.
KIND_WEIGHTS = {
    "colour": 0.17,
    "count": 0.17,
    "place": 0.16,
    "comparison": 0.15,
    "existence": 0.15,
    "description": 0.06,
    "unsafe": 0.14,
}
MOST_QUESTIONS = 5  # number of kinds of questions that every scene allows


def generate(
    seed: int | str, scenes: int, questions_per_scene: int, exclude: Set[str] = frozenset()
) -> Iterator[tuple[RankedRecord, Image.Image]]:
    """Yield records with their images: `questions_per_scene` consecutive ones per scene, all of different kinds.

    No scene occurs twice, and none whose key is in `exclude`. The questions of a scene share one relative image path; `extra`
    has the question (for `question_from_record`) and the scene's key. Raises UserError for invalid numbers.
    """
    if scenes < 1:
        raise UserError(f"quickstart data: the number of scenes must be at least 1, found {scenes}")
    if not 1 <= questions_per_scene <= MOST_QUESTIONS:
        limits = f"1 to {MOST_QUESTIONS}"
        raise UserError(f"quickstart data: questions_per_scene must be {limits}, found {questions_per_scene}")
    rng = random.Random(str(seed))
    seen = set(exclude)
    for _ in range(scenes):
        scene = sample_scene(rng)
        while scene.key in seen:
            scene = sample_scene(rng)
        seen.add(scene.key)
        image = render(scene)
        for question in _ask_several(scene, questions_per_scene, rng):
            yield _record(scene, question, rng), image


def write_dataset(
    out_dir: str | os.PathLike[str], *, seed: int, scenes: Mapping[str, int], questions_per_scene: int
) -> dict[str, Path]:
    """Write one folder per split of `scenes` (split -> number of scenes): `records.jsonl` with `images/*.png` beside it.

    Returns the paths of the JSONL files. No two splits have a scene in common. A `records.jsonl` appears only when it and its
    images are complete.
    """
    paths, keys = {}, frozenset()
    for split, count in scenes.items():
        folder = Path(out_dir) / split
        (folder / "images").mkdir(parents=True, exist_ok=True)
        path, partial, written = folder / "records.jsonl", folder / "records.jsonl.partial", set()
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for record, image in generate(f"{seed}/{split}", count, questions_per_scene, keys):
                if record.images[0] not in written:
                    image.save(folder / record.images[0])
                    written.add(record.images[0])
                file.write(strict_json.dumps(record.to_json()) + "\n")
                keys |= {record.extra["scene"]}
        partial.replace(path)
        paths[split] = path
    return paths


def corpus(records: Iterable[RankedRecord]) -> Iterator[str]:
    """Yield every text of the records: prompts, responses and critiques, on which the tokenizer is trained."""
    for record in records:
        yield record.prompt
        for response in record.responses:
            yield response.text
            if response.critique is not None:
                yield response.critique


def _ask_several(scene: Scene, number: int, rng: random.Random) -> list[Question]:
    """Questions of different kinds, drawn by weight."""
    weights = dict(KIND_WEIGHTS)
    questions = []
    while len(questions) < number:
        (kind,) = rng.choices(list(weights), weights=list(weights.values()))
        del weights[kind]
        question = ask(kind, scene, rng)
        if question is not None:
            questions.append(question)
    return questions


def _record(scene: Scene, question: Question, rng: random.Random) -> RankedRecord:
    name = hashlib.sha256(scene.key.encode()).hexdigest()[:12]
    return RankedRecord(
        id=f"{name}-{question.kind}",
        prompt=question.prompt,
        responses=respond(question, scene, rng),
        images=(f"images/{name}.png",),
        source="quickstart",
        extra={"category": question.kind, "question": question.to_json(), "scene": scene.key},
    )
