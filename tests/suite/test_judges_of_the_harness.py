"""The harness's own code finds its judge at our server, and what it makes of a failed call is no score."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.answers import Answered
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.judges.harness_replies import reader_of
from mmrlhf_jax.suite.judges.judging import FAILED, NOT_READ
from mmrlhf_jax.suite.judges.loopback import PLACEHOLDER, Loopback
from mmrlhf_jax.suite.judges.rounds import scored
from tests.serving.fakes import refusal
from tests.suite.support import harness
from tests.suite.support.harness import answers_of, asked, tasks_of, verdict
from tests.suite.support.judged import judge, judging

pytestmark = [pytest.mark.slow, harness.needed]

# kind -> (a reply, what the harness makes of it, what it makes of a failed call and of one that is not answered)
KINDS = {
    "llava_in_the_wild": ("7 9\nBecause", [7, 9], [-1, -1]),
    "wildvision": ("My verdict: [[B>A]]", "Better", "Unclear"),
    "mathvista": ("3", "3", PLACEHOLDER),
    "mathverse": ("1", 1, 0),
    "mmbench": ("B", "B", None),  # a letter at random
    "videochatgpt": ("{'score': 4}", [4, 4, 4], [0, 0, 0]),
    "video_dc499": ("{'score': 3}", 3, 0),
}


@contextlib.contextmanager
def scoring(kind: str, environment: dict, log: Path):
    """What scores an answer in a process of the harness."""
    script = Path(__file__).parent / "support" / "harness_judges.py"
    with log.open("w") as errors:
        child = subprocess.Popen(
            [harness.python(), str(script), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | environment | {"HF_HOME": str(log.parent)},
        )

    def score(answer: str):
        child.stdin.write(json.dumps(answer) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
        assert line, log.read_text()[-2000:]
        return json.loads(line)

    try:
        yield score
    finally:
        child.stdin.close()
        child.wait(30)


@pytest.mark.parametrize("kind", KINDS)
def test_the_harness_asks_here_and_its_mistakes_are_missing(kind, tmp_path):
    reply, value, failed = KINDS[kind]
    answers = ["The fine answer", "The refused answer", "The odd answer", "The fine answer"]

    def says(text: str):
        return refusal(400) if answers[1] in text else "I cannot say." if answers[2] in text else reply

    with (
        judge(says) as fake,
        judging(fake, tmp_path / "verdicts.jsonl") as found,
        Loopback(found, reader_of(kind)) as server,
        scoring(kind, server.environment, tmp_path / "log") as score,
    ):
        results = [(result, missing) for _, result, missing in scored(server, answers, str, score, kind, len(answers))]
    assert results[0] == results[3] == (value, None)
    assert results[1][1] == FAILED and failed in (None, results[1][0])
    assert results[2][1] == (None if kind == "mathvista" else NOT_READ)
    assert len(fake.asked) == (9 if kind == "videochatgpt" else 3)
    assert {body["model"] for body in fake.asked} == {"m"}


def test_a_document_about_which_no_call_of_the_harness_arrives_is_missing(running, tmp_path, monkeypatch):
    """The harness notes -1 for both scores then, which would be a weight below 0."""
    monkeypatch.setattr(Loopback, "environment", {})  # it calls a port at which nobody listens
    task = TASKS["llava_in_the_wild"]
    tasks = tasks_of(running, task, tmp_path / "data", limit=1)
    _, requests = asked(tasks, task)
    with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
        found = tasks.score(task, Answered(answers_of(task, requests)), judged)
    assert found.documents[0].missing == FAILED and found.figures["llava_w_all"].value is None and not fake.asked
    results.write(tmp_path, found)
    assert results.read(tmp_path, task.name).coverage.scored == 0
