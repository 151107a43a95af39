"""Critiques from a server, rewards from the engine here: `mmrlhf score --critic-endpoint`."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from mmrlhf_jax.cli import app
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.rewarded import with_rewards
from mmrlhf_jax.data.scores import read_scores
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import endpoint, endpoint_critic, journal
from mmrlhf_jax.inference.endpoint import Endpoint
from mmrlhf_jax.inference.engine import Engine
from tests import ranked
from tests.serving import fakes
from tests.serving.fakes import Fake, Reply, chat, refusal
from tests.serving.scoring import CRITIQUES, RANKS, SIZES, about, failing, given, prompts, refused, scored


@pytest.fixture
def source(tmp_path):
    return ranked.write(tmp_path / "data", RANKS, SIZES)


@pytest.fixture(autouse=True)
def quick(monkeypatch, beside):
    """The model is loaded once for all tests, and nothing waits."""
    monkeypatch.setattr(Engine, "load", lambda path, **_: beside)
    monkeypatch.setattr(journal, "PART_SECONDS", 0.0)
    monkeypatch.setattr(endpoint, "_pause", lambda attempt, stated: 0.05)


@pytest.mark.long
def test_critiques_are_those_of_the_server_and_rewards_those_of_given_critiques(directory, beside, source, tmp_path):
    with fakes.running(Fake(about(source))) as fake:
        lines = scored(directory, source, tmp_path / "out", fake.url, "--concurrency", "1", "--max-new-tokens", "9")
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES
    found = [[each["reward"] for each in line["responses"]] for line in lines]
    assert found == [pytest.approx(rewards, abs=1e-5) for rewards in given(beside, source, CRITIQUES)]
    (critic_of_all,) = {json.dumps(line["critic"]) for line in lines}
    assert json.loads(critic_of_all) == endpoint_critic.provenance(beside, Endpoint(fake.url, "m"))
    assert re.fullmatch("[0-9a-f]{16}", json.loads(critic_of_all)["template"])
    main = fake.asked[-9:]
    assert fake.texts()[-9:] == [text for texts in prompts(source) for text in texts]  # groups, back to back
    assert {(body["temperature"], body["seed"], body["max_completion_tokens"], body["model"]) for body in main} == {
        (0, 0, 9, "m")
    }
    pictures = [[part for part in body["messages"][0]["content"] if part["type"] == "image_url"] for body in main]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 1 and pictures[5] == pictures[6] and len(pictures[5]) == 2
    rewarded = with_rewards(open_examples(source), tmp_path / "out", "data")
    assert [[r.reward for r in record.responses] for record in rewarded.records] == found


@pytest.mark.long
def test_our_own_server_gives_what_the_engine_gives_alone(directory, address, beside, source, tmp_path, capsys):
    lines = scored(directory, source, tmp_path / "out", address, "--max-new-tokens", "12")
    here = ["--model", str(directory), "--data", str(source), "--out", str(tmp_path / "alone"), "--max-new-tokens", "12"]
    assert CliRunner().invoke(app, ["score", *here]).exception is None
    alone = [json.loads(text) for text in (tmp_path / "alone").read_text().splitlines()]
    for line, own in zip(lines, alone, strict=True):
        assert line["digests"] == own["digests"]
        for made, response in zip(line["responses"], own["responses"], strict=True):
            if "error" not in made:  # a blank critique
                assert made.pop("reward") == pytest.approx(response.pop("reward"), abs=1e-5)
                assert made == response and made["truncated"]  # random weights do not stop
    assert sum("error" not in each for line in lines for each in line["responses"]) >= 5
    said = capsys.readouterr().err  # the server says its tokens, which are ours
    assert "cannot be checked" not in said and "refuses" not in said and "other way" not in said


# What is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (refusal(400, "too long"), "400: too long"),
        (refusal(422, "odd picture"), "422: odd picture"),
        (chat(" \n"), "the server wrote no critique"),
        (chat(None), "the server wrote no critique"),
        (chat("half", "content_filter"), "the server ended the text: content_filter"),
        (Reply(200, b"{}"), "choices: field required"),
    ],
)
@pytest.mark.long
def test_what_the_server_refuses_has_its_reason_in_place_of_a_reward(directory, source, tmp_path, capsys, answer, says):
    wrong, out = [(1, 2), (3, 0), (3, 1)], tmp_path / "out"
    with fakes.running(Fake(failing(source, wrong, answer))) as fake:
        lines = scored(directory, source, out, fake.url)
    found = {(i, k): each for i, line in enumerate(lines) for k, each in enumerate(line["responses"])}
    for place, each in found.items():
        if place in wrong:
            assert says in each["error"] and each["reward"] is None and each["critique"] is None
        else:
            assert "error" not in each and isinstance(each["reward"], float)
    assert "3 of 9 responses, in 2 records, have no reward (the first is of 'group-1'" in (said := capsys.readouterr().err)
    assert says in said
    rewarded = with_rewards(open_examples(source), out, "data")
    assert [r.reward is None for r in rewarded.records[3].responses] == [True, True]  # not the data's own rewards
    assert "3 of 9 responses" in capsys.readouterr().err


@pytest.mark.parametrize("number", [0, 2])
def test_a_broken_picture_is_its_records_error_wherever_it_stands(directory, source, tmp_path, number):
    picture = source.parent / json.loads(source.read_text().splitlines()[number])["images"][0]
    picture.write_bytes(picture.read_bytes()[:-40])
    with fakes.running(Fake(about(source))) as fake:
        lines = scored(directory, source, tmp_path / "out", fake.url)
    for place, line in enumerate(lines):
        assert all(("truncated or broken" in each.get("error", "")) == (place == number) for each in line["responses"])


@pytest.mark.long
def test_scores_are_evaluated_as_they_are(directory, source, tmp_path):
    """Two of the data's five pairs have a response without a reward."""
    with fakes.running(Fake(failing(source, {(1, 1), (3, 0)}, refusal(400, "no")))) as fake:
        lines = scored(directory, source, tmp_path / "scores.jsonl", fake.url)
    evaluation = ["--data", str(source), "--scores", str(tmp_path / "scores.jsonl"), "--json"]
    found = CliRunner().invoke(app, ["eval", "reward-bench", *evaluation])
    assert found.exception is None, found.exception
    assert "2 of 4 records have responses without a reward; the first: record 'group-1': 400: no" in found.stderr
    figures = json.loads(found.stdout)["overall"]
    rewards = [[each["reward"] for each in line["responses"]] for line in lines]
    right = [
        rewards[record][better] > rewards[record][worse]
        for record, ranks in enumerate(RANKS)
        for better, first in enumerate(ranks)
        for worse, second in enumerate(ranks)
        if first < second and None not in (rewards[record][better], rewards[record][worse])
    ]
    assert (figures["pairs"], figures["scored"], figures["right"]) == (5, 3, sum(right)) and len(right) == 3


