"""Judges: what they reply is kept and found again; what fails is a reason, never a score."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import endpoint
from mmrlhf_jax.suite.judges.judge import KEY, EndpointJudge
from mmrlhf_jax.suite.judges.judging import FAILED, GONE, NO_JUDGE, NOT_READ, SILENT, Judging, NotJudged, read
from mmrlhf_jax.suite.judges.question import Question, limits, single_message
from mmrlhf_jax.suite.judges.verdicts import Verdicts
from tests.serving import fakes
from tests.serving.fakes import Fake, chat, refusal
from tests.suite.support.judged import judge, judging, text_of


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """No waiting between tries."""
    monkeypatch.setattr(endpoint, "_pause", lambda *_: 0.0)
    monkeypatch.delenv(KEY, raising=False)


def questions(*texts: str) -> list[Question]:
    return [single_message(text, text, 5) for text in texts]


def test_a_question_is_asked_once_also_by_the_next_run(tmp_path):
    asked = questions("a", "é 日本", "a")
    with judge(lambda text: f"reply to {text}") as fake:
        for run in range(2):
            with judging(fake, tmp_path / "v" / "t.jsonl") as found:
                found.ask(asked)
                assert [found.reply(each).text for each in asked] == ["reply to a", "reply to é 日本", "reply to a"], run
    assert sorted(map(text_of, fake.asked)) == ["a", "é 日本"]
    (body,) = [body for body in fake.asked if text_of(body) == "a"]
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 5, "temperature": 0.0,
    }  # fmt: skip


def test_a_verdict_belongs_to_its_judge_and_its_options(tmp_path):
    one, other = single_message("1", "a", 5), single_message("1", "a", 6)
    assert (
        one.key("m") != other.key("m") and one.key("m") != one.key("n") and one.key("m") == single_message("2", "a", 5).key("m")
    )
    raw = Question("1", (), {"max_tokens": 5}, prompt="a")
    assert raw.key("m") != one.key("m")


def test_what_fails_has_its_reason_and_is_asked_again_by_the_next_run(tmp_path):
    replies = {"refused": refusal(400), "silent": chat(" \n"), "fine": chat("yes"), "filtered": chat("yes", "content_filter")}
    asked = questions(*replies)
    with judge(replies.get) as fake, judging(fake, tmp_path / "t.jsonl") as found:
        found.ask(asked)
        found.ask(asked)  # not again
        assert [found.reply(each).failure for each in asked] == [FAILED, SILENT, None, FAILED]
    assert len(fake.asked) == 4
    with judge(lambda _: "better") as fake, judging(fake, tmp_path / "t.jsonl") as found:
        found.ask(asked)
        assert [found.reply(each).text for each in asked] == ["better", "better", "yes", "better"]
    assert len(fake.asked) == 3


def test_a_judge_that_is_gone_leaves_what_it_said_and_a_reason_for_the_rest(tmp_path, capsys):
    asked = questions("first", "second", "third")
    says = lambda text: "yes" if text == "first" else refusal(401, "no such key")
    with judge(says) as fake, Verdicts(tmp_path / "t.jsonl") as verdicts:
        found = Judging(EndpointJudge(fake.url, "m", concurrency=1), verdicts)
        found.ask(asked)
        assert [found.reply(each) for each in asked] == [("yes", None), (None, GONE), (None, GONE)]
        found.ask(questions("fourth"))
        assert found.reply(questions("fourth")[0]).failure == GONE
    assert len(fake.asked) == 2
    assert f"401: no such key; {KEY} must hold the server's key" in capsys.readouterr().err


def test_without_a_judge_everything_waits(tmp_path):
    with Verdicts(tmp_path / "t.jsonl") as verdicts:
        found = Judging(None, verdicts)
        found.ask(questions("a"))
        with pytest.raises(NotJudged, match=NO_JUDGE.split(" (")[0]):
            read(found.reply(questions("a")[0]), str)
    assert not (tmp_path / "t.jsonl").exists()


def test_a_reply_that_says_something_else_is_no_verdict(tmp_path):
    (asked,) = questions("a")
    with judge(lambda _: "banana") as fake, judging(fake, tmp_path / "t.jsonl") as found:
        found.ask([asked])
        with pytest.raises(NotJudged, match=NOT_READ):
            read(found.reply(asked), lambda text: {"yes": 1}.get(text))


def test_lines_that_are_not_whole_are_asked_again(tmp_path, capsys):
    path, asked = tmp_path / "t.jsonl", questions("a", "b")
    with judge(lambda text: text) as fake, judging(fake, path) as found:
        found.ask(asked)
    content = path.read_bytes()
    path.write_bytes(content[: -len(content.splitlines()[-1]) // 2])
    with judge(lambda text: "new") as fake, judging(fake, path) as found:
        found.ask(asked)
        assert len(fake.asked) == 1 and {found.reply(each).text for each in asked} == {"new", *"ab"} - {text_of(fake.asked[0])}
    assert "1 line is no whole verdict" in capsys.readouterr().err
    assert all(set(json.loads(line)) == {"key", "document", "judge", "reply"} for line in path.read_text().splitlines())


KILLED = """
import sys
from tests.suite.support.judged import judging
from tests.serving.fakes import Fake
from mmrlhf_jax.suite.judges.question import single_message
fake = Fake()
fake.url = sys.argv[1]
with judging(fake, sys.argv[2]) as found:
    found.ask([single_message(str(n), str(n), 5) for n in range(40)])
