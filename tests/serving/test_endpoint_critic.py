"""Critiques from a server, rewards from the engine here: `mmrlhf score --critic-endpoint`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from typer.testing import CliRunner

from mmrlhf_jax.cli import app
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.scores import read_scores, with_rewards
from mmrlhf_jax.data.templates import critique_prompt
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import critic, endpoint, endpoint_critic, journal, probe
from mmrlhf_jax.inference.endpoint import Endpoint
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.probe import MEDIUM, collapsed
from mmrlhf_jax.inference.prompts import plans_of
from mmrlhf_jax.records import RankedRecord, Response
from tests import ranked
from tests.serving import fakes
from tests.serving.fakes import Fake, Reply, chat, refusal

SIZES = [[(40, 30)], [], [(30, 30), (50, 20)], []]
RANKS = [(1, 2), (1, 2, 2), (2, 1), (1, 2)]


@pytest.fixture
def source(tmp_path):
    return ranked.write(tmp_path / "data", RANKS, SIZES)


@pytest.fixture(autouse=True)
def quick(monkeypatch, beside):
    """The model is loaded once for all tests, and nothing waits."""
    monkeypatch.setattr(Engine, "load", lambda path, **_: beside)
    monkeypatch.setattr(journal, "PART_SECONDS", 0.0)
    monkeypatch.setattr(endpoint, "_pause", lambda attempt, stated: 0.05)


def score(directory, source, out, url: str, *more: str):
    arguments = ["--model", str(directory), "--data", str(source), "--out", str(out), "--critic-endpoint", url, *more]
    result = CliRunner().invoke(app, ["score", *arguments])
    sys.stderr.write(result.stderr)
    return result


def scored(directory, source, out, url: str, *more: str) -> list[dict]:
    result = score(directory, source, out, url, *more)
    assert result.exception is None, result.exception
    assert not list(out.parent.glob(f".{out.name}*"))
    return [json.loads(text) for text in out.read_text().splitlines()]


def refused(directory, source, out, url: str, *more: str) -> str:
    result = score(directory, source, out, url, *more)
    assert isinstance(result.exception, UserError), result
    assert not out.exists()
    return str(result.exception)


def given(beside, source, critiques: list[list[str]]) -> list[list[float]]:
    """The rewards with these critiques, as `--critique given` computes them."""
    rows = [json.loads(text) for text in source.read_text().splitlines()]
    for row, own in zip(rows, critiques, strict=True):
        for response, critique in zip(row["responses"], own, strict=True):
            response["critique"] = critique
    path = source.parent / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = critic.score(beside, open_examples(path), critique="given")
    path.unlink()
    return [[response.reward for response in record.responses] for record in found]


def prompts(source) -> list[list[str]]:
    """The texts of all requests, by record."""
    found = []
    for record in open_examples(source).records:
        asked = [critique_prompt(record.prompt_text(), response.text) for response in record.responses]
        found.append([each if isinstance(each, str) else "".join(each) for each in asked])
    return found


def about(source):
    """A reply whose critique names the response that it is of."""
    numbers = {text: f"{i}.{k}" for i, texts in enumerate(prompts(source)) for k, text in enumerate(texts)}

    def reply(body) -> Reply:
        text = "".join(part.get("text", "") for part in body["messages"][0]["content"])
        return chat(f"critique of {numbers[text]}")

    return reply


CRITIQUES = [[f"critique of {i}.{k}" for k in range(len(ranks))] for i, ranks in enumerate(RANKS)]


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
    assert "refuses" not in capsys.readouterr().err


# What is refused -------------------------------------------------------------------------------------------------------


def failing(source, wrong, answer: Reply):
    """Replies with `answer` to the requests for the responses in `wrong`, (record, response)."""
    usual, texts = about(source), prompts(source)
    bad = {texts[i][k] for i, k in wrong}
    return lambda body: (
        answer if "".join(p.get("text", "") for p in body["messages"][0]["content"]) in bad else usual(body)
    )  # fmt: skip


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


def test_critiques_that_were_cut_off_say_so_and_are_counted(directory, source, tmp_path, capsys):
    with fakes.running(Fake(failing(source, [(0, 1), (2, 0)], chat("cut", "length")))) as fake:
        lines = scored(directory, source, tmp_path / "out", fake.url)
    cut = {(i, k) for i, line in enumerate(lines) for k, each in enumerate(line["responses"]) if each.get("truncated")}
    assert cut == {(0, 1), (2, 0)}
    assert "2 of 9 critiques were cut off at their longest" in capsys.readouterr().err


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


# The probe -------------------------------------------------------------------------------------------------------------


def with_ids(beside, source, change=lambda ids: ids):
    """Replies like vLLM, which says the tokens that it read, to those who ask: ours, changed."""
    examples, encoder = open_examples(source), beside.encoder("uncritiqued")
    by_text = {}
    for index, texts in enumerate(prompts(source)):
        record, plans = examples.records[index], plans_of(examples[index], encoder)
        own = [encoder.conversation(record, response, plans).tokens.tolist() for response in record.responses]
        by_text |= dict(zip(texts, own, strict=True))

    def reply(body) -> Reply:
        text = "".join(part.get("text", "") for part in body["messages"][0]["content"])
        return chat("a critique", **({"prompt_token_ids": change(by_text[text])} if body.get("return_token_ids") else {}))

    return reply


def checked(beside, source, reply, **more) -> bool:
    with fakes.running(Fake(reply)) as fake:
        client = Endpoint(fake.url, "m")
        return endpoint_critic.EndpointCritic(client, 5).check_tokens(open_examples(source), beside.encoder("uncritiqued"))


def one_placeholder(beside):
    """Tokens before their pictures are filled in: one for each."""
    media = beside.encoder("answer").tokenizer.media_ids
    placeholder = beside.config.image_token
    return lambda ids: [placeholder if token == MEDIUM else token for token in collapsed(ids, media)]


def test_equal_tokens_are_equal_with_and_without_filled_in_pictures(beside, source, capsys):
    assert checked(beside, source, with_ids(beside, source))
    assert checked(beside, source, with_ids(beside, source, one_placeholder(beside)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("where", [0, 20, -1])
def test_a_difference_is_an_error_that_shows_both_sides(beside, source, where):
    def change(ids):
        other = list(ids)
        other[where] = 5
        return other

    with pytest.raises(UserError, match=r"record 'group-\d': its server reads other tokens .* there, .* here; serve a model"):
        checked(beside, source, with_ids(beside, source, change))


@pytest.mark.parametrize("change", [lambda ids: ids[:-1], lambda ids: [*ids, 7], lambda ids: ids[1:]])
def test_missing_and_additional_tokens_are_a_difference(beside, source, change):
    with pytest.raises(UserError, match="reads other tokens"):
        checked(beside, source, with_ids(beside, source, change))


def test_another_number_of_tokens_for_a_picture_is_said(beside, source, capsys):
    image = beside.config.image_token
    change = lambda ids: [token for token in ids for _ in range(2 if token == image else 1)]
    assert checked(beside, source, with_ids(beside, source, change))
    assert "prepares them in another way" in capsys.readouterr().err


@pytest.mark.parametrize("status", [None, 400, 422])
def test_a_server_that_does_not_say_its_tokens_is_warned_of(beside, source, capsys, status):
    def reply(body):
        return refusal(status, "return_token_ids: unknown") if status and "return_token_ids" in body else chat()

    assert not checked(beside, source, reply)
    assert capsys.readouterr().err.count("cannot be checked") == 1


def test_every_form_of_prompt_is_probed_and_one_that_is_refused_is_said(beside, source, capsys):
    usual = with_ids(beside, source)

    def no_pictures(body):
        return refusal(400, "text only") if len(body["messages"][0]["content"]) > 1 else usual(body)

    assert not checked(beside, source, no_pictures)
    said = capsys.readouterr().err
    assert "refuses record 'group-0' (400: text only)" in said and "refuses record 'group-2' (400: text only)" in said


def test_the_first_records_of_each_form_are_candidates():
    record = lambda images, video=None: RankedRecord("r", "", (Response("a"),), tuple("abc"[:images]), video)
    records = [record(1), record(1), record(1), record(1), record(0), record(2), record(3), record(0, "v")]
    assert probe.first_of_each_form(records) == [0, 1, 2, 4, 5, 6, 7]


# A pass that is continued ----------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def stops_at_the(number: int):
    """`Journal.add` that is cut off at a line."""
    add, count = journal.Journal.add, []

    def cut(self, index, line):
        count.append(index)
        if len(count) == number:
            raise Killed
        add(self, index, line)

    return cut


def test_a_pass_that_was_cut_off_asks_for_the_critiques_that_are_not_there(directory, source, tmp_path, monkeypatch):
    out, one = tmp_path / "out", ("--concurrency", "1")
    with fakes.running(Fake(about(source))) as fake:
        with monkeypatch.context() as patched:
            patched.setattr(journal.Journal, "add", stops_at_the(3))
            assert isinstance(score(directory, source, out, fake.url, *one).exception, Killed)
        asked = len(fake.asked)
        lines = scored(directory, source, out, fake.url, *one)
        again = fake.texts()[asked:]
    assert again[-4:] == [text for texts in prompts(source)[2:] for text in texts]
    assert all(body["max_completion_tokens"] == 1 for body in fake.asked[asked:-4])  # the probe
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES


def test_critiques_outlive_a_second_step_that_fails_and_the_server(directory, source, tmp_path, monkeypatch):
    """And their rewards may be computed in another way then."""
    out = tmp_path / "out"

    def broken(*_, **__):
        raise UserError("the model's reward is nan")
        yield

    with fakes.running(Fake(about(source))) as fake, monkeypatch.context() as patched:
        patched.setattr(critic, "score_each", broken)
        assert "is nan" in refused(directory, source, out, fake.url)
    lines = scored(directory, source, out, fake.url, "--critic-model", "m")  # nothing listens there any more
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES


@pytest.mark.parametrize("what", ["data", "model", "length"])
def test_critiques_of_other_content_are_not_used(directory, source, tmp_path, monkeypatch, what):
    out, more = tmp_path / "out", {"length": ("--max-new-tokens", "7")}.get(what, ())
    with fakes.running(Fake(lambda body: chat(), models=("m", "n"))) as fake:
        with monkeypatch.context() as patched:
            patched.setattr(journal.Journal, "add", stops_at_the(5))  # behind all critiques
            assert isinstance(score(directory, source, out, fake.url, "--critic-model", "m").exception, Killed)
        if what == "data":
            source.write_text(source.read_text().replace("group-3", "group-33"))
        asked = len(fake.asked)
        result = score(directory, source, out, fake.url, "--critic-model", "n" if what == "model" else "m", *more)
        assert result.exception is None
    assert sum(body["max_completion_tokens"] > 1 for body in fake.asked[asked:]) == 9


def test_a_record_that_was_refused_is_asked_for_again_by_a_pass_that_goes_on(directory, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with fakes.running(Fake(failing(source, [(3, 0), (3, 1)], refusal(400)))) as fake:
        with monkeypatch.context() as patched:
            patched.setattr(journal.Journal, "add", stops_at_the(4))  # the first reward
            assert isinstance(score(directory, source, out, fake.url).exception, Killed)
        fake.reply = about(source)
        lines = scored(directory, source, out, fake.url)
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES


def test_a_record_of_which_a_part_was_refused_is_scored_last_and_asked_for_again(directory, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with fakes.running(Fake(failing(source, [(0, 0)], refusal(400)))) as fake:
        with monkeypatch.context() as patched:
            patched.setattr(journal.Journal, "add", stops_at_the(7))  # three lines of critiques, three of rewards
            assert isinstance(score(directory, source, out, fake.url).exception, Killed)
        fake.reply = about(source)
        lines = scored(directory, source, out, fake.url)
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES


def test_a_kill_loses_no_finished_critique(directory, source, tmp_path):
    """Of a process that waits for a server which has stopped to answer."""
    out, held, usual, numbers = tmp_path / "out", threading.Event(), about(source), []

    def reply(body):
        if body["max_completion_tokens"] > 1:
            numbers.append(body)
            if len(numbers) > 5:  # the critiques of two records
                held.wait(60)
        return usual(body)

    with fakes.running(Fake(reply)) as fake:
        code = "from mmrlhf_jax.inference import journal; journal.PART_SECONDS = .2; from mmrlhf_jax.cli import main; main()"
        arguments = ["--model", str(directory), "--data", str(source), "--out", str(out), "--critic-endpoint", fake.url]
        process = subprocess.Popen([sys.executable, "-c", code, "score", *arguments, "--concurrency", "1"])
        folder = lambda: list(tmp_path.glob(".out.*.step/*.jsonl"))
        while sum(len(part.read_text().splitlines()) for part in folder()) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        held.set()
        asked = len(fake.asked)
        fake.reply = usual
        lines = scored(directory, source, out, fake.url)
    assert sum(body["max_completion_tokens"] > 1 for body in fake.asked[asked:]) == 4
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES


@pytest.mark.slow
def test_two_hosts_share_the_records_and_what_one_wrote_before_its_kill_is_not_asked_again(directory, source, tmp_path):
    out, launch, held, usual = tmp_path / "out", tmp_path / "launch.yaml", threading.Event(), about(source)
    launch.write_text("distributed: {initialization_timeout: 60}\n")
    own = {text for texts in prompts(source)[1::2] for text in texts}  # of the second host
    last = prompts(source)[3][1]

    def reply(body):
        text = "".join(part.get("text", "") for part in body["messages"][0]["content"])
        if body["max_completion_tokens"] > 1 and text == last:
            held.wait(120)
        return usual(body)

    with fakes.running(Fake(reply)) as fake:
        code = "from mmrlhf_jax.inference import journal; journal.PART_SECONDS = .2; from mmrlhf_jax.cli import main; main()"
        arguments = ["--model", str(directory), "--data", str(source), "--out", str(out), "--critic-endpoint", fake.url]

        def host(number: int) -> subprocess.Popen:
            place = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)}
            command = [sys.executable, "-c", code, "score", *arguments, "--launch", str(launch), "--concurrency", "1"]
            return subprocess.Popen(command, env=os.environ | place, stderr=subprocess.PIPE, text=True)

        hosts = [host(0), host(1)]
        while not list(tmp_path.glob(".out.*.step/0001-*.jsonl")):  # record 1
            assert hosts[1].poll() is None
            time.sleep(0.1)
        hosts[1].kill()
        hosts[1].communicate()
        held.set()
        hosts[1] = host(1)
        for each in hosts:
            said = each.communicate(timeout=300)[1]
            assert each.returncode == 0, said
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [record.id for record in open_examples(source).records]
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES
    asked = [text for text, body in zip(fake.texts(), fake.asked, strict=True) if body["max_completion_tokens"] > 1]
    assert sum(text in own for text in asked) <= len(own) + 2  # the record that was under way
    assert all(asked.count(text) == 1 for texts in prompts(source)[:3] for text in texts)
    assert not list(tmp_path.glob(".out*step"))


# Reading the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("response", [{"reward": None}, {}, {"reward": None, "error": ""}, {"reward": None, "error": 3}])
def test_a_reward_may_lack_only_beside_its_reason(tmp_path, response):
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps({"id": "1", "responses": [{"reward": 1.0}, response]}))
    with pytest.raises(UserError, match=r"response 1: (reward must be a finite number|error must be text)"):
        read_scores(path)
