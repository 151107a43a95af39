"""Who may ask: keys, addresses and names of the server."""

from __future__ import annotations

import socket

import httpx
import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.serving import server
from tests.serving.attacks import CHAT, refused
from tests.serving.conftest import make_service, running


@pytest.fixture(scope="module")
def locked(judge, records):
    with running(make_service(judge, records, key="secret")) as found:
        yield found


PATHS = [
    ("POST", CHAT), ("POST", "/v1/rewards"), ("POST", "/score"), ("POST", "/v1/score"), ("POST", "/rerank"),
    ("POST", "/v1/rerank"), ("POST", "/v2/rerank"), ("POST", "/classify"), ("POST", "/get_reward"), ("GET", "/v1/models"),
    ("GET", "/metrics"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("header", [None, "Bearer wrong", "secret", "Basic secret", "Bearer secretx", "Bearer sécret"])
def test_every_path_but_health_needs_the_key(locked, method, path, header):
    headers = {} if header is None else {"authorization": header.encode()}
    reply = httpx.request(method, f"{locked}{path}", headers=headers, json={})
    refused(reply, 401, "the API key is missing or wrong; send it as Authorization: Bearer KEY")
    assert reply.headers["www-authenticate"] == "Bearer"


def test_the_key_opens_and_health_is_open(locked):
    assert httpx.get(f"{locked}/health").status_code == httpx.get(f"{locked}/ready").status_code == 200
    assert httpx.get(f"{locked}/v1/models", headers={"authorization": "Bearer secret"}).json()["data"][0]["id"] == "tiny"


def test_openais_client_needs_the_key(locked):
    openai = pytest.importorskip("openai")
    messages = [{"role": "user", "content": "Why?"}]
    ask = lambda key: openai.OpenAI(base_url=f"{locked}/v1", api_key=key, max_retries=0).chat.completions.create(
        model="tiny", messages=messages, max_tokens=3
    )
    with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong") as error:
        ask("wrong")
    assert error.value.code == "invalid_api_key"
    assert ask("secret").usage.completion_tokens <= 3


@pytest.mark.parametrize("host", ["a/health?", "a/ready#", "127.0.0.1/health?x=", "@/health", "a\\health", "health", "", ":0"])
@pytest.mark.parametrize(("method", "path"), PATHS)
def test_no_host_header_opens_a_path(locked, host, method, path):
    """An application that takes its path from an address made of the Host header looks at the wrong one."""
    reply = httpx.request(method, f"{locked}{path}", headers={"host": host})
    assert reply.status_code in (400, 401) and "location" not in reply.headers


@pytest.mark.parametrize(
    "path",
    ["//metrics", "/health/../metrics", "/health/%2e%2e/metrics", "/%6detrics", "/metrics?/health", "/ready;/metrics"],
)
def test_no_form_of_a_path_opens_it(locked, path):
    port = int(locked.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        found = b"".join(iter(lambda: client.recv(65536), b""))
    assert found.split(b" ")[1] in (b"401", b"404") and b"mmrlhf_" not in found


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "192.168.0.7", "localhost.evil.example", "127.0.0.1.evil"]
)
def test_without_a_key_the_server_answers_to_names_of_this_machine(address, host):
    """A page in a browser here, whose name was made to point here, does not reach it (DNS rebinding)."""
    for path in ("/v1/models", "/health"):
        refused(httpx.get(f"{address}{path}", headers={"host": host}), 421, "names of this machine alone")
    for ours in ("localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000"):
        assert httpx.get(f"{address}/v1/models", headers={"host": ours}).status_code == 200


def test_a_model_is_described(address):
    one = httpx.get(f"{address}/v1/models").json()["data"][0]
    assert one["max_model_len"] > 1000 and httpx.get(f"{address}/v1/models/tiny").json() == one
    refused(httpx.get(f"{address}/v1/models/other"), 404, "'other' is not served")


def test_requests_have_names(address):
    given = httpx.get(f"{address}/health", headers={"x-request-id": "run-7.a_b"}).headers["x-request-id"]
    assert given == "run-7.a_b"
    for odd in ("a b", "a" * 65, "<script>", ""):
        found = httpx.get(f"{address}/nothing", headers={"x-request-id": odd}).headers["x-request-id"]
        assert found != odd and len(found) == 32


@pytest.mark.parametrize("key", ["schlüssel", "two words", "tab\t", "line\n"])
def test_a_key_that_no_header_holds_is_refused(key):
    with pytest.raises(UserError, match="visible ASCII"):
        server.check_address("127.0.0.1", key)


def test_an_address_that_is_taken_is_refused_before_the_model_is_loaded():
    with server.bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UserError, match=r"already in use|in use"):
            server.bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="choose another"):
        server.bind("no.such.host.invalid", 1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.com"])
def test_an_address_that_others_reach_needs_a_key(host):
    with pytest.raises(UserError, match="set MMRLHF_API_KEY"):
        server.check_address(host, None)
    server.check_address(host, "key")
    for inside in ("127.0.0.1", "::1", "localhost"):
        server.check_address(inside, None)
