"""A run over images of many sizes compiles its train step once: sizes change what rows hold, and no shape."""

from __future__ import annotations

import numpy as np
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.training import loop
from mmrlhf_jax.training import run as run_module
from tests import ranked
from tests.families import FAMILIES

IMAGES = 50
LAUNCH = config.Launch(mesh=config.Mesh(data=1, fsdp=1))
pytestmark = pytest.mark.usefixtures("one_device")


class Watched:
    """A jitted train step that remembers, of every batch, the sizes of all arrays and the numbers of the used visual tokens."""

    def __init__(self, step):
        self.step, self.batches = step, []

    def __call__(self, state, batch):
        shapes = tuple(np.shape(x) for x in batch if not isinstance(x, tuple)) + tuple(np.shape(x) for x in batch.media)
        visual = tuple(int(n) for n in (np.asarray(batch.media.weights) != 0).any(axis=-1).sum(axis=1))
        groups = int((np.asarray(batch.response_ids) >= 0).sum()) // 2
        self.batches.append((shapes, visual, groups))
        return self.step(state, batch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.long
def test_a_stream_of_fifty_images_of_random_sizes(tmp_path, monkeypatch, family):
    """From files to steps, by the loop of `mmrlhf train`."""
    sizes = np.random.default_rng(5).integers(8, 240, (IMAGES, 2)).tolist()
    assert len({tuple(size) for size in sizes}) == IMAGES
    experiment = config.Experiment(
        model=config.Model(path=str(FAMILIES[family].checkpoint(tmp_path / "model")), dtype="float32", remat="none"),
        data=config.Data(path=str(ranked.write(tmp_path / "data", [(1, 2)] * IMAGES, [[tuple(size)] for size in sizes]))),
        objective=config.Preference(scaling=config.Scaling(mode="fixed")),
        optimizer=config.Optimizer(learning_rate=1e-3),
        batch=config.Batch(rows=2, slots=1024, logprob_chunk=64),
        run=config.Run(directory=str(tmp_path / "run")),
    )
    made, make = [], run_module.make_train_step
    monkeypatch.setattr(run_module, "make_train_step", lambda *a, **k: made.append(Watched(make(*a, **k))) or made[-1])
    loop.train(experiment, LAUNCH)
    (watched,) = made
    shapes, visual, groups = zip(*watched.batches, strict=True)
    assert sum(groups) == IMAGES and len(shapes) > 3 and len({*visual}) == len(shapes)
    assert len({*shapes}) == 1
    assert watched.step._cache_size() == 1
