"""Every fault in every phase of a run, in one process and in one of two, ends as it must (`cells`), and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import cells
from tests.faults.matrix import BEGIN, END, Matrix


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JAX_COMPILATION_CACHE_DIR", "")  # `Matrix` sets it; afterwards it is what it was
        environment.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield Matrix(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", cells.FAULTS)
@pytest.mark.parametrize("phase", cells.PHASES)
@pytest.mark.parametrize("layout", cells.LAYOUTS)
def test_no_fault_loses_more_than_the_steps_since_the_last_checkpoint(matrix, fault, phase, layout):
    matrix.run_cell(fault, phase, cells.LAYOUTS[layout])


def test_the_page_of_launching_has_a_place_for_the_table():
    text = (Path(__file__).parents[2] / "docs" / "launching.md").read_text()
    assert BEGIN in text and END in text
