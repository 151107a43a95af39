"""A client of OpenAI's protocol against our own server, and against servers that fail."""

from __future__ import annotations

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import endpoint
from mmrlhf_jax.inference.endpoint import Endpoint, Request, Text
from mmrlhf_jax.inference.engine import Prompt


async def collected(client: Endpoint, requests) -> list[Text]:
    found = {number: text async for number, text in client.write(requests)}
    return [found[number] for number in range(len(requests))]


def test_answers_are_those_of_the_engine_behind_the_server(address, judge, records):
    client = Endpoint(f"{address}/v1", concurrency=3)
    assert asyncio.run(client.check()) == "tiny"
    requests = [Request(record.prompt_text(), records[index], 10) for index, record in enumerate(records.records)] * 2
    found = asyncio.run(collected(client, requests))
    wanted = judge.generate([Prompt(records[index]) for index in range(3)], max_new_tokens=10) * 2
    assert [each.text for each in found] == wanted and all(each.error is None and each.tokens for each in found)


def test_a_prompt_that_is_refused_has_its_reason_and_the_others_their_answers(address, records):
    client = Endpoint(address)
    asyncio.run(client.check())
    requests = [Request("a", records[1], 5), Request("a" * 9000, records[1], 5), Request("b", records[1], 5)]
    found = asyncio.run(collected(client, requests))
    assert [each.error is None for each in found] == [True, False, True]
    assert "this server has room for" in found[1].error


@pytest.mark.parametrize(
    ("url", "model", "says"), [("/nothing", None, "404"), ("", "other", "does not serve 'other', but tiny")]
)
def test_what_concerns_every_request_ends_the_pass(address, url, model, says):
    with pytest.raises(UserError, match=says):
        asyncio.run(Endpoint(f"{address}{url}", model).check())


@pytest.fixture
def failing():
    """A server that fails with the statuses that are put into a list, then answers."""
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status = statuses.pop(0) if statuses else 200
            body = b'{"data": [{"id": "m"}]}' if status == 200 else b'{"error": {"message": "no"}}'
            self.send_response(status)
            self.send_header("retry-after", "0")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", statuses
    served.shutdown()


def test_what_may_pass_is_tried_again(failing):
    url, statuses = failing
    statuses += [503, 429, 500]
    assert asyncio.run(Endpoint(url).check()) == "m" and not statuses


def test_what_does_not_pass_ends_with_its_last_reason(failing):
    url, statuses = failing
    statuses += [503] * endpoint.TRIES
    with pytest.raises(UserError, match="503"):
        asyncio.run(Endpoint(url).check())
    statuses += [401]
    with pytest.raises(UserError, match="401"):
        asyncio.run(Endpoint(url).check())
    assert not statuses


def test_a_server_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(endpoint, "_pause", lambda *_: 0.0)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9.*ConnectError"):
        asyncio.run(Endpoint("http://127.0.0.1:9").check())
