"""More than the server can do: waiting, deadlines, and clients that go."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import gc
import resource
import time
from pathlib import Path

import httpx
import pytest

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.worker import Job
from tests import ranked
from tests.serving.attacks import CHAT, chat, picture, refused
from tests.serving.conftest import LIMITS, make_service, running, soon


@pytest.mark.long
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


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.long
def test_memory_is_flat_over_requests_that_are_abandoned(address, service, count):
    """Plain ones before their reply, and streams after their first piece; each has a picture of its own."""

    def abandon(number: int) -> None:
        content = [picture(ranked.picture((200, 160), number)), {"type": "text", "text": f"{number}"}]
        if number % 3:
            with contextlib.suppress(httpx.TimeoutException):
                httpx.post(f"{address}{CHAT}", json=chat(content, max_tokens=200), timeout=0.05 * (number % 4 + 1))
            return
        body = chat(content, max_tokens=200, stream=True)
        with httpx.stream("POST", f"{address}{CHAT}", json=body, timeout=300) as reply:
            assert next(reply.iter_lines())

    others = {id(each): each for each in found(Example)}  # other tests have made them, and this server none yet
    for number in range(count // 3):
        abandon(number)
    before, resident = live(Job), memory()
    for number in range(count // 3, count // 3 + count):
        abandon(number)
    soon(lambda: service.worker.jobs == service.worker.running == service.handled == 0)
    assert live(Job) <= max(before, 2) and len([each for each in found(Example) if id(each) not in others]) <= 2
    assert memory() - resident < 20 * 2**20


def found(kind: type) -> list:
    """The objects of a class that somebody refers to."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is kind]


def live(kind: type) -> int:
    return len(found(kind))


def memory() -> int:
    """Bytes that this process has in memory now, without those that the C library keeps for the next allocation."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # another one than glibc
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.long
def test_what_takes_long_holds_up_no_other_request(judge, monkeypatch):
    """Decoding and tokenising are off the event loop, in a few threads; what waits for them has a deadline too."""
    service = make_service(judge, limits=dataclasses.replace(LIMITS, seconds=3.0))
    running_now, most = [], []

    def slow(*_):
        running_now.append(1)
        most.append(len(running_now))
        time.sleep(2.0)
        running_now.pop()
        raise ApiError(400, "slow")

    monkeypatch.setattr(service.model, "chat_tree", slow)
    with running(service) as address, concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = [pool.submit(httpx.post, f"{address}{CHAT}", json=chat("a"), timeout=300) for _ in range(8)]
        soon(lambda: running_now)
        began = time.monotonic()
        assert httpx.get(f"{address}/health").status_code == 200
        assert time.monotonic() - began < 1.5
        statuses = [reply.result().status_code for reply in replies]
        assert statuses.count(400) == 2 and statuses.count(408) == 6 and max(most) == 2
        soon(lambda: not running_now)
        assert len(most) <= 4  # those that nobody waits for any more were not begun
