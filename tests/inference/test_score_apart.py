"""`mmrlhf score --launch`: several hosts score a data set, whatever happens to them, as one host does."""

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

from tests import ranked, tiny

HOSTS, GROUPS = 4, 200
COMMAND = "from mmrlhf_jax.cli import main; main()"


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """Of a score of 200 groups of two and three responses, every fourth about a picture."""
    model = tiny.checkpoint(tmp_path / "model", tiny.config(text={"tie_word_embeddings": False}), reward_head=True)
    ranks = [(1, 2, 2) if number % 3 == 0 else (2, 1) for number in range(GROUPS)]
    sizes = [[(30 + number % 7, 40)] if number % 4 == 0 else [] for number in range(GROUPS)]
    data = ranked.write(tmp_path / "data", ranks, sizes)
    options = ["--max-new-tokens", "12", "--batch", "4"]
    return ["score", "--model", str(model), "--data", str(data), *options]


def start(arguments, out, *more: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", COMMAND, *arguments, "--out", str(out), *more]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> str:
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_four_hosts_that_are_killed_at_random_score_every_response_once_and_as_one_host_does(tmp_path, arguments):
    """A killed process is started again, as launchers do."""
    alone, out, rng = tmp_path / "alone.jsonl", tmp_path / "scores.jsonl", random.Random(0)
    ended(start(arguments, alone))
    launch = tmp_path / "launch.yaml"
    launch.write_text("distributed: {initialization_timeout: 60}\n")

    def host(number: int) -> subprocess.Popen:
        place = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9", "JAX_NUM_PROCESSES": str(HOSTS), "JAX_PROCESS_ID": str(number)}
        return start(arguments, out, "--launch", str(launch), **place)

    hosts, killed = [host(number) for number in range(HOSTS)], 0
    parts = lambda: len(list(tmp_path.glob(".scores.jsonl.*.parts/*.jsonl")))
    while not out.exists() and any(each.poll() is None for each in hosts):
        seen = parts()
        time.sleep(rng.uniform(1, 4))
        number = rng.randrange(HOSTS)
        if killed < 6 and parts() > seen and hosts[number].poll() is None:  # not faster than the work goes on
            hosts[number].send_signal(signal.SIGKILL)
            hosts[number].communicate()
            hosts[number], killed = host(number), killed + 1
    for each in hosts:
        ended(each)
    assert killed > 1
    wanted, found = ([json.loads(line) for line in path.read_text().splitlines()] for path in (alone, out))
    assert [each["id"] for each in found] == [each["id"] for each in wanted] and len(found) == GROUPS
    texts = lambda rows: [[response["critique"] for response in row["responses"]] for row in rows]
    assert texts(found) == texts(wanted)
    rewards = lambda rows: np.concatenate([[response["reward"] for response in row["responses"]] for row in rows])
    np.testing.assert_allclose(rewards(found), rewards(wanted), atol=1e-5, rtol=1e-5)
