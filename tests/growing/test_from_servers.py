"""Answers and critiques from running servers: asked for once, whatever ends a run; refused ones are left out and counted."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.data.templates import critique_prompt
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.growing.criticised import Judging
from mmrlhf_jax.growing.endpoint_critiques import is_line
from mmrlhf_jax.inference import critic as scoring
from mmrlhf_jax.inference import endpoint, journal
from mmrlhf_jax.inference.critic import HowToCriticise
from mmrlhf_jax.inference.endpoint_critic import SEED, first_seed
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.records import RankedRecord, Response
from tests.growing.commands import command, lines, refused
from tests.serving import fakes
from tests.serving.fakes import Fake, Reply, chat, refusal

MAKING = ("--samples", 3, "--max-new-tokens", 24, "--tie", 0.01, "--batch", 8)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "_pause", lambda attempt, stated: 0.01)
    monkeypatch.setattr(journal, "PART_SECONDS", 0.0)


def asked_text(body: dict) -> str:
    return "".join(part.get("text", "") for part in body["messages"][-1]["content"])


def answer(body: dict) -> Reply:
    """Another text for every seed, of the length that the prompt has."""
    return chat(f"It is {body['seed']}, of {len(asked_text(body))}.")


@pytest.fixture
def policy_server():
    with fakes.running(Fake(answer, models=("p",))) as fake:
        yield fake


@pytest.fixture
def critic_server():
    with fakes.running(
        Fake(lambda body: chat(f"Critique {body['seed']} of {hash(asked_text(body)) % 97}."), models=("c",))
    ) as fake:
        yield fake


@pytest.mark.long
def test_answers_and_critiques_of_servers_are_scored_here(policy_server, critic_server, critic, scenes, tmp_path):
    out = tmp_path / "out"
    servers = ["--policy-endpoint", policy_server.url, "--critic-endpoint", critic_server.url, "--critic", critic]
    said = command("annotate", *servers, "--data", scenes["prompts"], "--out", out, *MAKING, "--critiques", 2)
    assert "cannot be checked" in said  # this server does not say its tokens
    prompts, rows = lines(scenes["prompts"]), lines(out / "records.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in prompts]

    seeds = {(asked_text(body), body["seed"]) for body in policy_server.asked}
    assert len(policy_server.asked) == len(seeds) == 3 * len(prompts)
    assert all(body["temperature"] == 1.0 and body["max_completion_tokens"] == 24 for body in policy_server.asked)
    assert all(body["messages"][0]["content"][0]["type"] == "image_url" for body in policy_server.asked)

    count = sum(len(row["responses"]) for row in rows)
    assert len(critic_server.asked) == 2 * count + 1  # and a look at its tokens, which it does not say
    examples, given = SourceExamples(out / "records.jsonl"), []
    for record, row in zip(examples.records, rows, strict=True):
        for response, each in zip(record.responses, row["responses"], strict=True):
            assert each["model"] == "p" and each["score"]["served"] == {"endpoint": critic_server.url, "model": "c"}
            assert each["score"]["critic"] == str(critic) and each["score"]["fingerprint"]
            assert len({one["text"] for one in each["score"]["critiques"]}) == 2
            prompt = critique_prompt(record.prompt_text(), response.text)
            assert sum(asked_text(body) == prompt for body in critic_server.asked[1:]) == 2
            given += [dataclasses.replace(response, critique=one["text"]) for one in each["score"]["critiques"]]
    # The rewards are those of the critiques as if the data had them.
    engine, made = Engine.load(str(critic)), iter(given)
    for index, record in enumerate(examples.records):
        several = record.replace_responses([next(made) for _ in range(2 * len(record.responses))])
        one = [dataclasses.replace(examples[index], record=several)]
        scored = scoring.score(engine, Alone(one), critique="given")[0]
        rewards = [each["reward"] for response in rows[index]["responses"] for each in response["score"]["critiques"]]
        assert [response.reward for response in scored.responses] == pytest.approx(rewards, abs=1e-5)


class Alone(list):
    """Examples that are made in a test."""

    weights = None
    fingerprint = "alone"

    @property
    def records(self):
        return [example.record for example in self]

    def layout(self, index):
        from mmrlhf_jax.data.examples import Layout
        from mmrlhf_jax.data.images import image_size

        return Layout(tuple(image_size(data, "here") for data in self[index].images))


@pytest.mark.parametrize("failing", ["policy", "critic"])
@pytest.mark.long
def test_a_server_that_goes_away_costs_nothing_that_was_written(
    policy_server, critic_server, critic, scenes, tmp_path, failing
):
    out = tmp_path / "out"
    fake, right = (policy_server, answer) if failing == "policy" else (critic_server, critic_server.reply)
    arguments = ["--policy", policy_server.url, "--critic-endpoint", critic_server.url, "--critic", critic, "--concurrency", 2]
    arguments += ["--data", scenes["prompts"], "--out", out, *MAKING]
    fake.reply = lambda body: right(body) if len(fake.asked) < 11 else refusal(401, "no more")
    with pytest.raises(UserError, match="401"):
        command("annotate", *arguments)
    before = len(fake.asked)
    fake.reply = right
    command("annotate", *arguments)
    rows = lines(out / "records.jsonl")
    assert len(rows) == len(lines(scenes["prompts"]))
    needed = 3 * len(rows) if failing == "policy" else sum(len(row["responses"]) for row in rows)
    looks = int(failing == "critic")  # at the tokens that the server reads, once per run
    whole = 3 * ((10 - looks) // 3 - 1)  # of records that were answered entirely; the last one may have been on its way
    assert len(fake.asked) - before <= needed - whole + looks
    asked = len(policy_server.asked) + len(critic_server.asked)
    command("annotate", *arguments)  # it is finished: no server is needed
    assert len(policy_server.asked) + len(critic_server.asked) == asked


def test_what_a_server_refuses_is_left_out_and_said(policy_server, critic_server, critic, scenes, tmp_path):
    prompts = lines(scenes["prompts"])
    policy_server.reply = lambda body: refusal(400, "unsafe") if prompts[0]["prompt"] == asked_text(body) else answer(body)
    critic_server.reply = lambda body: chat(" ") if prompts[1]["prompt"] in asked_text(body) else chat("Right.")
    refused_ids = {row["id"] for row in prompts if row["prompt"] in (prompts[0]["prompt"], prompts[1]["prompt"])}
    out = tmp_path / "out"
    arguments = ["--policy", policy_server.url, "--critic-endpoint", critic_server.url, "--critic", critic]
    said = command("annotate", *arguments, "--data", scenes["prompts"], "--out", out, *MAKING)
    assert "prompts are refused by the policy; the first is" in said and "unsafe" in said
    assert "prompts are not read by the critic" in said and "the server wrote no critique" in said
    assert [row["id"] for row in lines(out / "records.jsonl")] == [row["id"] for row in prompts if row["id"] not in refused_ids]
    results = json.loads((out / "job.json").read_text())["results"]
    assert results["refused by the policy"] + results["not read by the critic"] == len(refused_ids)


def test_a_broken_picture_ends_no_pass_with_a_server(policy_server, critic, scenes, tmp_path):
    shutil.copytree(scenes["prompts"].parent, tmp_path / "prompts")
    path = tmp_path / "prompts" / "records.jsonl"
    broken = tmp_path / "prompts" / lines(path)[2]["images"][0]
    broken.write_bytes(broken.read_bytes()[:-200])
    arguments = ["--policy", policy_server.url, "--critic", critic, "--data", path, "--critiques", 0, *MAKING]
    said = command("annotate", *arguments, "--out", tmp_path / "out")
    assert "1 prompts are refused by the policy" in said and "truncated or broken" in said
    assert len(lines(tmp_path / "out" / "records.jsonl")) == 4


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--critic-model", "c"], "--critic-model is the name of a model at --critic-endpoint"),
        (["--critic-endpoint", "http://127.0.0.1:9", "--critiques", 0], "give one of the two"),
        (["--critic-endpoint", "somewhere"], "not an address"),
        (["--policy", "localhost:8000"], "give http://localhost:8000"),
    ],
)
def test_what_does_not_go_together_is_refused(policy, critic, scenes, tmp_path, more, says):
    arguments = ["--policy", policy, "--critic", critic, "--data", scenes["prompts"], "--out", tmp_path / "out", *more]
    assert says in refused("annotate", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_line_of_critiques_is_known_by_its_answers():
    record, judging = RankedRecord("r", "?", (Response("a"), Response("b"))), Judging(2, 8, 1.0, 0)
    from mmrlhf_jax.data.digests import text_digest

    line = {"id": "r", "digests": [text_digest("a"), text_digest("b")], "critiques": [[1, 2], [3, 4]]}
    assert is_line(judging, record, line) and is_line(judging, record, {**line, "critiques": None, "error": "no"})
    for wrong in ({"id": "s"}, {"digests": line["digests"][::-1]}, {"critiques": [[1, 2], [3]]}, {"critiques": [[1, 2]]}):
        assert not is_line(judging, record, line | wrong)
    seeds = {first_seed(judging.how, record, response) for response in record.responses}
    assert len(seeds) == 2 and max(seeds) + 1000 < 2**31
    assert first_seed(HowToCriticise(), record, record.responses[0]) == SEED
