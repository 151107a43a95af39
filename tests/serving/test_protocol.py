"""Fields of requests: what is refused is named as the client has written it, and told what to do."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")

from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.protocol import ChatRequest, ClassifyRequest, ScoreRequest, parse

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


def of_content(*parts) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "response_format": {"type": "text"}},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "logit_bias": {}},
        {"store": False, "service_tier": "auto"},
        dict.fromkeys(["tools", "tool_choice", "logit_bias", "store", "service_tier", "repetition_penalty"]),
    ],
)
def test_values_that_change_nothing_are_taken(fields):
    parse(ChatRequest, HELLO | fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "auto"),
        ("logit_bias", {"1": 1}),
        ("frequency_penalty", 0.5),
        ("frequency_penalty", False),
        ("presence_penalty", -1),
        ("repetition_penalty", 1.1),
        ("response_format", {"type": "json_object"}),
        ("store", True),
        ("service_tier", "flex"),
        ("reasoning_effort", "low"),
    ],
)
def test_values_that_would_change_an_answer_are_refused(name, value):
    with pytest.raises(ApiError, match=f"^{name}: this (value|field) is not supported; leave (it|the field) out$") as error:
        parse(ChatRequest, HELLO | {name: value})
    assert error.value.status == 400 and error.value.param == name


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        (ChatRequest, of_content({"type": "image_url", "image_url": "data:"}), "messages.0.content.0.image_url"),
        (ChatRequest, of_content({"type": "image_url", "image_url": {}}), "messages.0.content.0.image_url.url"),
        (ChatRequest, of_content({"type": "text", "text": 1}), "messages.0.content.0.text"),
        (ChatRequest, of_content({"type": "text", "text": "a", "image_url": 1}), "messages.0.content.0.image_url"),
        (ChatRequest, HELLO | {"messages": [{"role": "user", "content": "a", "text": "b"}]}, "messages.0.text"),
        (ChatRequest, HELLO | {"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        (ChatRequest, HELLO | {"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages.0.name"),
        (ChatRequest, HELLO | {"top_k": 2**31}, "top_k"),
        (ScoreRequest, {"queries": {"content": [{"type": "text", "text": 1}]}, "documents": "a"}, "queries.content.0.text"),
        (ClassifyRequest, {"input": "a", "use_activation": True}, "use_activation"),
    ],
)
def test_the_field_that_is_wrong_is_named_as_it_was_written(kind, body, param):
    with pytest.raises(ApiError) as error:
        parse(kind, body)
    assert error.value.param == param and str(error.value).startswith(f"{param}: ")
    assert "ImageUrl" not in str(error.value)
