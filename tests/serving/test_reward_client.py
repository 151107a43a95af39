"""The client file waits for a busy server, tries again what fails, and never gives a number that is no reward."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from PIL import Image

from mmrlhf_jax import reward_client
from mmrlhf_jax.reward_client import RewardClient, RewardError
from mmrlhf_jax.serving.limits import Limits
from tests.serving.conftest import make_service, running

GOOD = (200, {}, json.dumps({"data": [{"reward": 0.5}]}))


@pytest.fixture
def scripted(monkeypatch):
    """A server that gives these replies, one after the other, the last one for ever; and what is counted there."""
    servers = []

    def start(*replies):
        left, count = list(replies), []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                count.append(self.path)
                status, headers, body = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                for name, value in (headers | {"content-length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}", count

    monkeypatch.setattr(reward_client, "FIRST_WAIT", 0.001)
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(url: str, responses=("a",), **settings) -> list[float]:
    return asyncio.run(RewardClient(url, **settings).rewards(responses, record_id="b"))


def test_a_failure_is_tried_again(scripted):
    url, count = scripted((500, {}, "broken"), (502, {}, ""), GOOD)
    assert ask(url) == [0.5] and len(count) == 3
    url, count = scripted((500, {}, "broken"))
    with pytest.raises(RewardError, match="500: broken"):
        ask(url, tries=3)
    assert len(count) == 3


def test_a_busy_server_is_waited_for(scripted):
    """However often it says so: a group of many rollouts may wait in line for long."""
    url, count = scripted(*[(429, {"retry-after": "0"}, "full")] * 20, (503, {"retry-after": "0"}, "starting"), GOOD)
    assert ask(url, tries=2) == [0.5] and len(count) == 22
    url, count = scripted((429, {"retry-after": "1"}, "full"))
    with pytest.raises(RewardError, match="429: full"):
        ask(url, patience=0.5)
    assert len(count) == 1


def test_what_is_refused_is_not_sent_again(scripted):
    for status, refused in ((400, True), (404, True), (422, True), (401, False)):
        url, count = scripted((status, {}, "no"), GOOD)
        with pytest.raises(RewardError, match=f"{status}: no") as error:
            ask(url)
        assert error.value.refused is refused and len(count) == 1
    url, count = scripted((503, {"x-should-retry": "false"}, "the engine has stopped"), GOOD)
    with pytest.raises(RewardError, match="the engine has stopped"):
        ask(url)
    assert len(count) == 1


@pytest.mark.parametrize(
    "body",
    ["<html>", "[]", "{}", '{"data": [{}]}', '{"data": []}', '{"data": [{"reward": NaN}]}', '{"data": [{"reward": null}]}'],
)
def test_a_reply_without_rewards_is_an_error(scripted, body):
    url, _ = scripted((200, {}, body))
    with pytest.raises(RewardError):
        ask(url)


def test_a_server_that_is_not_there_is_an_error(scripted):
    with pytest.raises(RewardError, match="ConnectError"):
        ask("http://127.0.0.1:9", tries=2)


def test_the_key_and_the_settings_are_sent(judge, records, monkeypatch):
    with running(make_service(judge, records, key="secret")) as address:
        name = records.records[0].id
        with pytest.raises(RewardError, match="401"):
            asyncio.run(RewardClient(address).rewards(["a"], record_id=name))
        monkeypatch.setenv("MMRLHF_API_KEY", "secret")
        found = asyncio.run(RewardClient(address, critique="none").rewards(["a", "b"], record_id=name))
        body = {"record_id": name, "responses": ["a", "b"], "critique": "none"}
        reply = httpx.post(f"{address}/v1/rewards", json=body, headers={"authorization": "Bearer secret"}, timeout=300)
        assert found == [each["reward"] for each in reply.json()["data"]]


@pytest.mark.long
def test_responses_to_equal_prompts_go_together(address, records):
    client, sent = RewardClient(address), []
    post = client.post

    async def seen(path, body):
        sent.append(body["responses"])
        return await post(path, body)

    client.post = seen
    names = [records.records[index].id for index in (0, 1, 0, 1, 0)]
    prompts = [{"record_id": name} for name in names]
    found = asyncio.run(client.of_all(prompts, ["a", "b", "c", "d", "a"]))
    assert sorted(sent) == [["a", "c", "a"], ["b", "d"]]
    alone = [asyncio.run(RewardClient(address).rewards([text], record_id=name))[0] for name, text in zip(names, "abcda")]
    assert found == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16", "F", "HSV"])
def test_pictures_of_all_kinds_can_be_sent(address, mode):
    image = Image.new("RGB", (20, 20), "red").convert("L").convert(mode) if mode == "I;16" else Image.new(mode, (20, 20))
    (reward,) = asyncio.run(RewardClient(address).rewards(["a"], question="What?", images=[image]))
    assert isinstance(reward, float)


def test_more_responses_than_a_request_may_have_are_sent_apart(address, records):
    """A group of GRPO may be large, and a batch may have the same prompt several times."""
    name, texts = records.records[1].id, [f"{number}" for number in range(reward_client.MOST_RESPONSES + 2)]
    client = RewardClient(address, critique="none")
    found = asyncio.run(client.of_all([{"record_id": name}] * len(texts), texts))
    assert found[-1:] == pytest.approx(asyncio.run(client.rewards(texts[-1:], record_id=name)), abs=1e-5)
    assert len(found) == len(texts) and Limits().responses == reward_client.MOST_RESPONSES


def test_calls_of_one_loop_share_their_connections(monkeypatch):
    """verl asks for the reward of each response in a call of its own, all at once."""
    now, most = [], []

    async def post(*_, json, **__):
        now.append(1)
        most.append(len(now))
        await asyncio.sleep(0.01)
        now.pop()
        return httpx.Response(200, json={"data": [{"reward": 0.5}]})

    monkeypatch.setattr(httpx.AsyncClient, "post", post)
    monkeypatch.setattr(reward_client, "AT_A_TIME", 3)

    async def all_at_once():
        info = {"record_id": "a"}
        return await asyncio.gather(*(reward_client.compute_score("mm", str(n), "", info) for n in range(20)))

    for _ in range(2):  # each loop has its own turns
        assert asyncio.run(all_at_once()) == [0.5] * 20
    assert max(most) == 3 and len(reward_client._turns) == 1  # that of the loop which has ended is forgotten


def test_the_client_needs_no_jax():
    code = "import sys, mmrlhf_jax.reward_client; assert not {'jax', 'numpy', 'torch', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_openrlhfs_function_asks_for_as_many_at_a_time_as_the_server_takes(scripted, monkeypatch):
    pytest.importorskip("torch")
    size = reward_client.MOST_RESPONSES
    assert size <= Limits().pairs
    url, asked = scripted((200, {}, json.dumps({"rewards": [0.5] * size})))
    monkeypatch.setenv("MMRLHF_REWARD_URL", url)
    found = reward_client.reward_func(["q"] * 3 * size, ["p"] * 3 * size, [{"id": "a"}] * 3 * size)
    assert found["rewards"].tolist() == [0.5] * 3 * size and asked == ["/get_reward"] * 3
