"""The server at which the harness finds its judge: both URL forms, questions asked together, and failures by document."""

from __future__ import annotations

import contextlib

import httpx
import openai
import pytest

from mmrlhf_jax.inference import endpoint
from mmrlhf_jax.suite.judges import harness_replies
from mmrlhf_jax.suite.judges.judging import FAILED, NOT_READ, Judging
from mmrlhf_jax.suite.judges.loopback import BAD_REQUEST, PLACEHOLDER, Loopback
from mmrlhf_jax.suite.judges.rounds import AT_ONCE, ENDLESS, scored
from mmrlhf_jax.suite.judges.verdicts import Verdicts
from tests.serving.fakes import refusal
from tests.suite.support.judged import judge, judging, text_of


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(endpoint, "_pause", lambda *_: 0.0)


PLAIN = httpx.Client(trust_env=False)


def post(url: str, text: str, **options) -> str:
    """As wildvision, mmbench, videochatgpt and video_dc499 ask: by the URL as it is."""
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 64, **options}
    reply = PLAIN.post(url, json=body)
    assert reply.status_code == 200 and reply.json()["model"] == "m"
    return reply.json()["choices"][0]["message"]["content"]


def client(url: str, text: str) -> str:
    """As llava_in_the_wild, mathvista and mathverse ask: the URL is the base of a client."""
    found = openai.OpenAI(api_key="none", base_url=url, max_retries=0).chat.completions.create(
        model="gpt-4o-2024-11-20", messages=[{"role": "user", "content": text}], temperature=0.0, max_tokens=64
    )
    assert found.usage.total_tokens == 0
    return found.choices[0].message.content


FORMS = {
    "the base as it is": lambda url, text: post(url, text),
    "the full URL": lambda url, text: post(f"{url}/chat/completions", text),
    "a client": client,
    "a client of the full URL": lambda url, text: client(f"{url}/chat/completions", text),
    "mathverse": lambda url, text: client(url.rstrip("chat/completions"), text),  # noqa: B005
}


@contextlib.contextmanager
def served(says, path, reader=harness_replies.extraction):
    """(the judge, the loopback server in front of it)"""
    with judge(says) as fake, judging(fake, path / "t.jsonl") as found, Loopback(found, reader) as server:
        yield fake, server


def run(server: Loopback, documents, score) -> dict:
    """document -> (result, why it is missing)"""
    found = scored(server, documents, str, score, "judging", len(documents))
    return {document: (result, missing) for document, result, missing in found}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_url_is_answered_with_the_judges_reply(form, tmp_path):
    with served(lambda text: f"re: {text}", tmp_path) as (fake, server):
        assert run(server, ["a", "b"], lambda text: FORMS[form](server.url, text)) == {
            "a": ("re: a", None),
            "b": ("re: b", None),
        }
    assert all(body["model"] == "m" and body["max_completion_tokens"] == 64 and "n" not in body for body in fake.asked)
    assert len(fake.asked) == 2


def test_the_documents_of_a_batch_are_judged_together_and_each_question_once(tmp_path):
    calls = []

    def score(text: str) -> str:
        calls.append(text)
        return post(server.url, f"about {text[0]}", n=1)

    documents = [f"{letter}{n}" for letter in "ab" for n in range(3)]
    with served(lambda text: text.upper(), tmp_path) as (fake, server):
        result = run(server, documents, score)
        assert result == {text: (f"ABOUT {text[0].upper()}", None) for text in documents}
        assert sorted(map(text_of, fake.asked)) == ["about a", "about b"]
        assert len(calls) == 12
        run(server, documents, score)  # all is known
        assert len(calls) == 18 and len(fake.asked) == 2
    assert not server.unforeseen


def test_a_question_may_depend_on_the_reply_to_another_one(tmp_path):
    def score(document: str) -> str:
        return post(server.url, f"and {post(server.url, document)}")

    with served(lambda text: f"[{text}]", tmp_path) as (fake, server):
        assert run(server, ["a"], score) == {"a": ("[and [a]]", None)}
    assert [text_of(body) for body in fake.asked] == ["a", "and [a]"]


def test_a_task_that_asks_something_new_for_ever_is_missing(tmp_path):
    count = iter(range(10_000))
    with served(lambda text: text, tmp_path) as (_, server):
        assert run(server, ["a"], lambda _: post(server.url, str(next(count))))["a"][1] == ENDLESS


def test_a_failed_call_and_a_reply_that_cannot_be_read_are_of_their_documents_alone(tmp_path):
    replies = {"good": "9 7\nbecause", "refused": refusal(400), "nonsense": "I liked both."}
    with served(replies.get, tmp_path, harness_replies.scores) as (fake, server):
        first = run(server, list(replies), lambda text: post(server.url, text))
        assert first == {
            "good": ("9 7\nbecause", None),
            "refused": (PLACEHOLDER, FAILED),
            "nonsense": ("I liked both.", NOT_READ),
        }
    assert len(fake.asked) == 3


