"""A signal ends a run behind a step, and before the first one at once."""

from __future__ import annotations

import os
import signal

import pytest

from mmrlhf_jax.exits import SIGNALLED
from mmrlhf_jax.training.stop import StopSignal


def test_before_the_first_step_sigterm_ends_at_once_with_the_status_that_launchers_restart_on():
    with pytest.raises(SystemExit) as end, StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.code == SIGNALLED


def test_before_the_first_step_an_interrupt_is_one():
    with pytest.raises(KeyboardInterrupt), StopSignal():
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_between_steps_it_is_a_request_and_a_second_ctrl_c_is_meant(first):
    before = signal.getsignal(first)
    with StopSignal() as stop:
        stop.steps_begin()
        os.kill(os.getpid(), first)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(first) is before


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_again_does_not_end_what_is_being_saved(first):
    """SLURM sends it before the end of the time and again at the end."""
    with StopSignal() as stop:
        stop.steps_begin()
        for number in (first, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert stop.requested
