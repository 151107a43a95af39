"""For tests that train: on one device, however many the process has."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def one_device():
    """`training.preflight` makes the mesh of a run of the first device alone."""
    import jax

    from mmrlhf_jax.training import preflight

    make_mesh = preflight.make_mesh
    preflight.make_mesh = lambda axes: make_mesh({}, jax.devices()[:1])
    yield
    preflight.make_mesh = make_mesh
