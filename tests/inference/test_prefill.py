"""The chunks that put trunks and prompts into the cache: their sizes depend on each text alone."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from mmrlhf_jax.inference.group import Group, Slot
from mmrlhf_jax.inference.lane import Lane
from mmrlhf_jax.inference.prefill import Prefill
from mmrlhf_jax.inference.programs import Programs
from mmrlhf_jax.inference.requests import Branch, Tree, Written
from mmrlhf_jax.inference.unstacked import TwoForms
from mmrlhf_jax.sharding.mesh import make_mesh
from tests import tiny

LANE = Lane(rows=2, trunk=1536, places=2, slots=2, branch=512)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Programs of a lane on three groups of devices, which compute nothing."""
    model = tiny.on_one_device(tiny.checkpoint(tmp_path_factory.mktemp("model"), tiny.config()))
    found = Programs(TwoForms(model), LANE, make_mesh({}, jax.devices()[:1]))
    found.groups = 3
    return found


def tokens(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32)


def of_trunks(programs, monkeypatch, lengths) -> list[list[tuple[int, int, int]]]:
    """Per group, (first token, tokens, size) of every chunk of one trunk with this length."""
    groups, found = [Group(LANE.rows, LANE.slots) for _ in lengths], [[] for _ in lengths]
    for group, length in zip(groups, lengths, strict=True):
        row = group.rows[0]
        row.tree = Tree(tokens(length), tokens(length), ())
        row.waiting.append((Branch(tokens(1), length, most=1), Written()))
        group.trunks.append(row)

    def extend(weights, cache, visual, chunk):
        for number in np.flatnonzero(chunk.count):
            assert chunk.tokens[number, : chunk.count[number]].tolist() == list(range(*_ends(chunk, number)))
            found[number].append((int(chunk.start[number]), int(chunk.count[number]), chunk.tokens.shape[1]))
        return cache

    placed = []
    monkeypatch.setattr(programs, "extend_trunk", extend)
    monkeypatch.setattr(programs, "place", lambda cache, rows: (placed.append(rows), cache)[1])
    prefill = Prefill(programs, None, groups)
    while prefill.extend("cache") is not None:
        pass
    assert np.sort(placed, axis=0)[:2].tolist() == [[0] * len(groups), [LANE.rows] * len(groups)][: len(placed)]  # each once
    assert all(group.rows[0].ready and not group.trunks for group in groups)
    return found


def _ends(chunk, number: int) -> tuple[int, int]:
    start = int(chunk.start[number])
    return start, start + int(chunk.count[number])


@pytest.mark.parametrize("lengths", [(1, 1536, 100), (512, 513, 640), (385, 1400, 1025), (1536, 1536, 129)])
def test_a_trunk_has_the_same_chunks_alone_and_in_company(programs, monkeypatch, lengths):
    together = of_trunks(programs, monkeypatch, lengths)
    for chunks, length in zip(together, lengths, strict=True):
        assert of_trunks(programs, monkeypatch, [length]) == [chunks]
        assert sum(count for _, count, _ in chunks) == length
        assert all(start + size <= LANE.trunk for start, _, size in chunks)


def test_chunks_of_both_sizes_take_turns(programs, monkeypatch):
    """A short trunk does not wait until long ones are there."""
    sizes = []
    monkeypatch.setattr(Prefill, "_chunk", lambda *given, chunk=Prefill._chunk: _noted(sizes, chunk(*given)))
    of_trunks(programs, monkeypatch, (1536, 100, 1536))
    assert sizes == [512, 128, 512, 512]


def _noted(sizes: list[int], made):
    sizes.append(made[0].tokens.shape[1])
    return made


@pytest.mark.parametrize("length", [2, 64, 65, 257, 512])
def test_the_prompt_of_a_branch_ends_within_its_slots(programs, monkeypatch, length):
    """Its last token is fed by the step that chooses the first new one."""
    group, found = Group(LANE.rows, LANE.slots), []
    group.rows[0].tree = Tree(tokens(3), tokens(3), ())
    slot = group.slots[1] = Slot(1, group.rows[0], 0, Branch(tokens(length), 3, most=1), Written())
    group.branches.append(slot)

    def extend(weights, cache, chunk):
        found.append((*_ends(chunk, 0), int(chunk.positions[0, 0]), int(chunk.slot[0]), int(chunk.trunk[0])))
        return cache

    monkeypatch.setattr(programs, "extend_branch", extend)
    prefill = Prefill(programs, None, [group])
    while prefill.extend("cache") is not None:
        pass
    assert [start for start, *_ in found] == [0, *(end for _, end, *_ in found[:-1])] and found[-1][1] == length - 1
    assert all((position, where, trunk) == (start + 3, 1, 3) for start, _, position, where, trunk in found)
    assert slot.runs and list(slot.forced) == [length - 1]


def test_what_was_cancelled_is_not_computed(programs, monkeypatch):
    group = Group(LANE.rows, LANE.slots)
    row = group.rows[0]
    row.tree, row.done = Tree(tokens(900), tokens(900), ()), 512  # half of it is there, and nobody waits for it
    group.trunks.append(row)
    gone = Slot(0, row, 0, Branch(tokens(9), 3, most=1), Written())
    group.branches.append(gone)
    assert Prefill(programs, None, [group]).extend("cache") is None
    assert row.tree is None and not group.trunks and not group.branches


def test_a_trunk_with_any_key_is_found_again():
    group = Group(LANE.rows, LANE.slots)
    for key in (0, "", "key", (1, 2)):
        group.rows[1].tree = dataclasses.replace(Tree(tokens(1), tokens(1), ()), key=key)
        assert group.find(key) is group.rows[1] and group.find(None) is None
