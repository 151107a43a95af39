"""`/v1/rewards` and its views give the rewards that `mmrlhf score` gives."""

from __future__ import annotations

import base64
import json

import httpx
import numpy as np
import pytest

from mmrlhf_jax.inference import critic
from tests import ranked
from tests.serving.attacks import picture

TURN = "<|im_start|>{}\n{}<|im_end|>\n"
SYSTEM = TURN.format("system", "You are a helpful assistant.")
LOW = picture(ranked.picture((30, 30), 0))
LOW["image_url"]["detail"] = "low"


@pytest.fixture(scope="module")
def post(address):
    with httpx.Client(base_url=address, timeout=300) as client:
        yield lambda path, body: client.post(path, json=body)


@pytest.fixture(scope="module")
def scored(beside, records):
    """The records with what the critic says of their responses."""
    return critic.score(beside, records, max_new_tokens=16)


def pictures(records, index: int) -> list[dict]:
    images = records[index].images
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(x).decode()}"}} for x in images
    ]


def messages(records, index: int) -> list[dict]:
    text = {"type": "text", "text": records.records[index].prompt}
    return [{"role": "user", "content": [*pictures(records, index), text]}]


def wanted(scored, index: int) -> list[float]:
    return [response.reward for response in scored[index].responses]


def texts(scored, index: int) -> list[str]:
    return [response.text for response in scored[index].responses]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("by", ["messages", "record_id"])