"""


@pytest.mark.long
def test_after_a_kill_in_the_middle_no_stored_verdict_is_asked_for_again(tmp_path):
    path = tmp_path / "t.jsonl"

    def slow(text: str) -> str:
        time.sleep(0.02)
        return f"reply to {text}"

    with judge(slow) as fake:
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), fake.url, str(path)], cwd=os.getcwd())
        deadline = time.monotonic() + 60
        while (not path.exists() or path.read_text().count("\n") < 5) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stored = [json.loads(line)["document"] for line in path.read_text().splitlines() if line.endswith("}")]
        assert stored
    with judge(lambda text: f"reply to {text}") as fake, judging(fake, path) as found:
        asked = questions(*map(str, range(40)))
        found.ask(asked)
        assert [found.reply(each).text for each in asked] == [f"reply to {n}" for n in range(40)]
        assert {text_of(body) for body in fake.asked} == {str(n) for n in range(40)} - set(stored)


# The probe -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (refusal(401), f"401: no; {KEY} must hold the server's key"),
        (refusal(404, "the model `m` does not exist"), "404: the model `m` does not exist"),
        (refusal(400, "unsupported: temperature"), "does not answer a test question: 400: unsupported: temperature"),
        (chat(""), "writes nothing to a test question"),
    ],
)
def test_the_probe_says_what_is_wrong(reply, says):
    with fakes.running(Fake(lambda _: reply)) as fake, pytest.raises(UserError) as found:
        EndpointJudge(fake.url, "m").check()
    assert says in str(found.value)


def test_the_probe_finds_the_only_model_and_asks_it():
    with fakes.running(Fake()) as fake:
        found = EndpointJudge(f"{fake.url}/v1/chat/completions")
        assert found.name is None
        found.check()
        assert found.name == "m" and len(fake.asked) == 1


@pytest.mark.parametrize("model", ["m", None])
def test_nobody_there_is_said_soon(model):
    with pytest.raises(UserError, match=r"the judge cannot be asked: http://127.*ConnectError.*, 4 times"):
        EndpointJudge("http://127.0.0.1:9", model).check()


def test_the_key_of_a_judge_is_its_own(monkeypatch):
    monkeypatch.setenv("MMRLHF_ENDPOINT_KEY", "of-the-policy")
    with fakes.running(Fake()) as fake:
        EndpointJudge(fake.url, "m").check()
        assert "authorization" not in fake.headers[-1]
        monkeypatch.setenv(KEY, "secret")
        EndpointJudge(fake.url, "m").check()
        assert fake.headers[-1]["authorization"] == "Bearer secret"


def test_a_classifier_is_asked_by_its_own_prompt():
    with judge(lambda text: "Yes") as fake:
        question = Question("1", (), {"max_tokens": 1, "temperature": 0.0}, prompt="[INST] a [/INST]")
        EndpointJudge(fake.url, "m").check(question)
        assert fake.asked == [{"model": "m", "prompt": "[INST] a [/INST]", "max_tokens": 1, "temperature": 0.0}]


def test_a_judge_that_thinks_has_more_tokens_and_no_temperature(tmp_path):
    replies = iter(["yes", "<think>Is it no?</think>\n\nYes.", "plain", "<think>yes", chat("Maybe yes", "length")])
    with judge(lambda _: next(replies)) as fake, Verdicts(tmp_path / "t.jsonl") as verdicts:
        thinker = EndpointJudge(fake.url, "m", 1000, concurrency=1)
        thinker.check()
        found, asked = Judging(thinker, verdicts), questions(*"abcd")
        found.ask(asked)
        assert [found.reply(each) for each in asked] == [("Yes.", None), ("plain", None), (None, FAILED), (None, FAILED)]
        assert found.name == "m (thinking 1000)" and Judging(EndpointJudge(fake.url, "m"), verdicts).reply(asked[0]) is None
    assert {body["model"] for body in fake.asked} == {"m"} and all("temperature" not in body for body in fake.asked)
    assert [body["max_completion_tokens"] for body in fake.asked] == [1020, 1005, 1005, 1005, 1005]


def test_a_judge_that_is_cut_off_while_it_thinks_is_told_of_the_option():
    with fakes.running(Fake(lambda _: chat("", "length"))) as fake, pytest.raises(UserError, match="--judge-thinking"):
        EndpointJudge(fake.url, "m").check()


UNFINISHED = "<think>\nOkay, I am asked whether it is so. The answer is yes, Rating: 6, option B,"


def test_thoughts_of_a_judge_that_is_not_given_tokens_for_them_are_no_reply(tmp_path):
    """They would be read as what they speak of."""
    replies = iter(["Yes.", UNFINISHED, "<think>\n\n</think>\n\nyes", " <think> is in it"])
    with judge(lambda _: next(replies)) as fake, Verdicts(tmp_path / "t.jsonl") as verdicts:
        model = EndpointJudge(fake.url, "m", concurrency=1)
        model.check()
        found, asked = Judging(model, verdicts), questions(*"abc")
        found.ask(asked)
        assert [found.reply(each) for each in asked] == [(None, FAILED), ("yes", None), (None, FAILED)]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (UNFINISHED, "it thinks before it replies, and has no tokens for that"),
        (chat("Okay, the user asks whether water is wet, so", "length"), "says neither yes nor no .* 'Okay, the user"),
    ],
)
def test_a_judge_that_thinks_without_being_said_to_is_refused(reply, says):
    with judge(lambda _: reply) as fake, pytest.raises(UserError, match=f"{says}.*--judge-thinking"):
        EndpointJudge(fake.url, "m").check()


def test_limits_are_of_the_newer_protocol():
    assert limits(7) == {"max_completion_tokens": 7, "temperature": 0.0}


def test_a_reply_that_cannot_be_read_is_shown_once_and_asked_for_again_on_demand(tmp_path, capsys):
    first, second = questions("first", "second")
    path = tmp_path / "t.jsonl"
    for again, says, expected in ((False, "I liked it", 2), (False, "yes", 0), (True, "yes", 2), (True, "no", 0)):
        with judge(lambda text, says=says: says) as fake, Verdicts(path, again=again) as verdicts:
            found = Judging(EndpointJudge(fake.url, "m"), verdicts)
            found.ask([first, second])
            replies = [found.reply(each).text for each in (first, second)]
            if replies[0] == "I liked it":
                found.note_unread([first])
                found.note_unread([second])
        assert len(fake.asked) == expected
        said = capsys.readouterr().err
        assert (f"{path}: document" in said and "cannot be read: 'I liked it'; --judge-again" in said) == (says == "I liked it")
        assert said.count("cannot be read") <= 1
    assert replies == ["yes", "yes"]
