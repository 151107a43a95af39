"""One program, however it is laid over processes and devices: the same losses, step for step, in float32."""

from __future__ import annotations

import numpy as np
import pytest

from mmrlhf_jax.training.metrics import read_metrics
from tests.sharding import loopback

# (processes, devices each, mesh)
LAYOUTS = {
    "1x8 fsdp": (1, 8, {"fsdp": 8}),
    "1x8 fsdp x tensor": (1, 8, {"fsdp": 4, "tensor": 2}),
    "1x8 data x fsdp": (1, 8, {"data": 2, "fsdp": 4}),
    "1x8 context": (1, 8, {"fsdp": 4, "context": 2}),
    "2x4 fsdp": (2, 4, {"fsdp": 8}),
    "2x4 fsdp x tensor": (2, 4, {"fsdp": 4, "tensor": 2}),
    "2x4 data x fsdp, two slices": (2, 4, {"data": 2, "fsdp": 4, "slices": {"data": 2}}),
    "2x4 context": (2, 4, {"fsdp": 4, "context": 2}),
    "4x2 fsdp": (4, 2, {"fsdp": 8}),
    "4x2 fsdp x tensor": (4, 2, {"fsdp": 4, "tensor": 2}),
    "4x2 data x fsdp": (4, 2, {"data": 2, "fsdp": 4}),
    "4x2 context over hosts": (4, 2, {"fsdp": 2, "context": 4}),
}
QUICK = ["2x4 data x fsdp, two slices"]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Experiment and losses of each objective on one device, made when first asked for."""
    made = {}

    def get(kind: str, steps: int):
        if (kind, steps) not in made:
            root = tmp_path_factory.mktemp(kind)
            experiment = loopback.write_experiment(root, kind, steps=steps)
            made[kind, steps] = experiment, loopback.train_here(root / "one", experiment)
        return made[kind, steps]

    return get


def assert_same_losses(one_device, tmp_path, kind: str, layout: str, steps: int):
    experiment, expected = one_device(kind, steps)
    processes, devices, mesh = LAYOUTS[layout]
    found = loopback.train(tmp_path, experiment, mesh, processes, devices)
    assert list(found) == list(expected) == list(range(1, steps + 1))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.parametrize("layout", QUICK)
@pytest.mark.long
def test_losses_do_not_depend_on_the_layout(one_device, tmp_path, layout):
    assert_same_losses(one_device, tmp_path, "preference", layout, 4)


@pytest.mark.parametrize("filtered", [0.0, pytest.param(0.2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", ["2x4 fsdp x tensor", *(pytest.param(name, marks=pytest.mark.slow) for name in QUICK)])
@pytest.mark.long
def test_running_statistics_and_the_beta_that_they_give_do_not_depend_on_the_layout(tmp_path, layout, filtered):
    """They are of the global batch: no process has statistics of its own rows."""
    experiment = loopback.write_experiment(tmp_path, "preference", steps=4)
    experiment["objective"] |= {"scaling": {"mode": "beta_dpo", "w": 0.6, "filtered": filtered}}
    loopback.train_here(tmp_path / "one", experiment)
    loopback.train(tmp_path / "many", experiment, LAYOUTS[layout][2], *LAYOUTS[layout][:2])
    expected, found = (read_metrics(tmp_path / name / "run") for name in ("one", "many"))
    assert len(expected) == len(found) == 4 and expected[-1]["beta_dpo/std"] > 1e-3
    for name in ("loss", "beta_dpo/mean", "beta_dpo/std", "beta/mean"):
        values = [[row[name] for row in rows] for rows in (found, expected)]
        np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["preference", "reward_model"])
def test_twenty_losses_on_every_layout(one_device, tmp_path, kind, layout):
    assert_same_losses(one_device, tmp_path, kind, layout, 20)
