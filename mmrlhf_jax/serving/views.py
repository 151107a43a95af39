"""Views of `/v1/rewards` in vLLM's forms: `/score`, `/rerank` and `/classify`.

Rewards are raw numbers, without an activation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.limits import Limits
from mmrlhf_jax.serving.model import Rewards
from mmrlhf_jax.serving.protocol import (
    ClassifyRequest,
    Content,
    Message,
    RerankRequest,
    ScoreRequest,
    Side,
    Sides,
    TextPart,
)
from mmrlhf_jax.serving.requests import read
from mmrlhf_jax.serving.rewards import Group, Judged, Prompt, check_model, conversations, envelope, judge, make_tree, usage
from mmrlhf_jax.serving.service import Service, unless_gone

Asked = tuple[Sequence[Message] | str, str]  # (messages of a prompt, or a record's id; a response)


async def score(request: Request) -> Response:
    service: Service = request.app.state.service
    with service.intake() as intake:
        asked = await read(ScoreRequest, request, service, intake)
        check_model(service, asked.model)
        queries, documents = _sides(asked.queries), _sides(asked.documents)
        if len(queries) not in (1, len(documents)):
            raise ApiError(400, f"{len(queries)} queries for {len(documents)} documents; give one, or as many", param="queries")
        prompts = list(map(_prompt, queries)) * (len(documents) if len(queries) == 1 else 1)
        found, counted = await judge_pairs(request, service, list(zip(prompts, map(_text, documents), strict=True)))
    data = [{"index": index, "object": "score", "score": each.reward} for index, each in enumerate(found)]
    return JSONResponse(envelope(service, "score") | {"data": data, "usage": counted})


async def rerank(request: Request) -> Response:
    service: Service = request.app.state.service
    with service.intake() as intake:
        asked = await read(RerankRequest, request, service, intake)
        check_model(service, asked.model)
        texts, prompt = list(map(_text, asked.documents)), _prompt(asked.query)
        found, counted = await judge_pairs(request, service, [(prompt, text) for text in texts])
    order = sorted(range(len(found)), key=lambda index: -found[index].reward)[: asked.top_n or len(found)]
    results = [{"index": index, "document": {"text": texts[index]}, "relevance_score": found[index].reward} for index in order]
    head = envelope(service, "rerank")
    return JSONResponse({"id": head["id"], "model": head["model"], "usage": counted, "results": results})


async def classify(request: Request) -> Response:
    service: Service = request.app.state.service
    with service.intake() as intake:
        asked = await read(ClassifyRequest, request, service, intake)
        check_model(service, asked.model)
        if (asked.messages is None) == (asked.input is None):
            raise ApiError(400, "give messages or input, one of them", param="messages")
        if asked.messages is not None:
            *before, last = asked.messages
            if last.role != "assistant":
                raise ApiError(400, "messages: the last one must be the assistant's, which is judged", param="messages")
            pairs: list[Asked] = [(before, _text(_side(last.content)))]
        else:
            texts = [asked.input] if isinstance(asked.input, str) else asked.input
            split = [service.model.question_and_response(text) for text in texts]
            pairs = [([Message(role="user", content=question)], response) for question, response in split]
        found, counted = await judge_pairs(request, service, pairs)
    data = [{"index": index, "label": None, "probs": [each.reward], "num_classes": 1} for index, each in enumerate(found)]
    return JSONResponse(envelope(service, "classify") | {"data": data, "usage": counted})


async def judge_pairs(request: Request, service: Service, pairs: Sequence[Asked]) -> tuple[list[Judged], dict[str, Any]]:
    """(what is found of each response, usage). Neighbours with the same prompt share a tree."""
    limits = service.limits
    if len(pairs) > limits.pairs:
        raise ApiError(400, f"{len(pairs)} prompts with responses; at most {limits.pairs} are allowed")
    groups = [
        (prompt, tuple(text for _, text in group)) for prompt, group in itertools.groupby(pairs, key=lambda pair: pair[0])
    ]
    prompts = await service.aside(_prompts, [prompt for prompt, _ in groups], limits)

    async def one(prompt: Prompt, responses: tuple[str, ...]) -> Group:
        wanted = Rewards(responses)
        return await judge(service, await service.aside(make_tree, service, prompt, wanted), wanted)

    works = [lambda p=prompt, r=texts: one(p, r) for prompt, (_, texts) in zip(prompts, groups, strict=True)]
    found = await unless_gone(request, lambda: service.together(works))
    return [each for group in found for each in group.responses], usage(found)


def _prompts(given: Sequence[Sequence[Message] | str], limits: Limits) -> list[Prompt]:
    read = iter(conversations([messages for messages in given if not isinstance(messages, str)], limits))
    return [each if isinstance(each, str) else next(read) for each in given]


def _sides(given: Sides) -> list[Side]:
    return list(given) if isinstance(given, list) else [given]


def _side(content: Any) -> Side:
    return content if isinstance(content, str) else Content(content=content)


def _prompt(query: Side) -> list[Message]:
    return [Message(role="user", content=query if isinstance(query, str) else query.content)]


def _text(side: Side) -> str:
    """The text of a document, which is a response and has no media."""
    if isinstance(side, str):
        return side
    if any(not isinstance(part, TextPart) for part in side.content):
        raise ApiError(400, "documents: a response has text alone", param="documents")
    return "".join(part.text for part in side.content)