def test_critiques_that_were_cut_off_say_so_and_are_counted(directory, source, tmp_path, capsys):
    with fakes.running(Fake(failing(source, [(0, 1), (2, 0)], chat("cut", "length")))) as fake:
        lines = scored(directory, source, tmp_path / "out", fake.url)
    cut = {(i, k) for i, line in enumerate(lines) for k, each in enumerate(line["responses"]) if each.get("truncated")}
    assert cut == {(0, 1), (2, 0)}
    assert "critiques of 2 of 9 responses were cut off at their longest" in capsys.readouterr().err


def test_a_server_that_refuses_everything_ends_the_pass(directory, source, tmp_path):
    with fakes.running(Fake(lambda body: refusal(400, "no pictures here"))) as fake:
        says = refused(directory, source, tmp_path / "out", fake.url)
    assert "takes none of the prompts that were tried (400: no pictures here)" in says
    replied = []

    def later(body):
        replied.append(body)
        return chat() if len(replied) <= 3 else refusal(400, "not any more")

    with fakes.running(Fake(later)) as fake:
        says = refused(directory, source, tmp_path / "out", fake.url, "--concurrency", "1")
    assert "writes no critique of any response (400: not any more)" in says


@pytest.mark.parametrize("status", [401, 404])
def test_a_key_or_model_that_is_not_known_ends_the_pass(directory, source, tmp_path, status):
    with fakes.running(Fake(lambda body: refusal(status))) as fake:
        assert str(status) in refused(directory, source, tmp_path / "out", fake.url)
    assert len(fake.asked) == 1


def test_a_model_that_is_not_served_is_refused_before_anything_is_asked(directory, source, tmp_path):
    with fakes.running(Fake(models=("a", "b"))) as fake:
        assert "name one" in refused(directory, source, tmp_path / "out", fake.url)
        assert "does not serve 'c', but a, b" in refused(directory, source, tmp_path / "out", fake.url, "--critic-model", "c")
    assert not fake.asked


def test_options_that_do_not_go_together_are_refused(directory, source, tmp_path):
    out = tmp_path / "out"
    assert "give one of the two" in refused(directory, source, out, "http://h", "--critique", "given")
    assert "not an address" in refused(directory, source, out, "h:1")
    arguments = ["--model", str(directory), "--data", str(source), "--out", str(out), "--critic-model", "m"]
    result = CliRunner().invoke(app, ["score", *arguments])
    assert "--critic-endpoint; give its address" in str(result.exception)


# Reading the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("response", [{"reward": None}, {}, {"reward": None, "error": ""}, {"reward": None, "error": 3}])
def test_a_reward_may_lack_only_beside_its_reason(tmp_path, response):
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps({"id": "1", "responses": [{"reward": 1.0}, response]}))
    with pytest.raises(UserError, match=r"response 1: (reward must be a finite number|error must be text)"):
        read_scores(path)
