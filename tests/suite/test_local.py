"""`--data TASK=FILE`: which documents of their own tasks have."""

from __future__ import annotations

import pyarrow
import pyarrow.parquet
import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite.local import Local, parse


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "mme.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    return path


def test_a_task_a_benchmark_and_a_folder(tmp_path, lines):
    found = parse([f"mme={lines}", f"pope={tmp_path}"])
    assert sorted(found) == ["mme", "pope_adv", "pope_pop", "pope_random"]
    assert (found["mme"].documents, found["mme"].folder) == (2, str(tmp_path))
    pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2, 3]}), tmp_path / "more.parquet")
    assert Local(str(tmp_path)).documents == 5
    assert Local(str(tmp_path)).folder == str(tmp_path)


def test_the_fingerprint_is_that_of_the_files(lines):
    before = Local(str(lines)).fingerprint
    assert Local(str(lines)).fingerprint == before
    lines.write_text('{"a": 1}\n')
    assert Local(str(lines)).fingerprint != before


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mme", "expected TASK=FILE"),
        ("=x", "expected TASK=FILE"),
        ("mmee=tests/x.jsonl", "did you mean mme"),
        ("mme=/no/such.jsonl", "/no/such.jsonl: there is no such file"),
        ("mme=README.md", "neither .parquet nor .jsonl"),
        ("mme=launch", "has no files .parquet or .jsonl"),
    ],
)
def test_what_is_wrong_is_said(value, message):
    with pytest.raises(UserError, match=message):
        parse([value])


def test_a_task_has_one_file(tmp_path, lines):
    other = tmp_path / "other.jsonl"
    other.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="pope_adv has two files"):
        parse([f"pope={lines}", f"pope_adv={other}"])


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR0")
    with pytest.raises(UserError, match="not a parquet file that can be read"):
        _ = Local(str(tmp_path / "a.parquet")).documents
