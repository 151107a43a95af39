"""`mmrlhf annotate --launch`: several hosts annotate, whatever happens to them, as one host does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.quickstart.dataset import write_dataset
from tests.growing.commands import lines

HOSTS, PROMPTS = 3, 30
COMMAND = "from mmrlhf_jax.cli import main; main()"


def start(arguments, out, *more: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", COMMAND, "annotate", *map(str, arguments), "--out", str(out), *more]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> str:
    said = process.communicate(timeout=900)[1]
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_hosts_that_are_killed_at_random_annotate_every_prompt_once_and_as_one_host_does(policy, critic, tmp_path):
    """A killed process is started again, as launchers do."""
    data = write_dataset(tmp_path / "scenes", seed=5, scenes={"prompts": PROMPTS}, questions_per_scene=1)["prompts"]
    making = ["--samples", 3, "--max-new-tokens", 16, "--max-critique-tokens", 12, "--tie", 0.01, "--batch", 4]
    arguments = ["--policy", policy, "--critic", critic, "--data", data, *making]
    alone, out, rng = tmp_path / "alone", tmp_path / "out", random.Random(0)
    ended(start(arguments, alone))
    launch = tmp_path / "launch.yaml"
    launch.write_text("distributed: {initialization_timeout: 60}\n")

    def host(number: int) -> subprocess.Popen:
        place = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9", "JAX_NUM_PROCESSES": str(HOSTS), "JAX_PROCESS_ID": str(number)}
        return start(arguments, out, "--launch", str(launch), **place)

    hosts, killed = [host(number) for number in range(HOSTS)], 0
    work = lambda: len([*out.glob(".*.parts/*.jsonl"), *out.glob("*.jsonl")])
    while not (out / "records.jsonl").exists() and any(each.poll() is None for each in hosts):
        seen = work()
        time.sleep(rng.uniform(1, 4))
        number = rng.randrange(HOSTS)
        if killed < 4 and work() > seen and hosts[number].poll() is None:  # not faster than the work goes on
            hosts[number].send_signal(signal.SIGKILL)
            hosts[number].communicate()
            hosts[number], killed = host(number), killed + 1
    for each in hosts:
        ended(each)
    assert killed > 1
    wanted, found = lines(alone / "records.jsonl"), lines(out / "records.jsonl")
    assert [row["id"] for row in found] == [row["id"] for row in wanted]
    for name in ("text", "critique", "copies", "flags", "sampling", "rank"):
        assert [[each.get(name) for each in row["responses"]] for row in found] == [
            [each.get(name) for each in row["responses"]] for row in wanted
        ]
    rewards = lambda rows: np.concatenate([[each["reward"] for each in row["responses"]] for row in rows])
    np.testing.assert_allclose(rewards(found), rewards(wanted), atol=1e-5, rtol=1e-5)
    results = [json.loads((path / "job.json").read_text())["results"] for path in (alone, out)]
    assert results[0] == results[1]
    examples = SourceExamples(out / "records.jsonl")
    assert all(examples[index].images for index in range(len(examples)))
