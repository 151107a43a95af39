"""More than the server can do: waiting, deadlines, and clients that go."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import resource
import time

import httpx
import pytest

from tests import ranked
from tests.serving.attacks import CHAT, chat, picture, refused
from tests.serving.conftest import LIMITS, make_service, running


def test_more_requests_than_may_wait_are_told_to_come_back(judge):
    limits = dataclasses.replace(LIMITS, waiting=2)
    with running(make_service(judge, limits=limits)) as address:
        body = chat("Why?", max_tokens=60)
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            send = lambda _: httpx.post(f"{address}{CHAT}", json=body, timeout=300)
            replies = list(pool.map(send, range(24)))
        assert {reply.status_code for reply in replies} == {200, 429}
        late = next(reply for reply in replies if reply.status_code == 429)
        assert late.headers["retry-after"] and late.headers["x-should-retry"] == "true"


def test_a_request_that_takes_too_long_is_given_up(judge):
    service = make_service(judge, limits=dataclasses.replace(LIMITS, seconds=0.05))
    with running(service) as address:
        refused(httpx.post(f"{address}{CHAT}", json=chat("Why?", max_tokens=300), timeout=300), 408, "took longer than")
        time.sleep(0.3)
        assert service.worker.jobs == 0


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_memory_is_flat_over_requests_that_are_abandoned(address, service, count):
    def abandon(number: int) -> None:
        content = [picture(ranked.picture((200, 160), number % 7)), {"type": "text", "text": f"{number}"}]
        with contextlib.suppress(httpx.TimeoutException):
            httpx.post(f"{address}{CHAT}", json=chat(content, max_tokens=200), timeout=0.05)

    for number in range(count // 3):
        abandon(number)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        abandon(number)
    deadline = time.monotonic() + 30
    while service.worker.jobs and time.monotonic() < deadline:
        time.sleep(0.05)
    assert service.worker.jobs == 0 and service.worker.running == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KiB
