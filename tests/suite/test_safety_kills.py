"""`mmrlhf eval safety-bench`, killed ten times at random: its table is that of a run that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmrlhf_jax.suite import catalogue
from mmrlhf_jax.suite.judges.judge import CONCURRENCY
from tests.suite.support import made_up_own
from tests.suite.support.judged import judge
from tests.suite.test_safety_bench import TASKS, judge_says, policy_says

KILLS, CALLS = 10, (1, 5)  # after so many calls of the policy or the judge a run is killed


def stored(folder: Path, part: str) -> list[tuple[str, str]]:
    """(file, document) of all that is stored, without what a kill has cut off."""
    found = [(path.name, line) for path in (folder / part).glob("*.jsonl") for line in path.read_text().split("\n")]
    return [(name, json.loads(line)["document"]) for name, line in found if line.endswith("}")]


@pytest.mark.slow
def test_the_table_is_that_of_a_run_without_kills(tmp_path):
    data = [f"--data={name}={made_up_own.write(tmp_path / 'data', name)}" for name in TASKS]
    rng = random.Random(0)

    def slowly(says):
        def reply(text: str):
            time.sleep(rng.uniform(0.05, 0.2))
            return says(text)

        return reply

    def command(policy, judged, out: str) -> subprocess.Popen:
        options = {"--policy-endpoint": policy.url, "--judge": judged.url, "--out": str(tmp_path / out), "--concurrency": "1"}
        arguments = ["eval", "safety-bench", *(word for option in options.items() for word in option), *data]
        code = "from mmrlhf_jax.cli import main; main()"
        return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=os.getcwd())

    with judge(policy_says) as policy, judge(judge_says) as judged:
        assert command(policy, judged, "whole").wait() == 0
    with judge(slowly(policy_says)) as policy, judge(slowly(judge_says)) as judged:
        killed = 0
        for _ in range(KILLS):
            answered, before = len(stored(tmp_path / "out", "answers")), len(policy.asked)
            replied, judged_before = len(stored(tmp_path / "out", "verdicts")), len(judged.asked)
            process = command(policy, judged, "out")
            enough = before + judged_before + 1 + rng.randint(*CALLS)  # one is the probe
            while process.poll() is None and len(policy.asked) + len(judged.asked) < enough:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.2))
            killed += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
            answers, verdicts = len(stored(tmp_path / "out", "answers")), len(stored(tmp_path / "out", "verdicts"))
            assert len(policy.asked) - before <= answers - answered + 1  # the one under way when it was killed
            assert len(judged.asked) - judged_before <= verdicts - replied + 1 + CONCURRENCY  # the probe, and those under way
        assert killed >= KILLS // 2
        assert command(policy, judged, "out").wait() == 0
    for task in (task for each in catalogue.SAFETY for task in each.tasks):
        names = [f"{task.name}.json", f"{task.name}.documents.jsonl"]
        assert [(tmp_path / "out" / "results" / name).read_text() for name in names] == [
            (tmp_path / "whole" / "results" / name).read_text() for name in names
        ]
    answers = stored(tmp_path / "out", "answers")
    assert len(answers) == len(set(answers)) == made_up_own.COUNT * len(TASKS)
