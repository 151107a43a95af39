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
    images = tuple(ranked.picture(size, seed) for seed, size in enumerate(pictures))
    record = RankedRecord("p", text, (), tuple(f"{place}.png" for place in range(len(images))))
    return engine.generate([Prompt(Example(record, images))], max_new_tokens=most)[0]


def test_answers_are_those_of_the_engine(client, judge):
    assert ask(client, [{"role": "user", "content": "Why?"}]).choices[0].message.content == alone(judge, "Why?")
    found = ask(client, about("What is it?", url()))
    assert found.choices[0].message.content == alone(judge, "What is it?", [(40, 30)])
    two = ask(client, about("Both?", url((30, 30)), url((50, 20), 1)))
    assert two.choices[0].message.content == alone(judge, "Both?", [(30, 30), (50, 20)])
    assert found.object == "chat.completion" and found.choices[0].finish_reason in ("stop", "length")
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    again = ask(client, about("What is it?", url()))
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


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


def test_many_requests_at_once_are_each_answered_as_alone(client, judge):
    texts = [f"Question {number}?" for number in range(24)]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda text: ask(client, [{"role": "user", "content": text}]), texts))
    assert [each.choices[0].message.content for each in found] == [alone(judge, text) for text in texts]


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
    ids=str,
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
