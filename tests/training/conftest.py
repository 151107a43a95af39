"""For tests that train: on one device, however many the process has."""

from __future__ import annotations

import jax
import pytest

from mmrlhf_jax.training import loop


@pytest.fixture(scope="module")
def one_device():
    """`training.loop` makes its mesh of the first device alone."""
    make_mesh = loop.make_mesh
    loop.make_mesh = lambda axes: make_mesh({}, jax.devices()[:1])
    yield
    loop.make_mesh = make_mesh
