"""Judges for tests, and pieces that tests of judged tasks share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

from mmrlhf_jax.suite.judges.judge import EndpointJudge
from mmrlhf_jax.suite.judges.judging import Judging
from mmrlhf_jax.suite.judges.verdicts import Verdicts
from tests.serving import fakes
from tests.serving.fakes import Fake, Reply, chat


def text_of(body: dict) -> str:
    """The text that a judge was asked."""
    if "prompt" in body:
        return body["prompt"]
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def completion(text: str) -> Reply:
    """A reply of `/v1/completions`."""
    return Reply(200, json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": "length"}]}).encode())


@contextlib.contextmanager
def judge(says: Callable[[str], str | Reply]) -> Iterator[Fake]:
    """A server whose replies are made of the text that is asked."""

    def reply(body: dict) -> Reply:
        found = says(text_of(body))
        if isinstance(found, Reply):
            return found
        return completion(found) if "prompt" in body else chat(found)

    with fakes.running(Fake(reply)) as running:
        yield running


@contextlib.contextmanager
def judging(fake: Fake, path) -> Iterator[Judging]:
    """A judge at the fake, with the verdicts of a file."""
    with Verdicts(path) as verdicts:
        yield Judging(EndpointJudge(fake.url, "m"), verdicts)
