"""The code of four trainers gets the server's rewards through the one client file, or through its views.

The wanted rewards are those of `/v1/rewards`, which tests/serving/test_rewards.py compares with `mmrlhf score`.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import math
from importlib.util import find_spec

import httpx
import pytest
from PIL import Image

from mmrlhf_jax import reward_client
from mmrlhf_jax.reward_client import RewardError
from mmrlhf_jax.serving.openrlhf import response_of
from tests.serving import trainers
from tests.serving.trainers import OWN, RESTATED, Rollout

ANSWERS = ["A kite.", "A bird over the sea."]
FILE = reward_client.__file__


def both(package: str):
    """Parametrize a test by a trainer's own code, if it is installed, and that code restated."""
    missing = pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")
    return pytest.mark.parametrize("how", [RESTATED, pytest.param(OWN, marks=missing)])


QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for each in messages %}<|im_start|>{{ each.role }}\n{{ each.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def server(address, monkeypatch):
    monkeypatch.setenv("MMRLHF_REWARD_URL", address)
    return address


@pytest.fixture(scope="module")
def tokenizer(judge):
    found = copy.deepcopy(judge.tokenizer)
    found.chat_template = QWEN
    return found


@pytest.fixture(scope="module")
def wanted(address):
    def of(responses=ANSWERS, **body) -> list[float]:
        reply = httpx.post(f"{address}/v1/rewards", json={"responses": responses, **body}, timeout=300)
        return [each["reward"] for each in reply.json()["data"]]

    return of


def asked(*parts) -> dict:
    """A prompt of `/v1/rewards` with these texts and pictures (bytes)."""
    urls = lambda data: f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image_url", "image_url": {"url": urls(part)}}
        for part in parts
    ]
    return {"messages": [{"role": "user", "content": content}]}


def url(data: bytes) -> str:
    return asked(data)["messages"][0]["content"][0]["image_url"]["url"]


# OpenRLHF --------------------------------------------------------------------------------------------------------------


def rollout(tokenizer, question: str, answer: str, label, *, swollen: int = 1, cut: int = 0) -> Rollout:
    """A rollout of a prompt, of whose tokens the pictures' are as many, and the first ones are missing."""
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tokens, image = tokenizer(prompt).input_ids, tokenizer.convert_tokens_to_ids("<image>")
    grown = [each for token in tokens for each in ([token] * swollen if token == image else [token])]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return Rollout(prompt, grown[cut:], [*tokenizer(answer).input_ids, end], label)


@both("openrlhf")
@pytest.mark.parametrize("over", ["http", "file"])
@pytest.mark.long
def test_openrlhf(how, over, server, tokenizer, records, wanted):
    """`--reward.remote_url`: the address of `/get_reward`, or the path of our file."""
    pytest.importorskip("torch")
    name = records.records[0].id
    label = {"question": "What is it?", "images": [url(records[0].images[0])]}
    rollouts = [
        rollout(tokenizer, "What is it?", ANSWERS[0], name),
        rollout(tokenizer, "What is it?", ANSWERS[1], json.dumps({"id": name})),
        rollout(tokenizer, "<image>\nWhat is it?", ANSWERS[0], {"id": name}, swollen=40),
        rollout(tokenizer, "<image>What of <image> is it? <image>", ANSWERS[1], name, swollen=3),
        rollout(tokenizer, "What " + "is " * 40 + "it?", ANSWERS[1], name, cut=60),
        rollout(tokenizer, "<image>\nWhat is it?", ANSWERS[0], json.dumps(label), swollen=40),
    ]
    first, second = wanted(record_id=name)
    (other,) = wanted(ANSWERS[:1], **asked(records[0].images[0], "What is it?"))
    found = trainers.openrlhf(how, FILE if over == "file" else f"{server}/get_reward", rollouts, tokenizer)
    for each, reward in zip(found, [first, second, first, second, second, other], strict=True):
        values = [float(value) for value in each["reward"]]  # a list, or a tensor, of one
        assert values == pytest.approx([reward], abs=1e-5) and [float(value) for value in each["scores"]] == values
        assert each["extra_logs"] == {}


@pytest.mark.parametrize(
    ("query", "prompt", "response"),
    [
        ("pA kite.", "p", "A kite."),
        ("p", "p", ""),
        ("a<i><i><i>\nb\nassistant\nr", "a<i>\nb\nassistant\n", "r"),
        ("<i><i><i>\nb\nassistant\nr", "<i>\nb\nassistant\n", "r"),
        ("a<img><c><c></img>b\nassistant\nr", "a<i>b\nassistant\n", "r"),
        ("a<i><i>b<i><i>c\nassistant\nr", "a<i>b<i>c\nassistant\n", "r"),
        ("c\nassistant\nr", "a b c\nassistant\n", "r"),
        ("a<i><i>b\nassistant\nb\nassistant\nr", "a<i>b\nassistant\n", "b\nassistant\nr"),
        ("ab", "b", None),
        ("", "p", None),
        ("What a kite?", "What is it?", None),
        ("a<i><i>b\nuser\nr", "a<i>b\nassistant\n", None),
        ("abc", "abcd", None),
    ],
)
def test_the_response_is_what_follows_the_prompt(query, prompt, response):
    assert response_of(query, prompt) == response


def test_a_long_query_is_cut_in_no_time():
    prompt, query = "<i>" + "ab" * 200_000 + "\nassistant\n", "<i><i>" + "ab" * 200_000 + "\nassistant\nr"
    assert response_of(query, prompt) == "r" and response_of(query, prompt + "c") is None


# verl ------------------------------------------------------------------------------------------------------------------


@both("verl")
@pytest.mark.long
def test_verl(how, tokenizer, records, wanted):
    """`reward.custom_reward_function.path`, with the record's id in `extra_info`, or the question and its pictures."""
    image = records[0].images[0]
    infos = [
        {"split": "train", "index": 2, "record_id": records.records[2].id},
        {"index": 3, "id": records.records[1].id},
        {"question": "What is it?", "images": [{"bytes": image, "path": None}]},
        {"question": "What is<image> it?", "images": [url(image)]},
    ]
    answers = [ANSWERS[0], ANSWERS[1], ANSWERS[0], ANSWERS[1]]
    prompts = [
        {"record_id": records.records[2].id},
        {"record_id": records.records[1].id},
        asked(image, "What is it?"),
        asked("What is", image, " it?"),
    ]
    found = trainers.verl(how, FILE, [{"extra_info": info} for info in infos], answers, tokenizer)
    rewards = [wanted([answer], **prompt)[0] for prompt, answer in zip(prompts, answers, strict=True)]
    assert found == pytest.approx(rewards, abs=1e-5) and all(isinstance(each, float) for each in found)


@both("verl")
def test_verls_own_client_of_a_reward_model(how, server, tokenizer, wanted):
    found = trainers.verl_classified(how, server, [{"role": "user", "content": "Why?"}], ANSWERS[1], tokenizer)
    assert found == pytest.approx(wanted(ANSWERS[1:], **asked("Why?"))[0], abs=1e-5)


def test_verl_without_an_id_or_a_question_is_an_error():
    with pytest.raises(RewardError, match=r"no record's id.*index"):
        asyncio.run(reward_client.compute_score("mm", "a", "", {"index": 1}))


# ms-swift --------------------------------------------------------------------------------------------------------------


@both("swift")
@pytest.mark.long
def test_ms_swift(how, records, wanted, monkeypatch, tmp_path):
    """Columns that some rows do not have are None there; messages end with the answer; pictures stand at their tags."""
    image, path = records[0].images[0], tmp_path / "a.png"
    path.write_bytes(image)
    said = lambda question, answer: [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"messages": said("x", ANSWERS[0]), "id": records.records[1].id},
        {"messages": said("x", ANSWERS[1]), "id": records.records[1].id, "solution": "b"},
        {"messages": said("<image>What is it?", ANSWERS[0]), "images": [{"bytes": image, "path": None}]},
        {"messages": [system, *said("What is it?<image>", ANSWERS[1])], "images": [{"bytes": None, "path": str(path)}]},
        {"messages": said("Why?", ANSWERS[1])},
    ]
    prompts = [
        {"record_id": records.records[1].id},
        {"record_id": records.records[1].id},
        asked(image, "What is it?"),
        asked("What is it?", image),
        asked("Why?"),
    ]
    rewards = [wanted([row["messages"][-1]["content"]], **prompt)[0] for row, prompt in zip(rows, prompts, strict=True)]
    assert trainers.ms_swift(how, FILE, rows, monkeypatch) == pytest.approx(rewards, abs=1e-5)


