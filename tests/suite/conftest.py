"""What several tests share: the processes of lmms-eval, which take seconds to start, and directories of runs."""

from __future__ import annotations

import pytest

from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.harness.running import Harness
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.published import FIGURES
from mmrlhf_jax.suite.results import Document, Results
from tests.suite.support.reports import BASE, MODEL, write


@pytest.fixture(scope="session")
def running(tmp_path_factory):
    with Harness(tmp_path_factory.mktemp("logs")) as found:
        yield found


@pytest.fixture
def model(tmp_path):
    return write(tmp_path / "aligned", MODEL, {"model": "models/aligned", "judge": {"name": "gpt", "url": None}})


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "base", BASE, {"model": "models/base"})


@pytest.fixture
def papers(tmp_path):
    """A run whose results are the paper's figures of a model, one document each."""
    directory = tmp_path / "paper"
    for task in MM_RLHF.tasks.values():
        values = {row.name: FIGURES["LLaVA-OV-7B"][row.part_of or row.name] for row in task.rows}
        document = Document("0", "0", "?", (), "A", None, values)
        found = {name: results.Figure(value) for name, value in values.items()}
        results.write(directory, Results(task.name, "lmms-eval 0.7.3", {}, found, (document,)))
    return directory
