"""Finished lines are stored soon, whatever comes after them."""

from __future__ import annotations

import json
import time

import pytest
from etils import epath

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import journal
from mmrlhf_jax.inference.journal import Journal


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path / "parts")


def any_line(index, line) -> bool:
    return True


def stored(folder) -> list[int]:
    parts = sorted(folder.glob("*.jsonl")) if folder.exists() else []
    return [json.loads(text)["index"] for part in parts for text in part.read_text().splitlines()]


def wait_for(check) -> None:
    end = time.monotonic() + 10
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_line_is_stored_in_time_though_no_other_one_follows(folder, monkeypatch):
    monkeypatch.setattr(journal, "PART_SECONDS", 0.2)
    kept = Journal(folder, 0, any_line)
    kept.add(3, {"id": "d"})
    assert stored(folder) == []
    wait_for(lambda: stored(folder) == [3])
    kept.add(1, {"id": "b"})
    kept.save()
    assert sorted(stored(folder)) == [1, 3] and kept.lines.keys() == {1, 3}


def test_a_line_that_could_not_be_stored_in_time_is_stored_by_the_next_call(folder, monkeypatch):
    monkeypatch.setattr(journal, "PART_SECONDS", 0.1)
    tries, write = [], journal.write_atomically

    def fails_once(path, content):
        tries.append(path)
        if len(tries) == 1:
            raise OSError("no room")
        write(path, content)

    monkeypatch.setattr(journal, "write_atomically", fails_once)
    kept = Journal(folder, 0, any_line)
    kept.add(0, {"id": "a"})
    wait_for(lambda: tries)
    kept.save()
    assert stored(folder) == [0]


def test_a_line_with_a_number_that_is_not_finite_is_refused_and_the_others_stay(folder):
    kept = Journal(folder, 0, any_line)
    kept.add(0, {"id": "a"})
    with pytest.raises(UserError, match="record 'b'"):
        kept.add(1, {"id": "b", "reward": float("nan")})
    kept.save()
    assert stored(folder) == [0] and kept.lines.keys() == {0}


def test_work_that_leaves_a_record_out_is_found(folder):
    with pytest.raises(RuntimeError, match="1 records, the first of which is 2"):
        Journal(folder, 0, any_line).fill([1, 2], lambda indices: iter([(1, {"id": "a"})]))
