"""The launch files of GPU hosts: the compiler takes their flags, and one card is one device."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import accelerator
from tests.launch.launchers import LAUNCHES, ROOT

START = "from jaxlib import xla_client; xla_client.make_cpu_client()"
DETERMINISTIC = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_exclude_nondeterministic_ops=true")


def on_gpus(path) -> bool:
    named = config.load_launch(path).accelerator
    return named is not None and not accelerator(named).is_tpu


HOSTS = [path for path in LAUNCHES if on_gpus(path)]
ONE_CARD = [path for path in LAUNCHES if path.stem.endswith("-1")]


def flags_of(path) -> str:
    return config.load_launch(path).environment.get("XLA_FLAGS", "")


def starts(flags: str) -> bool:
    """Whether XLA starts with these flags: it ends the process at one that it does not know, also where it has no GPU."""
    command = [sys.executable, "-c", START]
    return subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True).returncode == 0


def test_xla_knows_every_flag_of_the_launch_files_and_of_the_page_about_them():
    """All at once: every launch file has the flags of the others, or none."""
    every = sorted({flag for path in LAUNCHES for flag in flags_of(path).split()})
    assert every and all(flag.startswith("--xla_gpu_") for flag in every)
    assert starts(" ".join((*every, *DETERMINISTIC)))
    assert not starts("--xla_gpu_enable_pipelined_all_gathers=true")


def test_the_page_about_launching_names_the_flags_that_are_tried_here():
    page = (ROOT / "docs" / "launching.md").read_text()
    assert set(re.findall(r"xla_gpu_\w+", page)) == {flag.removeprefix("--").partition("=")[0] for flag in DETERMINISTIC}


def test_flags_that_hide_collectives_are_those_of_several_devices():
    for path in HOSTS:
        several = accelerator(config.load_launch(path).accelerator).chips > 1
        assert bool(flags_of(path)) == several, path


def test_settings_of_the_network_are_those_of_several_hosts():
    for path in HOSTS:
        launch = config.load_launch(path)
        named = [name for name in launch.environment if name.startswith("NCCL_")]
        assert bool(named) == (launch.slices > 1) == (launch.distributed is not None), path


@pytest.mark.parametrize("path", [*HOSTS, ROOT / "launch" / "gpu-1.yaml"], ids=lambda path: path.stem)
def test_every_gpu_host_says_how_many_rows_it_takes_and_leaves_memory_to_the_libraries(path):
    launch = config.load_launch(path)
    assert launch.rows_per_device is not None
    assert launch.environment["XLA_CLIENT_MEM_FRACTION"] == "0.92"


@pytest.mark.parametrize("path", ONE_CARD, ids=lambda path: path.stem)
def test_one_card_is_one_device_whatever_else_the_host_has(path):
    launch = config.load_launch(path)
    assert set(launch.mesh.axes.values()) == {1} and launch.environment["CUDA_VISIBLE_DEVICES"] == "0"
