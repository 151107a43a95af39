"""The client file, called as each trainer calls it, gets the server's rewards; a failure is never a number."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
import subprocess
import sys
import types

import httpx
import pytest
from PIL import Image

from mmrlhf_jax import reward_client
from mmrlhf_jax.reward_client import RewardClient, RewardError

ANSWERS = ["A kite.", "A bird over the sea."]


@pytest.fixture(autouse=True)
def server(address, monkeypatch):
    monkeypatch.setenv("MMRLHF_REWARD_URL", address)
    return address


@pytest.fixture(scope="module")
def wanted(address, records):
    def of(body) -> list[float]:
        reply = httpx.post(f"{address}/v1/rewards", json={"responses": ANSWERS, **body}, timeout=60)
        return [each["reward"] for each in reply.json()["data"]]

    return of


def shown(records, index: int, text: str) -> dict:
    url = f"data:image/png;base64,{base64.b64encode(records[index].images[0]).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": parts}]}


def test_openrlhf(records, wanted):
    """`utils/agent.py` calls a function of a file with lists of one, `remote_rm_url` with the same fields over HTTP."""
    pytest.importorskip("torch")
    name, prompt = records.records[0].id, "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    rewards = wanted({"record_id": name})
    for answer, reward in zip(ANSWERS, rewards, strict=True):
        for label in (name, json.dumps({"id": name})):
            found = reward_client.reward_func([f"{prompt}{answer}<|im_end|>\n"], [prompt], [label])
            assert found["rewards"].tolist() == pytest.approx([reward]) == found["scores"].tolist()
            assert found["extra_logs"] == {}


def test_verl(records, wanted):
    rewards = wanted({"record_id": records.records[2].id})
    info = {"split": "train", "index": 2, "record_id": records.records[2].id}
    score = lambda answer: reward_client.compute_score(
        data_source="mm", solution_str=answer, ground_truth="", extra_info=info, reward_router_address=None
    )
    found = asyncio.run(_all(score(answer) for answer in ANSWERS))
    assert found == pytest.approx(rewards) and all(isinstance(each, float) for each in found)


async def _all(works):
    return await asyncio.gather(*works)


def test_trl(records, wanted):
    """Columns come by name; prompts and completions are texts or conversations, images PIL's."""
    names = [records.records[0].id, records.records[2].id]
    by_id = asyncio.run(
        reward_client.trl_reward(
            prompts=["x", "y"], completions=ANSWERS, completion_ids=[[1], [2]], record_id=names, trainer_state=None
        )
    )
    assert by_id == pytest.approx([wanted({"record_id": names[0]})[0], wanted({"record_id": names[1]})[1]])
    image = Image.open(io.BytesIO(records[0].images[0]))
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    completions = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
    by_image = asyncio.run(reward_client.trl_reward(prompts=[prompt] * 2, completions=completions, images=[[image]] * 2))
    assert by_image == pytest.approx(wanted(shown(records, 0, "What is it?")))


def test_ms_swift(records, wanted, monkeypatch):
    """The plugin registers a class by name, whose objects are called with completions and the rows' columns."""
    rewards = types.ModuleType("swift.rewards")
    rewards.AsyncORM, rewards.orms = type("AsyncORM", (), {}), {}
    monkeypatch.setitem(sys.modules, "swift", types.ModuleType("swift"))
    monkeypatch.setitem(sys.modules, "swift.rewards", rewards)
    spec = importlib.util.spec_from_file_location("plugin", reward_client.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    reward = rewards.orms["mmrlhf"]()
    name = records.records[1].id
    found = asyncio.run(reward(ANSWERS, id=[name] * 2, messages=None, trainer_state=None))
    assert found == pytest.approx(wanted({"record_id": name}))
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "..."}]
    found = asyncio.run(reward(ANSWERS, messages=[turns] * 2, images=[[records[0].images[0]]] * 2))
    assert found == pytest.approx(wanted(shown(records, 0, "What is it?")))


def test_a_failure_raises_or_is_none_but_never_a_number(monkeypatch, records):
    with pytest.raises(RewardError, match=r"404.*there is no record"):
        asyncio.run(RewardClient().rewards(["a"], record_id="none"))
    with pytest.raises(RewardError, match="neither a record's id"):
        asyncio.run(reward_client.compute_score("mm", "a", "", {"index": 1}))
    assert asyncio.run(reward_client.trl_reward(["x"], ["a"], record_id=["none"])) == [None]
    monkeypatch.setenv("MMRLHF_REWARD_URL", "http://127.0.0.1:9")
    with pytest.raises(RewardError, match="ConnectError"):
        asyncio.run(RewardClient(tries=2).rewards(["a"], record_id="group-0"))


def test_the_client_needs_no_jax():
    code = "import sys, mmrlhf_jax.reward_client; assert not {'jax', 'numpy', 'torch', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
