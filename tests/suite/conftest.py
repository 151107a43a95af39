"""The processes of lmms-eval, which take seconds to start, for all tests of it."""

from __future__ import annotations

import pytest

from mmrlhf_jax.suite.harness.running import Harness


@pytest.fixture(scope="session")
def running(tmp_path_factory):
    with Harness(tmp_path_factory.mktemp("logs")) as found:
        yield found
