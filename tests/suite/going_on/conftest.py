"""What tests of commands that are given again share: documents, and the verb."""

from __future__ import annotations

import contextlib
import json

import pytest

from mmrlhf_jax import cli
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import endpoint
from tests.serving.fakes import Fake
from tests.suite.support import made_up_own
from tests.suite.support.going_on import JUDGED, PLAIN


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(endpoint, "_pause", lambda *_: 0.0)


@pytest.fixture
def data(tmp_path) -> dict[str, str]:
    return {name: str(made_up_own.write(tmp_path / "data", name, "jsonl")) for name in (*PLAIN, *JUDGED)}


@pytest.fixture
def run(tmp_path, data, capsys):
    """Runs the verb with the policy at a server, in the folder "out". `fails`: the message with which it ends. `works`: whether
    a task has a figure in the end."""

    def ran(policy: Fake, *options: str, only=PLAIN, fails: str | None = None, works=True, verb="safety-bench"):
        arguments = ["eval", verb, "--policy-endpoint", policy.url, "--out", str(tmp_path / "out"), "--json"]
        arguments += [f"--data={name}={data[name]}" for name in only] + ["--benchmark", ",".join(only)]
        capsys.readouterr()
        if fails is not None:
            with pytest.raises(UserError) as error:
                cli.app([*arguments, *options], standalone_mode=False)
            assert fails in str(error.value), error.value
            return None
        with contextlib.nullcontext() if works else pytest.raises(UserError, match="no task has a figure"):
            assert not cli.app([*arguments, *options], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    return ran
