"""A run's own suite is read as it was written; a run without one is of MM-RLHF's."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.stored_suite import FILE, read_suite, write_suite
from tests.suite.support.runs import SUITE


def test_a_run_without_a_file_is_of_mm_rlhfs_benchmarks(tmp_path):
    assert read_suite(tmp_path) is MM_RLHF


def test_a_suite_is_read_as_it_was_written(tmp_path):
    write_suite(tmp_path, SUITE)
    assert read_suite(tmp_path) == dataclasses.replace(SUITE, headlines=())
    write_suite(tmp_path, MM_RLHF)
    found = read_suite(tmp_path)
    assert (found.benchmarks, found.axes) == (MM_RLHF.benchmarks, MM_RLHF.axes) and found.table == MM_RLHF.table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version is 2"),
        ({"axes": [{"name": "x"}]}, "axes.0.title: Field required"),
        ({"extra": 1}, "extra: Unexpected"),
        ({"dimensions": {}}, "row 'colours' is of dimension 'seeing', which there is not"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(tmp_path, change, message):
    write_suite(tmp_path, SUITE)
    stored = json.loads((tmp_path / FILE).read_text()) | change
    (tmp_path / FILE).write_text(json.dumps(stored))
    with pytest.raises(UserError, match=message) as error:
        read_suite(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / FILE}: ") and "\n" not in str(error.value)


def test_half_a_file_is_refused(tmp_path):
    write_suite(tmp_path, SUITE)
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text()[:-50])
    with pytest.raises(UserError, match=r"suite\.json: not JSON"):
        read_suite(tmp_path)
