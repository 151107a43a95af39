"""`/v1/chat/completions` as OpenAI's own client uses it."""

from __future__ import annotations

import base64
import concurrent.futures
import time

import httpx
import numpy as np
import pytest

openai = pytest.importorskip("openai")

from mmrlhf_jax.data.examples import Example  # noqa: E402
from mmrlhf_jax.inference.engine import Prompt  # noqa: E402
from mmrlhf_jax.records import RankedRecord  # noqa: E402
from tests import ranked  # noqa: E402


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def url(size=(40, 30), seed: int = 0) -> str:
    return "data:image/png;base64," + base64.b64encode(ranked.picture(size, seed)).decode()


def about(text: str, *pictures: str, detail: str = "auto"):
    parts = [{"type": "image_url", "image_url": {"url": each, "detail": detail}} for each in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def ask(client, messages, **settings):
    return client.chat.completions.create(messages=messages, **{"model": "tiny", "temperature": 0, "max_tokens": 12} | settings)


def alone(engine, text: str, pictures=(), most: int = 12) -> str:
    return engine.generate([prompt(text, pictures)], max_new_tokens=most)[0]


def prompt(text: str, pictures=()) -> Prompt:
    images = tuple(ranked.picture(size, seed) for seed, size in enumerate(pictures))
    return Prompt(Example(RankedRecord("p", text, (), tuple(f"{place}.png" for place in range(len(images)))), images))


@pytest.mark.long
def test_answers_are_those_of_the_engine(client, judge):
    assert ask(client, [{"role": "user", "content": "Why?"}]).choices[0].message.content == alone(judge, "Why?")
    found = ask(client, about("What is it?", url()))
    assert found.choices[0].message.content == alone(judge, "What is it?", [(40, 30)])
    two = ask(client, about("Both?", url((30, 30)), url((50, 20), 1)))
    assert two.choices[0].message.content == alone(judge, "Both?", [(30, 30), (50, 20)])
    assert found.object == "chat.completion" and found.choices[0].finish_reason in ("stop", "length")
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    again = ask(client, [{"role": "user", "content": "Why?"}])
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


@pytest.mark.long
def test_questions_about_one_picture_share_it(client, service, judge, monkeypatch):
    """It is encoded and prefilled once, with what stands before it; the answers are what they are alone."""
    (scheduler,) = service.worker.schedulers
    programs, counted = scheduler.programs, []

    def counting(name: str):
        act = getattr(programs, name)
        return lambda *arguments, **settings: (counted.append(name), act(*arguments, **settings))[1]

    for name in ("encode", "extend_trunk"):
        monkeypatch.setattr(programs, name, counting(name))
    size, questions = (64, 37), ["What is it?", "Where is it?", "Why " + "is it " * 20 + "there?"]
    found = [ask(client, about(question, url(size, 0))) for question in questions]
    chunks = counted.count("extend_trunk")
    assert counted.count("encode") == 1 and chunks >= 1
    assert [each.choices[0].message.content for each in found] == [alone(judge, question, [size]) for question in questions]
    cached = [each.usage.prompt_tokens_details.cached_tokens for each in found]
    assert cached[0] == 0 and cached[1] == cached[2] > found[0].usage.prompt_tokens / 2
    counted.clear()
    several = ask(client, about("And?", url(size, 0)), n=3, temperature=1.0, seed=1)  # samples share their prompt as well
    assert len({choice.message.content for choice in several.choices}) == 3 and not counted
    unlimited = ask(client, about("And now?", url(size, 0)), max_tokens=None)
    assert unlimited.usage.prompt_tokens_details.cached_tokens == cached[1] and not counted
    long = "Why " + "is it " * 60 + "there?"  # there is no room for it and an answer behind the picture
    assert ask(client, about(long, url(size, 0))).choices[0].message.content == alone(judge, long, [size])
    assert counted.count("encode") == 1


def test_a_stream_is_the_answer_in_pieces_with_its_usage(client):
    messages = about("What is it?", url())
    whole = ask(client, messages, max_tokens=40)
    chunks = list(ask(client, messages, max_tokens=40, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_text_ends_before_a_stop_string(client):
    whole = ask(client, [{"role": "user", "content": "Why?"}], max_tokens=40).choices[0].message.content
    stop = whole[5:8]
    for stream in (False, True):
        found = ask(client, [{"role": "user", "content": "Why?"}], max_tokens=40, stop=[stop, "never"], stream=stream)
        if stream:
            pieces = list(found)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
            reason = pieces[-1].choices[0].finish_reason
        else:
            text, reason = found.choices[0].message.content, found.choices[0].finish_reason
        assert text == whole[: whole.index(stop)] and reason == "stop"


def test_several_choices_are_drawn_apart_and_a_seed_draws_them_again(client):
    how = dict(n=3, temperature=1.2, seed=5, max_tokens=20)
    first, again = (ask(client, [{"role": "user", "content": "Why?"}], **how) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    other = ask(client, [{"role": "user", "content": "Why?"}], **how | {"seed": 6})
    assert [choice.message.content for choice in other.choices] != texts


def test_logprobs_are_those_of_the_tokens(client):
    found = ask(client, [{"role": "user", "content": "Why?"}], logprobs=True, top_logprobs=3).choices[0]
    assert len(found.logprobs.content) > 4
    for each in found.logprobs.content:
        assert each.logprob <= 0 and len(each.top_logprobs) == 3
        assert each.top_logprobs[0].logprob == pytest.approx(each.logprob, abs=1e-5)  # greedy
        assert np.exp([top.logprob for top in each.top_logprobs]).sum() <= 1 + 1e-5
    plain = ask(client, [{"role": "user", "content": "Why?"}], logprobs=True).choices[0]
    assert [each.logprob for each in plain.logprobs.content] == pytest.approx([x.logprob for x in found.logprobs.content])
    assert plain.logprobs.content[0].top_logprobs == []


def test_turns_system_message_and_video_are_taken(client):
    frames = ",".join(base64.b64encode(ranked.picture((40, 60), seed)).decode() for seed in range(3))
    content = [
        {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}},
        {"type": "text", "text": "And?"},
    ]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    first = ask(client, messages)
    messages += [{"role": "assistant", "content": "A kite."}, {"role": "user", "content": "Sure?"}]
    second = ask(client, messages)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


@pytest.mark.long
def test_many_requests_at_once_are_each_answered_as_alone(client, judge):
    """64 at a time: every fourth with a picture, every third streamed."""
    texts = [f"Question {number}?" for number in range(64)]

    def one(number: int) -> str:
        messages = about(texts[number], url()) if number % 4 == 0 else [{"role": "user", "content": texts[number]}]
        if number % 3:
            return ask(client, messages).choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, messages, stream=True))

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        found = list(pool.map(one, range(64)))
    examples = [prompt(text, [(40, 30)] if number % 4 == 0 else []) for number, text in enumerate(texts)]
    assert found == judge.generate(examples, max_new_tokens=12)


def test_a_seed_gives_the_same_text_alone_and_in_company(client):
    how = dict(temperature=1.3, top_p=0.9, seed=11, max_tokens=24)
    one = lambda _: ask(client, about("What is it?", url()), **how).choices[0].message.content
    other = lambda seed: ask(client, [{"role": "user", "content": "Why?"}], **how | {"seed": seed}, n=2)
    alone = one(0)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        company = [pool.submit(other, seed) for seed in range(-4, 4)]
        assert list(pool.map(one, range(4))) == [alone] * 4
        texts = [choice.message.content for each in company for choice in each.result().choices]
    assert len(set(texts)) == 16
    unseeded = {
        ask(client, [{"role": "user", "content": "Why?"}], temperature=1.3).choices[0].message.content for _ in range(3)
    }
    assert len(unseeded) == 3


def test_a_reply_can_be_sent_back_as_it_came(client):
    messages = about("What is it?", url())
    messages.append(ask(client, messages).choices[0].message)
    messages.append({"role": "user", "content": "Sure?"})
    assert ask(client, messages).choices[0].message.content


def test_a_stream_brings_all_tokens_and_logprobs_of_each_choice(client, judge):
    """Tokens whose text is held back, because they are half a character or may begin a stop string, are not lost."""
    added = judge.tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special}  # tokens of the answer, but no part of its text
    how = dict(n=2, temperature=1.0, seed=3, max_tokens=30, logprobs=True, top_logprobs=2, stop=["\u00e9\u00e9", "zz"])
    how["extra_body"] = {"return_token_ids": True}
    whole = ask(client, [{"role": "user", "content": "Why?"}], **how)
    chunks = list(ask(client, [{"role": "user", "content": "Why?"}], stream=True, **how))
    for number, wanted in enumerate(whole.choices):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == number]
        assert "".join(each.delta.content or "" for each in mine) == wanted.message.content
        assert [token for each in mine for token in each.token_ids] == wanted.token_ids
        logprobs = [token for each in mine if each.logprobs for token in each.logprobs.content]
        assert [each.token for each in logprobs] == [each.token for each in wanted.logprobs.content]
        assert [each.logprob for each in logprobs] == [each.logprob for each in wanted.logprobs.content]
        written = b"".join(bytes(each.bytes) for each in logprobs if each.token not in special)
        assert written.decode(errors="replace") == wanted.message.content
        assert [each.finish_reason for each in mine if each.finish_reason] == [wanted.finish_reason]
    assert whole.prompt_token_ids == chunks[0].prompt_token_ids and len(whole.prompt_token_ids) == whole.usage.prompt_tokens
    assert whole.system_fingerprint and {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}