@pytest.mark.long
def test_rewards_and_critiques_are_the_critics(post, records, scored, index, by):
    prompt = {"messages": messages(records, index)} if by == "messages" else {"record_id": records.records[index].id}
    reply = post("/v1/rewards", prompt | {"responses": texts(scored, index), "max_critique_tokens": 16})
    assert reply.status_code == 200, reply.text
    data = reply.json()["data"]
    assert [each["index"] for each in data] == list(range(len(data)))
    np.testing.assert_allclose([each["reward"] for each in data], wanted(scored, index), atol=1e-5)
    assert [each["critiques"][0]["text"] for each in data] == [r.critique or "" for r in scored[index].responses]
    assert reply.json()["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("mode", ["given", "none"])
@pytest.mark.long
def test_critiques_may_be_given_or_left_out(post, beside, records, mode):
    found = critic.score(beside, records, critique=mode)
    for index, record in enumerate(records.records):
        body = {"record_id": record.id, "responses": [r.text for r in record.responses], "critique": mode}
        if mode == "given":
            body["critiques"] = [response.critique for response in record.responses]
        reply = post("/v1/rewards", body)
        assert reply.status_code == 200, reply.text
        np.testing.assert_allclose([each["reward"] for each in reply.json()["data"]], wanted(found, index), atol=1e-5)


def test_several_critiques_give_a_mean_and_a_spread(post, records):
    body = {"record_id": records.records[0].id, "responses": ["A kite.", "A bird."], "n": 3, "temperature": 1.0, "seed": 7}
    first, again = (post("/v1/rewards", body | {"max_critique_tokens": 12}).json()["data"] for _ in range(2))
    assert first == again
    for each in first:
        rewards = [critique["reward"] for critique in each["critiques"]]
        assert len(rewards) == 3 and len({critique["text"] for critique in each["critiques"]}) == 3
        assert each["reward"] == pytest.approx(np.mean(rewards)) and each["std"] == pytest.approx(np.std(rewards, ddof=1))


@pytest.mark.parametrize("mode", ["written", "given", "none"])
def test_a_records_picture_is_encoded_once_for_all_rollouts(post, records, service, monkeypatch, mode):
    """Also if each is sent alone, as verl does: then a response must not be in the part that the cache is asked for."""
    (scheduler,) = service.worker.schedulers
    encode, counted = scheduler.programs.encode, []
    monkeypatch.setattr(scheduler.programs, "encode", lambda *given: (counted.append(1), encode(*given))[1])
    answers = ["A kite.", "A bird.", "Another one", ""]
    asked = lambda numbers: {
        "messages": [{"role": "user", "content": [*pictures(records, 2), {"type": "text", "text": f"Which {mode}?"}]}],
        "responses": [answers[number] for number in numbers],
        "critique": mode,
        **({"critiques": [f"It is {answers[number]}" for number in numbers]} if mode == "given" else {}),
        **({"max_critique_tokens": 4} if mode == "written" else {}),
    }
    alone = [post("/v1/rewards", asked([number])).json() for number in range(4)]
    together = post("/v1/rewards", asked(range(4))).json()
    cached = [reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in (*alone, together)]
    assert len(counted) == 1 and cached[0] == 0 and len(set(cached[1:])) == 1 and cached[1] > 0
    rewards = [reply["data"][0]["reward"] for reply in alone]
    assert [each["reward"] for each in together["data"]] == pytest.approx(rewards, abs=1e-5)


def test_responses_are_taken_that_fit_before_or_behind_the_trunks_end(post, service):
    """A long prompt with a short response, and a short prompt with a response that is longer than what may follow it."""
    ask = lambda question, *responses: post("/v1/rewards", {"messages": [{"role": "user", "content": question}],
                                                            "responses": responses, "critique": "none"})  # fmt: skip
    usage = ask("Why?", "a").json()["usage"]["prompt_tokens"]
    room, behind = service.model.longest_trunk, service.model.longest_branch
    long = "x" * (room - usage - 50)
    assert ask(long, "y" * 200).status_code == ask(long, "y" * 200, "z" * 200).status_code == 200
    assert ask("Why?", "y" * (behind + 100)).status_code == 200
    reply = ask("Why?", "y" * (behind + 100), "z")
    assert reply.status_code == 400 and "the longest response with its critique" in reply.json()["error"]["message"]
    assert reply.json()["error"]["param"] == "responses" and reply.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.long
def test_views_give_the_same_numbers(post, records, scored):
    answers, rewards = texts(scored, 1), None
    question = records.records[1].prompt
    reply = post("/v1/rewards", {"messages": messages(records, 1), "responses": answers})
    rewards = [each["reward"] for each in reply.json()["data"]]
    for path in ("/score", "/v1/score"):
        found = post(path, {"text_1": question, "text_2": answers}).json()
        assert [each["score"] for each in found["data"]] == pytest.approx(rewards, abs=1e-5)
    parts = {"content": [{"type": "text", "text": question}]}
    paired = post("/score", {"queries": [parts] * len(answers), "documents": answers, "model": "tiny"}).json()
    assert [each["score"] for each in paired["data"]] == pytest.approx(rewards, abs=1e-5)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        found = post(path, {"query": question, "documents": answers, "top_n": 2}).json()["results"]
        assert [each["index"] for each in found] == sorted(range(len(answers)), key=lambda i: -rewards[i])[:2]
        assert found[0]["relevance_score"] == pytest.approx(max(rewards), abs=1e-5)
        assert found[0]["document"]["text"] == answers[found[0]["index"]]
    turn = [{"role": "user", "content": question}, {"role": "assistant", "content": answers[0]}]
    found = post("/classify", {"messages": turn, "use_activation": False}).json()["data"]
    assert found[0]["probs"] == pytest.approx(rewards[:1], abs=1e-5)
    written = [SYSTEM + TURN.format("user", question) + TURN.format("assistant", answer) for answer in answers]
    found = post("/classify", {"model": "tiny", "input": written, "use_activation": False}).json()["data"]
    assert [each["probs"][0] for each in found] == pytest.approx(rewards, abs=1e-5)
    assert [each["num_classes"] for each in found] == [1] * len(answers)


USAGE = {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}


@pytest.mark.long
def test_replies_have_exactly_the_fields_of_their_protocols(post, records):
    """vLLM's `pooling/scoring` and `pooling/classify`, OpenRLHF's `utils/agent.py`, and our own call."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    listed = {"id", "object", "created", "model", "data", "usage"}
    for path, body, outer, inner in (
        ("/v1/rewards", {"record_id": "group-1", "responses": ["a", "b"]}, listed, {"index", "reward", "std", "critiques"}),
        ("/score", {"text_1": "a", "text_2": ["b", "c"]}, listed, {"index", "object", "score"}),
        ("/classify", {"messages": turns}, listed, {"index", "label", "probs", "num_classes"}),
        ("/rerank", {"query": "a", "documents": ["b", "c"]}, {"id", "model", "usage", "results"},
         {"index", "document", "relevance_score"}),
    ):  # fmt: skip
        found = post(path, body).json()
        assert set(found) == outer and set(found["usage"]) == USAGE and found["model"] == "tiny", path
        data = found.get("data", found.get("results"))
        assert all(set(each) == inner for each in data), path
        assert "object" not in found or found["object"] == "list"
        usage = found["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    data = post("/v1/rewards", {"record_id": "group-1", "responses": ["a"]}).json()["data"]
    assert data[0]["std"] is None and set(data[0]["critiques"][0]) == {"text", "reward", "finish_reason"}
    assert (
        post("/v1/rewards", {"record_id": "group-1", "responses": ["a"], "critique": "none"}).json()["data"][0]["critiques"]
        == []
    )
    asked = {"query": ["pa"], "prompts": ["p"], "labels": ["group-1"]}
    assert set(post("/get_reward", asked).json()) == {"rewards", "scores", "extra_logs"}


@pytest.mark.long
def test_queries_and_documents_have_each_of_their_forms(post, records):
    parts = messages(records, 0)[0]["content"]
    wanted = post("/v1/rewards", {"messages": messages(records, 0), "responses": ["A kite."], "critique": "written"}).json()
    for query in ({"content": parts}, [{"content": parts}]):
        for document in ("A kite.", ["A kite."], {"content": [{"type": "text", "text": "A kite."}]}):
            reply = post("/score", {"data_1": query, "items": document})
            assert reply.status_code == 200, reply.text
            assert reply.json()["data"][0]["score"] == pytest.approx(wanted["data"][0]["reward"], abs=1e-5)
    usage = post("/score", {"data_1": {"content": parts}, "items": "A kite."}).json()["usage"]
    assert usage["prompt_tokens"] == wanted["usage"]["prompt_tokens"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


@pytest.mark.long
def test_openrlhf_names_records_by_labels(post, records, scored):
    prompt = "<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n"
    query, labels, expected = [], [], []
    for index in (0, 2, 0):
        for answer in texts(scored, index):
            query.append(f"{prompt}{answer}<|im_end|>\n")
            labels.append(records.records[index].id if index else f'{{"id": "{records.records[index].id}"}}')
        reply = post("/v1/rewards", {"record_id": records.records[index].id, "responses": texts(scored, index)})
        expected += [each["reward"] for each in reply.json()["data"]]
    found = post("/get_reward", {"query": query, "prompts": [prompt] * len(query), "labels": labels}).json()
    assert found["rewards"] == found["scores"] == pytest.approx(expected, abs=1e-5) and found["extra_logs"] == {}


def test_labels_may_hold_the_question_and_its_pictures(post, records):
    urls = [part["image_url"]["url"] for part in pictures(records, 2)]
    label = json.dumps({"question": records.records[2].prompt, "images": urls})
    found = post("/get_reward", {"query": ["pA kite."], "prompts": ["p"], "labels": [label]}).json()
    wanted = post("/v1/rewards", {"record_id": records.records[2].id, "responses": ["A kite."]}).json()
    assert found["rewards"] == pytest.approx([wanted["data"][0]["reward"]], abs=1e-5)
    same = [json.dumps({"question": "a"} | more) for more in ({}, {"images": []}, {"images": None})]  # as an empty column is
    found = post("/get_reward", {"query": ["pA kite."] * 3, "prompts": ["p"] * 3, "labels": same}).json()
    assert len(found["rewards"]) == 3 and len(set(found["rewards"])) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/rewards", {"responses": ["a"]}, 400, "give messages or record_id"),
        ("/v1/rewards", {"responses": ["a"], "record_id": "none"}, 404, "there is no record 'none'"),
        ("/v1/rewards", {"responses": [], "record_id": "group-0"}, 400, "responses"),
        ("/v1/rewards", {"responses": ["a"], "record_id": "group-0", "critique": "given"}, 400, "critiques are needed"),
        ("/v1/rewards", {"responses": ["a"], "record_id": "group-0", "critique": "given", "critiques": []}, 400, "0 critiques"),
        ("/v1/rewards", {"responses": ["a"], "record_id": "group-0", "n": 2}, 400, "temperature above 0"),
        ("/v1/rewards", {"responses": ["a"] * 65, "record_id": "group-0"}, 400, "65 are more than"),
        ("/v1/rewards", {"responses": ["a" * 5000], "record_id": "group-0"}, 400, "this server has room for"),
        (
            "/v1/rewards",
            {"responses": ["a"], "messages": [{"role": "user", "content": "b"}] * 2},
            400,
            "responses to one user message",
        ),
        (
            "/v1/rewards",
            {"responses": ["a"], "record_id": "group-0", "messages": [{"role": "user", "content": "b"}]},
            400,
            "one of",
        ),
        (
            "/v1/rewards",
            {"responses": ["a"], "record_id": "group-0", "critique": "none", "max_critique_tokens": 3},
            400,
            "written",
        ),
        ("/v1/rewards", {"responses": ["a"], "record_id": "group-0", "temperature": True}, 400, "temperature"),
        ("/v1/rewards", {"responses": [1], "record_id": "group-0"}, 400, "responses.0"),
        ("/v1/rewards", {"responses": ["a"], "record_id": "group-0", "max_critique_tokens": 5000}, 400, "has room for"),
        (
            "/v1/rewards",
            {"responses": ["a"], "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]},
            400,
            "responses to one user message",
        ),
        (
            "/v1/rewards",
            {"responses": ["a"], "messages": [{"role": "user", "content": [LOW, {"type": "text", "text": "b"}]}]},
            400,
            "leave out detail low",
        ),
        ("/score", {"text_1": "a", "text_2": ["b"] * 257}, 400, "257 prompts with responses"),
        ("/score", {"text_1": "a", "text_2": ["b"] * 65}, 400, "65 are more than"),
        ("/score", {"text_1": "a", "queries": "a", "text_2": "b"}, 400, "not supported"),
        ("/score", {"text_1": [], "text_2": "b"}, 400, "text_1"),
        ("/score", {"text_1": "a", "text_2": {"content": [LOW]}}, 400, "a response has text alone"),
        ("/classify", {"input": "What? A kite."}, 400, "as the model's chat template writes them"),
        ("/classify", {"input": f"{SYSTEM}{TURN.format('user', 'a')}" * 2}, 400, "as the model's chat template writes them"),
        ("/classify", {"input": []}, 400, "input"),
        ("/classify", {}, 400, "give messages or input"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, 400, "2 queries for 3 documents"),
        ("/score", {"text_1": "a", "text_2": "b", "use_activation": True}, 400, "use_activation"),
        ("/rerank", {"query": "a", "documents": []}, 400, "documents"),
        ("/classify", {"messages": [{"role": "user", "content": "a"}] * 2}, 400, "must be the assistant's"),
        ("/get_reward", {"query": ["ab"], "prompts": ["b"], "labels": ["group-0"]}, 400, "does not begin with its prompt"),
        ("/get_reward", {"query": ["ab"], "prompts": ["a"], "labels": []}, 400, "the same length"),
        ("/get_reward", {"query": ["ab"], "prompts": ["a"], "labels": ['{"id": true}']}, 400, "no JSON object with id"),
        ("/get_reward", {"query": ["ab"], "prompts": ["a"], "labels": ['{"question": 1}']}, 400, "no JSON object with id"),
        ("/get_reward", {"query": ["ab"], "prompts": ["a"], "labels": ["{" * 20_000]}, 400, "no JSON object with id"),
        (
            "/get_reward",
            {"query": ["ab"], "prompts": ["a"], "labels": ['{"question": "a", "images": ["x"]}']},
            400,
            "data URLs",
        ),
        ("/get_reward", {"query": ["ab"], "prompts": ["a"], "labels": ["{}"]}, 400, "no JSON object with id"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_wrong_is_refused_with_its_reason(post, path, body, status, says):
    reply = post(path, body)
    assert reply.status_code == status and says in reply.json()["error"]["message"], reply.text
