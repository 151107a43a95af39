"""A run that is killed ten times at random ends with the answers of one that is not, and hardly anything is said twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.suite.support import killed
from tests.suite.support.asked import only


def answers(directory) -> dict[str, dict[str, str]]:
    return {each.name: {name: found.answer for name, found in only(directory, each.name).items()} for each in killed.TASKS}


def started(out, said) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.suite.support.killed", str(out), str(said)], stderr=subprocess.DEVNULL
    )


@pytest.mark.slow  # twelve processes import all that answers
def test_ten_kills_at_random(tmp_path):
    said, kills = tmp_path / "said", 0
    while kills < 10:
        before = os.path.getsize(said) if said.exists() else 0
        process = started(tmp_path / "run", said)
        while process.poll() is None and (os.path.getsize(said) if said.exists() else 0) == before:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert started(tmp_path / "run", said).wait() == 0
    whole = tmp_path / "whole"
    assert started(whole, tmp_path / "said once").wait() == 0
    assert answers(tmp_path / "run") == answers(whole)
    lines = said.read_text().splitlines()
    # Of each kill at most the answer that was being handed over is lost.
    assert len(set(lines)) == 150 and len(lines) <= 150 + kills
