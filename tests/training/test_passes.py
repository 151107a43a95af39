"""Evaluation, reference pass and scoring overlap with the device as training does, and their workers change no number."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest

from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.scored_rows import scored_rows
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.inference import scoring
from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry
from mmrlhf_jax.objectives.outputs import Outputs
from mmrlhf_jax.objectives.weighted import WeightedSum
from mmrlhf_jax.sharding.mesh import make_mesh
from mmrlhf_jax.training import held_out
from tests import ranked, tiny

RANKS = [(1, 2), (1, 2, 3), (1, 1, 2), (2, 1), (1, 2), (1, 3, 2)]
MESH = make_mesh({}, jax.devices()[:1])


class Device:
    """Runs batches and tells when: ("made", n), ("started", n), ("fetched", n), of batch n from 0."""

    def __init__(self, monkeypatch, module):
        self.events, self.workers, self._started = [], [], 0
        batches, fetched = module.batches, module.fetched

        def told(*arguments, workers, **options):
            self.workers.append(workers)
            for n, batch in enumerate(batches(*arguments, workers=0, **options)):
                self.events.append(("made", n))
                yield batch

        def fetching(results):
            for n, result in enumerate(fetched(results)):
                self.events.append(("fetched", n))
                yield result

        monkeypatch.setattr(module, "batches", told)
        monkeypatch.setattr(module, "fetched", fetching)

    def start(self):
        self.events.append(("started", self._started))
        self._started += 1


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    source = ranked.write(tmp_path_factory.mktemp("data"), RANKS, [[]] * len(RANKS))
    geometry = VisionGeometry(tiny.SIDE, 7, pinpoints=((tiny.SIDE, tiny.SIDE),), max_patches=9)
    encoder = GroupEncoder(PieceTokenizer(tiny.tokenizer(), tiny.IMAGE_TOKEN), geometry, "qwen_1_5")
    (found,) = scored_rows(open_examples(source), encoder)
    largest = found.index.sizes.max(axis=0)
    return dataclasses.replace(found, budget=Budget(*map(int, np.maximum(largest, 1))))  # a group a row, or two


def outputs_of(batch) -> tuple[Outputs, jax.Array]:
    """Numbers that depend on the batch's contents alone."""
    tokens = np.asarray(batch.tokens, np.float32).sum(axis=1, keepdims=True)
    found = jax.numpy.asarray(tokens + np.asarray(batch.response_ids, np.float32))
    return Outputs(found, found, found, found, found, found), found


def score(rows, device=None, workers=0):
    def step(params, frozen, batch):
        if device is not None:
            device.start()
        return outputs_of(batch)

    settings = dict(batch_rows=1, mesh=MESH, description="scoring", workers=workers)
    return scoring.score_responses(step, None, None, rows, **settings)


def judge(rows, device=None, workers=0):
    def step(state, batch):
        if device is not None:
            device.start()
        found, _ = outputs_of(batch)
        mean = WeightedSum(found.logps.sum(), jax.numpy.float32(1))
        return {"loss": mean}, {"mean": mean}

    task = types.SimpleNamespace(coefficients={"loss": 1.0})
    return held_out.evaluate(step, None, rows, task, batch_rows=1, mesh=MESH, workers=workers)


@pytest.mark.parametrize(("module", "run"), [(scoring, score), (held_out, judge)])
def test_the_next_batches_are_made_and_started_before_the_result_of_a_batch_is_fetched(rows, monkeypatch, module, run):
    device = Device(monkeypatch, module)
    run(rows, device, workers=3)
    count = rows.count(1)
    assert count > 4 and device.workers == [3]
    place = {event: i for i, event in enumerate(device.events)}
    for n in range(count - 1):
        assert place["made", n + 1] < place["fetched", n] and place["started", n + 1] < place["fetched", n]
    for n in range(count - 2):  # and no more than two are under way
        assert place["fetched", n] < place["started", n + 2]


@pytest.mark.slow
@pytest.mark.parametrize("run", [score, judge])
def test_worker_processes_change_no_number(rows, run):
    alone, helped = run(rows), run(rows, workers=2)
    jax.tree.map(np.testing.assert_array_equal, alone, helped)
