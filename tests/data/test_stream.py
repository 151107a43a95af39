"""The stream: every group once per epoch, the same global batches whatever the hosts, workers and interruptions."""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mmrlhf_jax.data.packing import epoch_groups
from mmrlhf_jax.data.rows import map_arrays, stack_rows
from mmrlhf_jax.data.stream import batches
from mmrlhf_jax.errors import UserError
from tests.data import groups

COUNT, BATCH_ROWS, EPOCHS = 24, 4, 2


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return groups.write(tmp_path_factory.mktemp("groups"), COUNT)


@pytest.fixture(scope="module")
def rows(source):
    return groups.rows(source)


@pytest.fixture(scope="module")
def whole(rows):
    return hashes(rows)


def run(rows, **options):
    total = rows.count(EPOCHS)
    return batches(rows, batch_rows=BATCH_ROWS, steps=-(-total // BATCH_ROWS), total=total, **options)


def hashes(rows, **options) -> list[str]:
    return [groups.digest(batch) for batch in run(rows, **options)]


def test_every_group_is_delivered_once_per_epoch_in_another_order(rows):
    epochs, start = [], 0
    for epoch in range(3):
        count = len(rows.plan(epoch))
        epochs.append([int(g) for t in range(start, start + count) for g in rows.groups(t)])
        start += count
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert start == rows.count(3)


@pytest.mark.parametrize("weight", [None, 0.65, 1.55])
def test_the_epoch_of_a_number_of_rows_is_whole_where_one_ends_and_a_share_of_its_own_rows_between(rows, weight):
    """Epochs of weighted sets differ in length; the one behind the last row need not be planned to be told."""
    weights = None if weight is None else np.full(len(rows.index.groups), weight)
    weighted = dataclasses.replace(rows, index=dataclasses.replace(rows.index, weights=weights))
    counts = [len(weighted.plan(epoch)) for epoch in range(4)]
    assert weight is None or len(set(counts)) > 1
    for epoch, count in enumerate(counts):
        before = sum(counts[:epoch])
        assert [weighted.epochs(before + row) for row in range(count)] == [epoch + row / count for row in range(count)]
    assert weighted.epochs(sum(counts)) == 4.0


def test_the_batches_hold_what_the_plan_says(rows):
    """Every response of the data set arrives once per epoch; padding rows at the end hold none."""
    arrived = collections.Counter()
    for batch in run(rows):
        arrived.update(batch.response_ids[batch.response_ids >= 0].tolist())
    assert arrived == dict.fromkeys(range(rows.index.responses), EPOCHS)


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_number_of_hosts_does_not_change_the_global_batches(rows, whole, hosts):
    parts = zip(*[run(rows, host=host, hosts=hosts) for host in range(hosts)], strict=True)
    joined = [map_arrays(lambda *arrays: np.concatenate(arrays), *part) for part in parts]
    assert [groups.digest(batch) for batch in joined] == whole


def test_each_host_reads_only_its_rows(rows):
    opened = []

    class Watched:
        records, weights, fingerprint = rows.examples.records, None, rows.examples.fingerprint

        def __len__(self):
            return COUNT

        def __getitem__(self, index):
            opened.append(index)
            return rows.examples[index]

    watched = dataclasses.replace(rows, examples=Watched())
    for _ in run(watched, host=1, hosts=2):
        pass
    total, local = rows.count(EPOCHS), BATCH_ROWS // 2
    mine = [t for t in range(total) if t % BATCH_ROWS // local == 1]
    assert sorted(opened) == sorted(int(g) for t in mine for g in rows.groups(t))


def test_a_stop_after_any_step_continues_the_same_sequence(rows, whole):
    for start in range(len(whole)):
        assert hashes(rows, start=start) == whole[start:]


@pytest.mark.long
def test_worker_processes_give_the_same_batches_and_are_gone_afterwards(rows, whole):
    """Also for texts that spell control tokens: a tokenizer that crossed into another process still takes them for text."""
    assert hashes(rows, workers=2) == whole
    assert not multiprocessing.active_children()


def test_another_seed_gives_another_order(rows, whole, source):
    assert hashes(groups.rows(source, seed=8)) != whole


def test_text_image_images_and_video_share_a_row(source):
    rows = groups.rows(source, slots=8192)
    batch, numbers = rows.row(0), rows.groups(0)
    assert {int(g) % 4 for g in numbers} == {0, 1, 2, 3}
    sizes = rows.index.sizes[numbers]
    visual = batch.media.slots < rows.budget.slots
    assert visual.sum() == sizes[:, 2].sum()
    assert (batch.tokens[batch.media.slots[visual]] == rows.encoder.tokenizer.image_token).all()
    assert (batch.tokens == rows.encoder.tokenizer.image_token).sum() == visual.sum()  # hostile texts add none
    tiles = batch.media.tiles.reshape(len(batch.media.tiles), -1).any(axis=1)
    assert tiles.sum() == sizes[:, 1].sum()
    # Every group sees itself only: what one of its slots sees ends where its last response does.
    ends = np.cumsum(sizes[:, 0])
    for start, end in zip(ends - sizes[:, 0], ends, strict=True):
        assert (batch.visible_until[start:end] <= end).all() and (batch.positions[start] == 0)


def test_the_rows_of_a_stack_are_the_rows_alone(rows):
    (first,) = batches(rows, batch_rows=2, steps=1, total=2)
    assert groups.digest(first) == groups.digest(stack_rows([rows.row(0), rows.row(1)]))


# Ends of a stream ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_an_abandoned_stream_leaves_no_threads_and_no_processes(rows, workers):
    def abandon(threads: int) -> None:
        stream = run(rows, workers=workers)
        next(stream)
        stream.close()
        deadline = time.monotonic() + 10
        while (threading.active_count() > threads or multiprocessing.active_children()) and time.monotonic() < deadline:
            time.sleep(0.05)

    abandon(1000)  # the first one in a process starts pools of threads, which later ones share
    before = threading.active_count()
    abandon(before)
    assert threading.active_count() <= before and not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.long
def test_an_error_while_reading_is_the_users_and_ends_the_stream_cleanly(tmp_path, workers):
    path = groups.write(tmp_path, 8)
    rows = groups.rows(path)
    (tmp_path / "5_0.png").unlink()
    with pytest.raises(Exception, match=r"record 'group-5': media file '5_0\.png' does not exist") as error:
        hashes(rows, workers=workers)
    assert isinstance(error.value, UserError) or workers  # Grain wraps what a process raises
    assert not multiprocessing.active_children()


READER = """
import os, sys
from tests.data import groups
from mmrlhf_jax.data.stream import batches

if __name__ == "__main__":
    rows = groups.rows(sys.argv[1])
    log = open(sys.argv[2], "a")
    start = sum(1 for _ in open(sys.argv[2]))
    total = rows.count(2)
    for batch in batches(rows, batch_rows=4, steps=-(-total // 4), total=total, start=start, workers=1):
        log.write(groups.digest(batch) + "\\n")
        log.flush()
        os.fsync(log.fileno())
        print("step", flush=True)
"""


@pytest.mark.long
def test_a_reader_killed_at_any_moment_loses_and_repeats_nothing(source, whole, tmp_path):
    """SIGKILL after some steps, twice; the position is one integer, the number of steps that were done."""
    (tmp_path / "reader.py").write_text(READER)
    command = [sys.executable, str(tmp_path / "reader.py"), str(source), str(tmp_path / "log")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
    (tmp_path / "log").touch()
    for steps in (1, 2):
        reader = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True)
        for _ in range(steps):
            reader.stdout.readline()
        os.killpg(reader.pid, signal.SIGKILL)
        reader.wait()
    assert 3 <= len((tmp_path / "log").read_text().splitlines()) <= len(whole)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "log").read_text().splitlines() == whole


# Which groups an epoch sees ------------------------------------------------------------------------------------------


def test_weights_say_how_often_an_epoch_sees_a_group():
    weights = np.repeat([1.0, 2.0, 0.5, 0.25], 40)
    epochs = [epoch_groups(160, weights, seed=3, epoch=epoch) for epoch in range(8)]
    seen = np.stack([np.bincount(epoch, minlength=160) for epoch in epochs])
    assert (seen[:, :40] == 1).all() and (seen[:, 40:80] == 2).all()
    assert (seen[0::2, 80:120] + seen[1::2, 80:120] == 1).all()  # each once in two epochs
    assert (seen[:4, 120:].sum(axis=0) == 1).all() and (seen[4:, 120:].sum(axis=0) == 1).all()
    assert (abs(seen[:, 80:120].sum(axis=1) - 20) <= 9).all()  # and about half of them in each


def test_a_weighted_mixture_streams_its_sets_in_proportion(source, tmp_path):
    from mmrlhf_jax.data.mixture import Part

    other = groups.write(tmp_path, 8, seed=1)
    rows = groups.rows([Part(str(source)), Part(str(other), weight=2.0)])
    seen = collections.Counter(int(g) for row in range(len(rows.plan(0))) for g in rows.groups(row))
    assert seen == dict.fromkeys(range(COUNT), 1) | dict.fromkeys(range(COUNT, COUNT + 8), 2)
    assert rows.once().count(1) < rows.count(1)
    once = [int(g) for row in range(rows.once().count(1)) for g in rows.once().groups(row)]
    assert sorted(once) == list(range(COUNT + 8))


def test_budgets_are_what_the_stream_keeps_to(rows):
    for t in range(rows.count(1)):
        used = rows.index.sizes[rows.plan(0)[t]].sum(axis=0)
        assert (used <= rows.budget.vector).all()
