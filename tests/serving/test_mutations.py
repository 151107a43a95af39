"""Requests that are mutated at random are answered or refused, and the server lives."""

from __future__ import annotations

import base64
import collections
import concurrent.futures
import copy
import json
import random

import httpx
import pytest

from tests import ranked
from tests.serving.attacks import CHAT, alive, chat, picture
from tests.serving.conftest import LIMITS

VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2**70,
    1.5,
    -0.0,
    "",
    "a",
    "\0",
    "\ud800",
    "x" * 5000,
    [],
    [[]],
    {},
    {"a": {}},
    "NaN",
    [None] * 50,
]


def mutate(rng: random.Random, value, depth: int = 0):
    """The value with one part exchanged, removed, doubled or added."""
    if isinstance(value, dict) and value and (depth < 1 or rng.random() < 0.7):
        key, found = rng.choice(sorted(value)), dict(value)
        match rng.randrange(5):
            case 0:
                del found[key]
            case 1:
                found[rng.choice(["extra", "", "model", "type", "\0", "stream"])] = rng.choice(VALUES)
            case 2:
                found[key] = rng.choice(VALUES)
            case _:
                found[key] = mutate(rng, value[key], depth + 1)
        return found
    if isinstance(value, list) and value and rng.random() < 0.8:
        place, found = rng.randrange(len(value)), list(value)
        match rng.randrange(4):
            case 0:
                del found[place]
            case 1:
                found.append(copy.deepcopy(found[place]))
            case _:
                found[place] = mutate(rng, value[place], depth + 1)
        return found
    if isinstance(value, str) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice(["", "\0", "é", value[:50], "<image>", "%", ","]) + value[place + 1 :]
    return rng.choice(VALUES)


def valid_requests(rng: random.Random) -> list[tuple[str, dict]]:
    data = ranked.picture((40, 30), 0)
    parts = [picture(damaged(rng, data) if rng.random() < 0.2 else data), {"type": "text", "text": "What is it?"}]
    frames = ",".join(base64.b64encode(ranked.picture((20, 20), seed)).decode() for seed in range(2))
    video = [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}]
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    given = {"record_id": "group-0", "responses": ["a"], "critique": "given", "critiques": ["c"]}
    written = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb"
    )
    labels = ["group-0", json.dumps({"question": "a", "images": [parts[0]["image_url"]["url"]]})]
    return [
        (CHAT, chat(parts, n=2, seed=3, stop=["a"], logprobs=True, top_logprobs=2, top_p=0.9, top_k=3, min_p=0.1)),
        (CHAT, chat(video, stream=True, stream_options={"include_usage": True}, return_token_ids=True)),
        (CHAT, chat("x") | {"messages": [*turns, {"role": "user", "content": parts}]}),
        ("/v1/rewards", {"messages": [{"role": "user", "content": parts}], "responses": ["a", "b"], "max_critique_tokens": 3}),
        ("/v1/rewards", given),
        *((path, {"queries": [{"content": parts}], "documents": ["a", "b"]}) for path in ("/score", "/v1/score")),
        *(
            (path, {"query": "a", "documents": ["b", {"content": [{"type": "text", "text": "c"}]}], "top_n": 1})
            for path in ("/rerank", "/v1/rerank", "/v2/rerank")
        ),
        ("/classify", {"messages": turns[1:]}),
        ("/classify", {"model": "tiny", "input": [written], "use_activation": False}),
        ("/get_reward", {"query": ["pa", "pb"], "prompts": ["p", "p"], "labels": labels}),
    ]


def damaged(rng: random.Random, content: bytes) -> bytes:
    """The bytes with one of them changed, or with an end that is missing."""
    place = rng.randrange(len(content))
    return content[:place] if rng.random() < 0.3 else content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]


def mutated(rng: random.Random) -> tuple[str, bytes]:
    """(path, content) of a request."""
    path, body = rng.choice(valid_requests(rng))
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        body = mutate(rng, body)
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    return path, damaged(rng, content) if rng.random() < 0.1 else content


@pytest.mark.parametrize("count", [250, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.long
def test_mutated_requests_are_answered_or_refused(address, service, count):
    rng = random.Random(count)
    requests = [each for each in (mutated(rng) for _ in range(count)) if len(each[1]) <= LIMITS.body]
    seen: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    with httpx.Client(base_url=address, timeout=120) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        ask = lambda each: client.post(each[0], content=each[1], headers={"content-type": "application/json"})
        for (path, content), reply in zip(requests, pool.map(ask, requests), strict=True):
            assert reply.status_code in (200, 400, 404, 413, 415, 422), (path, content[:2000], reply.text)
            assert "the server has failed" not in reply.text, (path, content[:2000], reply.text)
            if reply.headers["content-type"].startswith("text/event-stream"):
                assert reply.text.endswith("data: [DONE]\n\n"), (path, content[:2000], reply.text)
            seen[path][reply.status_code] += 1
    assert alive(address) and service.worker.jobs == 0
    if count > 1000:
        assert {path for path, _ in valid_requests(rng)} == set(seen)
        assert all(found[200] and found[400] for found in seen.values()), seen
    assert sum(found[200] for found in seen.values()) > count // 10 and sum(found[400] for found in seen.values()) > count // 5
