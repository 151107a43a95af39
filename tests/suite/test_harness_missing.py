"""Where lmms-eval is not installed, or in another version, it is said how to get it."""

from __future__ import annotations

import sys

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness import running
from mmrlhf_jax.suite.harness.running import PYTHON, Harness
from mmrlhf_jax.suite.local import Local
from tests.suite.support import made_up

HOW = "`make eval-env` makes an environment that has it, in .venv-eval; then set MMRLHF_HARNESS_PYTHON=.venv-eval/bin/python"


def refused(tmp_path) -> str:
    """The message with which the first task ends."""
    local = Local(str(made_up.write("mme", tmp_path / "data")))
    options = {"until": False, "video_frames": 2, "limit": None}
    with (
        pytest.raises(UserError) as error,
        Harness(tmp_path / "logs") as found,
        found.ask(TASKS["mme"], local, options, {}, (0, 1)),
    ):
        pass
    return str(error.value)


def python(folder, *options: str):
    """A Python that is started with these options."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {" ".join(options)} "$@"\n')
    path.chmod(0o755)
    return path


def test_a_python_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv(PYTHON, "/no/such/python")
    said = refused(tmp_path)
    assert said.startswith("MMRLHF_HARNESS_PYTHON: /no/such/python cannot be started (")
    assert said.endswith("; set it to .venv-eval/bin/python of `make eval-env`")


def test_a_python_without_the_harness(tmp_path, monkeypatch):
    monkeypatch.setenv(PYTHON, str(python(tmp_path, "-S")))  # without any installed package
    said = refused(tmp_path)
    assert said.startswith("lmms-eval 0.7.3 cannot be started (ModuleNotFoundError: No module named ") and said.endswith(HOW)


def test_a_process_that_ends_without_a_message(tmp_path, monkeypatch):
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv(PYTHON, str(tmp_path / "python"))
    assert refused(tmp_path) == f"lmms-eval 0.7.3 cannot be started (it ended without a message); {HOW}"


def test_the_advice_is_the_make_target():
    assert running.INSTALL == HOW
