"""The profiler's window opens at its step, closes when its last step has ended, and never stays open."""

from __future__ import annotations

import jax
import pytest
from etils import epath

from mmrlhf_jax.training.profiler import ProfilerWindow


@pytest.fixture
def events(monkeypatch):
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: found.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


def run(events, window: ProfilerWindow, steps: int) -> list:
    for step in range(steps):
        window.before(step)
        events.append(step)
        window.after(step + 1)
    window.close()
    return events


@pytest.mark.parametrize(
    ("first", "steps", "expected"),
    [
        (None, 4, [0, 1, 2, 3]),
        (1, 4, [0, "start", 1, 2, "stop", 3]),
        (3, 4, [0, 1, 2, "start", 3, "stop"]),  # the run ends inside the window
    ],
)
def test_the_window_is_two_steps_long(events, tmp_path, first, steps, expected):
    assert run(events, ProfilerWindow(epath.Path(tmp_path), first, 2), steps) == expected