@both("swift")
@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"id": "none"}, "there is no record"),
        ({"images": [b"a"], "content": "<image><image>?"}, "places for 2 images, and there are 1"),
        ({"content": "<image>?"}, "places for 1 images, and there are 0"),
        ({"images": ["/no/such.png"]}, "cannot be read"),
        ({"videos": ["a.mp4"]}, "add a column record_id"),
        ({"before": "Who?"}, "has 2 messages of the user"),
    ],
)
def test_ms_swift_has_no_number_for_what_cannot_be_judged(how, row, says, monkeypatch):
    content, before = row.pop("content", "What?"), row.pop("before", None)
    turns = [] if before is None else [{"role": "user", "content": before}, {"role": "assistant", "content": "a"}]
    messages = [*turns, {"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    with pytest.raises(RuntimeError, match=says):  # RewardError of the file, which ms-swift has loaded itself
        trainers.ms_swift(how, FILE, [row | {"messages": messages}], monkeypatch)


# TRL -------------------------------------------------------------------------------------------------------------------


@both("trl")
@pytest.mark.long
def test_trl(how, records, wanted):
    """Columns come by name; prompts and completions are texts or conversations, pictures PIL's."""
    name, data = records.records[2].id, records[0].images[0]
    image = Image.open(io.BytesIO(data))
    get = lambda rows, prompts, completions: trainers.trl(how, reward_client.trl_reward, rows, prompts, completions)
    by_id = get([{"record_id": name, "prompt": "x"}] * 2, ["x", "x"], ANSWERS)
    assert by_id == pytest.approx(wanted(record_id=name), abs=1e-5)
    system = {"role": "system", "content": "Be brief."}
    turn = lambda *parts: [system, {"role": "user", "content": list(parts)}]
    place, text = {"type": "image"}, {"type": "text", "text": "What is it?"}
    completions = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
    rewards = wanted(**asked(data, "What is it?"))
    assert get([{"images": [image]}] * 2, [turn(place, text)] * 2, completions) == pytest.approx(rewards, abs=1e-5)
    assert get([{"image": image}] * 2, ["What is it?"] * 2, ANSWERS) == pytest.approx(rewards, abs=1e-5)
    own = turn({"type": "image", "image": image}, text)  # as TRL's own preparation of messages writes it
    assert get([{"images": [image]}] * 2, [own] * 2, completions) == pytest.approx(rewards, abs=1e-5)
    behind = wanted(**asked("What is it?", data))
    assert get([{"images": [image]}] * 2, [turn(text, place)] * 2, completions) == pytest.approx(behind, abs=1e-5)


@both("trl")
def test_trl_leaves_out_what_is_refused(how, records, wanted, caplog):
    rows = [{"record_id": records.records[0].id}, {"record_id": "none"}]
    found = trainers.trl(how, reward_client.trl_reward, rows, ["x", "y"], ANSWERS)
    assert found[0] == pytest.approx(wanted(record_id=records.records[0].id)[0], abs=1e-5) and math.isnan(found[1])
    assert "1 of 2 responses have no reward" in caplog.text and "there is no record" in caplog.text
    with pytest.raises(RewardError, match="there is no record"):
        trainers.trl(how, reward_client.trl_reward, rows[1:] * 2, ["x", "y"], ANSWERS)


@both("trl")
def test_trl_does_not_go_on_without_a_server(how, monkeypatch):
    monkeypatch.setenv("MMRLHF_REWARD_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(reward_client, "FIRST_WAIT", 0.001)
    with pytest.raises(RewardError, match="ConnectError"):
        trainers.trl(how, reward_client.trl_reward, [{"record_id": "a"}], ["x"], ["a"])
