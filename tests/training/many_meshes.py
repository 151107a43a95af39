"""`python -m tests.training.many_meshes DIR FAMILY OBJECTIVE MESHES`: the group step on several meshes against one device's.

MESHES is a JSON list of sizes of mesh axes. A process of its own, because the number of virtual CPU devices is settled when jax
starts (`test_meshes.py`).
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

from mmrlhf_jax.tasks import task_of
from tests.families import WITH_VIDEOS
from tests.training import groups
from tests.training.groups import OBJECTIVES, assert_same_step, packed

ROWS = 4  # the last one is empty


def main(directory: Path, family: str, name: str, meshes: list[dict[str, int]]) -> None:
    checkpoint = groups.checkpoint(directory / "model", family)
    examples = groups.examples(directory / "data", video=family in WITH_VIDEOS)
    objective = OBJECTIVES[name]
    mesh, model = groups.load(checkpoint, 1)
    rows = unevenly(packed(model, examples, task_of(objective).conversation, rows=ROWS))
    expected = groups.step(mesh, model, objective, rows)
    for axes in meshes:
        mesh, model = groups.load(checkpoint, math.prod(axes.values()), axes=axes)
        assert_same_step(groups.step(mesh, model, objective, rows), expected)
        print(f"{family}, {name}, {axes}: equal")


def unevenly(rows):
    """The rows with an odd number of targets and of visual slots, so that no axis of an even size divides them."""
    count, slots = rows.ends.shape[1], rows.tokens.shape[1]
    unused = {"targets": 0, "predictors": 0, "responses": count}
    rows = rows._replace(**{field: odd(getattr(rows, field), value) for field, value in unused.items()})
    media = rows.media
    media = media._replace(slots=odd(media.slots, slots), taps=odd(media.taps, 0), weights=odd(media.weights, 0))
    assert rows.targets.shape[1] % 2 and media.slots.shape[1] % 2
    return rows._replace(media=media)


def odd(x: np.ndarray, unused: int) -> np.ndarray:
    """[B, N, ...] with one more entry of this value in every row if N is even."""
    more = (x.shape[1] + 1) % 2
    return np.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2)), constant_values=unused)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:4], json.loads(sys.argv[4]))