def test_without_a_judge_every_document_that_asks_is_missing(tmp_path):
    with Verdicts(tmp_path / "t.jsonl") as verdicts, Loopback(Judging(None, verdicts), harness_replies.option) as server:
        ask = lambda text: (
            "parsed by a rule" if text == "B" else PLAIN.post(server.url, json={"messages": [{"role": "user"}]}).text
        )
        found = run(server, ["B", "unclear"], ask)
    assert found["B"] == ("parsed by a rule", None) and found["unclear"][1] == "no judge was given (--judge)"


@pytest.mark.long
def test_more_documents_than_fit_one_batch_keep_their_order(tmp_path):
    documents = [str(n) for n in range(AT_ONCE + 3)]
    with served(lambda text: text, tmp_path) as (_, server):
        result = run(server, documents, lambda text: post(server.url, text))
    assert list(result) == documents and all(result[each] == (each, None) for each in documents)


def test_a_document_that_rests_on_fewer_calls_than_it_must_is_missing(tmp_path):
    """The harness catches its own errors before it has called its judge, or between two calls, and goes on with -1 or 0."""
    least = {"none": 1, "one": 1, "one of two": 2, "two": 2, "by a rule": 0, "refused": 2}

    def score(name: str) -> str:
        for number in range({"none": 0, "two": 2, "by a rule": 0}.get(name, 1)):
            post(server.url, f"{name} {number}")
        return name

    with served(lambda text: refusal(400) if "refused" in text else text, tmp_path) as (_, server):
        for _ in range(2):  # also when all replies are known
            found = scored(server, list(least), str, score, "judging", len(least), lambda result: least[result])
            assert {name: failure for name, _, failure in found} == {
                "none": FAILED, "one": None, "one of two": FAILED, "two": None, "by a rule": None, "refused": FAILED,
            }  # fmt: skip


def test_what_is_asked_outside_of_a_document_is_noticed(tmp_path):
    with served(lambda text: text, tmp_path) as (_, server):
        run(server, ["a"], lambda text: post(server.url, text))
        assert post(server.url, "a") == "a" and not server.unforeseen
        assert post(server.url, "b") == PLACEHOLDER and server.unforeseen


def test_scoring_that_raises_ends_its_document(tmp_path):
    with served(lambda text: text, tmp_path) as (_, server):
        with pytest.raises(ZeroDivisionError):
            run(server, ["a"], lambda text: post(server.url, text) and 1 / 0)
        assert run(server, ["b"], lambda text: post(server.url, text)) == {"b": ("b", None)}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"messages": 1}', b'{"messages": ["a"]}', b'{"messages": NaN}'])
def test_a_request_that_cannot_be_read_is_a_failure_of_its_document(content, tmp_path):
    with served(lambda text: text, tmp_path) as (fake, server):
        assert run(server, ["a"], lambda _: PLAIN.post(server.url, content=content).status_code) == {"a": (200, BAD_REQUEST)}
    assert not fake.asked


def test_the_environment_leads_the_harness_here_and_around_a_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "intranet")
    with served(lambda text: text, tmp_path) as (_, server):
        assert server.environment == {
            "OPENAI_API_URL": server.url, "OPENAI_API_KEY": "none", "API_TYPE": "openai", "MODEL_VERSION": "m",
            "NO_PROXY": "intranet,127.0.0.1", "no_proxy": "intranet,127.0.0.1",
        }  # fmt: skip


# Replies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "good", "bad"),
    [
        (
            "llava_in_the_wild",
            ["8 9", "10, 7.5\nBoth are good.", "8;9"],
            [
                "",
                "8",
                "Assistant 1: 8, Assistant 2: 9",
                "Both.\n8 9",
                "8 90",
                "-1 -1",
                "8 9 10",
                "Assistant 1: 9\nAssistant 2: 8",
                "8/10",
            ],
        ),
        (
            "wildvision_0617",
            ["My final verdict is tie: [[A=B]]", "[[B>>A]]", "[[A>B]] so [[A>B]]"],
            ["", "A>B", "[[A>B]] or [[B>A]]", "[[AB]]", "[A>B]"],
        ),
        (
            "videochatgpt_gen",
            ["{'score': 4.8}", '{"score": 0}', " {'pred': 'yes', 'score': 5}\n"],
            ["", "4", "{''score': 4.8}", "{'score': '4'}", "{'score': 7}", "{'score': True}", "```{'score': 4}```", "{}"],
        ),
        ("video_dc499", ["{'score': 3}"], ["three", "{'score': nan}", "(" * 5000]),
        ("mathverse_testmini_vision_only", ["0", "1", "Score: 1", "[0]"], ["", "yes", "10", "2", "0 or 1", "Answer 12 is 1"]),
        (
            "mmbench_cn_dev",
            ["B", "(C)", "A.", "Answer: D", "E", "B).", ":C"],
            ["", "A or B", "A dog is in it", "b", "F", "(B):", "B.)", "**B**"],
        ),
        ("mathvista_testmini_cot", ["3.14", "é"], ["", " "]),
    ],
)
def test_what_a_task_can_read(task, good, bad):
    reader = harness_replies.reader_of(task)
    assert [reply for reply in good if not reader(reply)] == []
    assert [reply for reply in bad if reader(reply)] == []


def test_a_task_without_a_judge_has_no_reader():
    with pytest.raises(KeyError):
        harness_replies.reader_of("mmstar")
