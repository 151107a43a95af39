"""The server's end: running requests are finished within the grace, others are refused, and what is cut off is told so."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from mmrlhf_jax.serving import server
from tests.serving.attacks import CHAT, chat, refused
from tests.serving.conftest import make_service, soon, started


def slowed(service, seconds: float):
    """The service with steps of its lanes that take at least so long."""
    (scheduler,) = service.worker.schedulers
    step = scheduler.step

    def slow():
        time.sleep(seconds)
        return step()

    scheduler.step = slow
    return service


@contextlib.contextmanager
def streaming(address: str, **settings):
    """The lines of a stream whose first text has come."""
    body = chat("Why?", stream=True, **settings)
    with httpx.stream("POST", f"{address}{CHAT}", json=body, timeout=300) as reply:
        lines = (line for line in reply.iter_lines() if line)
        for line in lines:
            if json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content"):
                break
        yield lines


@pytest.mark.long
def test_running_requests_are_finished_and_new_ones_are_refused(judge):
    service = slowed(make_service(judge), 0.02)
    with started(service, grace=60) as running, concurrent.futures.ThreadPoolExecutor(1) as pool:
        whole = pool.submit(httpx.post, f"{running.address}{CHAT}", json=chat("Who?", max_tokens=40), timeout=300)
        soon(lambda: service.worker.running)
        with streaming(running.address, max_tokens=60) as lines:
            running.server.handle_exit(signal.SIGTERM, None)
            assert httpx.get(f"{running.address}/ready").status_code == 503
            assert httpx.get(f"{running.address}/health").status_code == 200
            late = httpx.post(f"{running.address}{CHAT}", json=chat("Why?"))
            refused(late, 503, "the server is shutting down")
            assert late.headers["x-should-retry"] == "true" and late.headers["retry-after"]
            rest = list(lines)
        assert rest[-1] == "data: [DONE]" and not any("error" in line for line in rest)
        assert whole.result().status_code == 200
        running.thread.join(60)
        assert not running.thread.is_alive() and running.server.cut_off == 0
    assert service.worker.stop(60)


@pytest.mark.parametrize("signals", [1, 2])
def test_what_is_not_finished_in_time_gets_an_error(judge, signals):
    """In a stream, whose status has gone out, it is an event. A second signal does not wait for the grace's end."""
    service = slowed(make_service(judge), 0.1)
    with started(service, grace=0.3 if signals == 1 else 600) as running, concurrent.futures.ThreadPoolExecutor(1) as pool:
        whole = pool.submit(httpx.post, f"{running.address}{CHAT}", json=chat("Who?", max_tokens=300), timeout=300)
        soon(lambda: service.worker.running)
        with streaming(running.address, max_tokens=300) as lines:
            for _ in range(signals):
                running.server.handle_exit(signal.SIGTERM, None)
            rest = list(lines)
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert error["message"] == "the server is shutting down" and error["type"] == "server_error"
        refused(whole.result(), 503, "the server is shutting down")
        running.thread.join(60)
        assert not running.thread.is_alive() and running.server.cut_off == 2
        soon(lambda: service.worker.jobs == 0)


def test_openais_client_sees_the_end(judge):
    """An error event in mid-stream is its error, and a server that is ending is one that it would ask again."""
    openai = pytest.importorskip("openai")
    service = slowed(make_service(judge), 0.1)
    with started(service, grace=0.5) as running:
        client = openai.OpenAI(base_url=f"{running.address}/v1", api_key="none", max_retries=0)
        request = dict(model="tiny", messages=[{"role": "user", "content": "Why?"}], max_tokens=300)
        pieces = iter(client.chat.completions.create(**request, stream=True))
        next(pieces)
        running.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(openai.InternalServerError) as refusal:
            client.chat.completions.create(**request)
        assert refusal.value.status_code == 503 and refusal.value.response.headers["x-should-retry"] == "true"
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            list(pieces)


@pytest.mark.slow
@pytest.mark.parametrize(("grace", "status"), [(60, 0), (0, 1)])
def test_a_process_ends_at_the_signal(directory, grace, status):
    """`mmrlhf serve` itself, in mid-stream: its exit status says whether a request was cut off."""
    with server.bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
    command = "from mmrlhf_jax.cli import main; main()"
    options = ["--model", str(directory), "--name", "tiny", "--port", str(port), "--grace", str(grace), "--batch", "4"]
    options += ["--prompt-tokens", "512", "--new-tokens", "1024"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", command, "serve", *options], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            said = ""
            while not (found := re.search(r"serving tiny at (\S+)/v1", said)):
                line = process.stderr.readline()
                assert line, said
                said += line
            with streaming(found[1], max_tokens=900) as lines:
                process.send_signal(signal.SIGTERM)
                rest = list(lines)
            assert ("error" in rest[-1]) == bool(status) and (rest[-1] == "data: [DONE]") == (not status)
            said = process.communicate(timeout=300)[1]
            assert process.returncode == status, said
            assert "1 requests are finished first" in said and ("1 requests were not finished" in said) == bool(status)
        finally:
            process.kill()