def test_low_detail_shows_a_picture_as_one_tile(client):
    large = url((300, 200))
    whole, low = (ask(client, about("What is it?", large, detail=detail)) for detail in ("high", "low"))
    assert low.usage.prompt_tokens < whole.usage.prompt_tokens
    small = ask(client, about("What is it?", url((30, 30)), detail="low"))
    assert small.usage.prompt_tokens == low.usage.prompt_tokens  # whatever the picture's size
    assert small.choices[0].message.content != low.choices[0].message.content
    for other in ("auto", "original"):
        assert ask(client, about("What is it?", large, detail=other)).choices == whole.choices


@pytest.mark.long
def test_without_a_limit_a_text_may_fill_its_room(client, service):
    found = ask(client, [{"role": "user", "content": "Why?"}], max_tokens=None, max_completion_tokens=None)
    room = service.model.longest_branch - 1  # the last token of the prompt is the branch's first
    assert found.usage.completion_tokens == room or found.choices[0].finish_reason == "stop"
    both = ask(client, [{"role": "user", "content": "Why?"}], max_tokens=3, max_completion_tokens=3)
    assert both.usage.completion_tokens <= 3


@pytest.mark.parametrize(
    ("settings", "status", "says"),
    [
        ({"model": "other"}, 404, "'other' is not served"),
        ({"max_tokens": 10_000}, 400, "this server has room for"),
        ({"n": 99}, 400, "n: 99 is more than"),
        ({"temperature": 3}, 400, "temperature"),
        ({"stop": ["a"] * 9}, 400, "stop: at most"),
        ({"stop": [""]}, 400, "stop: at most"),
        ({"top_logprobs": 21, "logprobs": True}, 400, "top_logprobs"),
        ({"top_logprobs": 2}, 400, "top_logprobs needs logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"logit_bias": {"1": 100}}, 400, "logit_bias"),
        ({"presence_penalty": 1.0}, 400, "presence_penalty"),
        ({"extra_body": {"chat_template": "{{ 1 }}"}}, 400, "chat_template"),
        ({"extra_body": {"chat_template_kwargs": {"x": 1}}}, 400, "chat_template_kwargs"),
        ({"temperature": True}, 400, "temperature"),
        ({"temperature": "0.5"}, 400, "temperature"),
        ({"temperature": -0.1}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 1.5}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"max_tokens": 2**70}, 400, "this server has room for"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "give one"),
        ({"seed": 2**63}, 400, "seed"),
        ({"stop": ["x" * 65]}, 400, "stop: at most"),
        ({"stop": 5}, 400, "stop"),
        ({"logprobs": "yes"}, 400, "logprobs"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options needs stream"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ({"extra_body": {"stop_token_ids": [1] * 33}}, 400, "stop_token_ids"),
        ({"extra_body": {"stop_token_ids": [-1]}}, 400, "stop_token_ids"),
        ({"extra_body": {"top_k": 2**40}}, 400, "top_k"),
        ({"extra_body": {"a" * 5000: 1}}, 400, "not supported"),
        ({"extra_body": {"mm_processor_kwargs": {"a": 1}}}, 400, "mm_processor_kwargs"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, 400, "only the first"),
        (
            {"messages": [{"role": "system", "content": [*about("a", url())[0]["content"]]}]},
            400,
            "messages of the user have media",
        ),
        ({"messages": [{"role": "user", "content": "a"}] * 65}, 400, "at most 64"),
        ({"messages": [*about("a", url()), *about("a", url(), detail="low")]}, 400, "the same detail"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "must not be the assistant's"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, 400, "this server has room for"),
        ({"messages": about("a", "https://example.com/a.png")}, 400, "only data URLs are accepted"),
        ({"messages": about("a", "file:///etc/passwd")}, 400, "only data URLs are accepted"),
        ({"messages": about("a", "data:image/png;base64,AAAA")}, 422, "the picture cannot be read"),
        ({"messages": about("a", "data:image/png;base64,*")}, 422, "not base64"),
        ({"messages": about("a", "data:text/html;base64,AAAA")}, 415, "text/html"),
        ({"messages": about("a", *[url()] * 5)}, 400, "more than 4 pictures"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_wrong_is_refused_with_its_reason(client, settings, status, says):
    with pytest.raises(openai.APIStatusError) as error:
        ask(client, **{"messages": [{"role": "user", "content": "Why?"}]} | settings)
    assert error.value.status_code == status and says in error.value.message
    assert error.value.response.headers["x-should-retry"] == "false"


def test_a_client_that_goes_frees_its_slots(client, service):
    for stream in (False, True):
        with pytest.raises((httpx.TimeoutException, openai.APITimeoutError)):
            request = dict(model="tiny", messages=[{"role": "user", "content": "Why?"}], max_tokens=300, n=4, temperature=1)
            if stream:
                with client.with_options(timeout=5).chat.completions.create(**request, stream=True) as chunks:
                    next(iter(chunks))
                    raise httpx.ReadTimeout("gone")
            client.with_options(timeout=0.15).chat.completions.create(**request)
        deadline = time.monotonic() + 5
        while service.worker.jobs and time.monotonic() < deadline:
            time.sleep(0.02)
        assert service.worker.jobs == 0 and service.worker.running == 0
