"""For tests that train: on one device, however many the process has."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def one_device():
    """`training.loop` makes its mesh of the first device alone."""
    import jax

    from mmrlhf_jax.training import loop

    make_mesh = loop.make_mesh
    loop.make_mesh = lambda axes: make_mesh({}, jax.devices()[:1])
    yield
    loop.make_mesh = make_mesh
