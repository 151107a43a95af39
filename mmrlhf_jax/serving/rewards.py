"""`/v1/rewards` and its views: `/score`, `/rerank`, `/classify` (vLLM's) and `/get_reward` (OpenRLHF's).

Rewards are raw numbers, without an activation. A group of responses to one prompt is one tree: the picture is encoded once,
whatever the number of responses and critiques.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmrlhf_jax import strict_json
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.serving.conversation import parts_of, read_conversation
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.model import Rewards, spread
from mmrlhf_jax.serving.protocol import (
    ClassifyRequest,
    Content,
    Message,
    OpenRlhfRequest,
    RerankRequest,
    RewardsRequest,
    ScoreRequest,
    Side,
    TextPart,
    parse,
)
from mmrlhf_jax.serving.requests import read_json
from mmrlhf_jax.serving.service import Service, unless_gone


@dataclasses.dataclass(frozen=True)
class Judged:
    """The rewards of one response, with the critiques that they were computed with; `tokens` counts new ones."""

    reward: float
    std: float | None
    critiques: tuple[dict[str, Any], ...]
    tokens: int


@dataclasses.dataclass(frozen=True)
class Prompted:
    """A prompt as messages, or as the id of a record of the server's data."""

    messages: list[Message] | None = None
    record_id: str | None = None


async def rewards(request: Request) -> Response:
    service: Service = request.app.state.service
    asked = parse(RewardsRequest, await read_json(request, service.limits))
    _check_model(service, asked.model)
    if (asked.messages is None) == (asked.record_id is None):
        raise ApiError(400, "give messages or record_id", param="messages")
    if asked.n > service.limits.samples:
        raise ApiError(400, f"n: {asked.n} is more than {service.limits.samples}", param="n")
    if (asked.critique == "given") != (asked.critiques is not None):
        raise ApiError(400, 'critiques are needed for critique "given", and only there', param="critiques")
    if asked.critiques is not None and len(asked.critiques) != len(asked.responses):
        raise ApiError(400, f"{len(asked.critiques)} critiques for {len(asked.responses)} responses", param="critiques")
    if asked.n > 1 and (asked.critique != "written" or asked.temperature == 0):
        raise ApiError(400, "n above 1 needs written critiques at a temperature above 0", param="n")
    wanted = Rewards(
        tuple(asked.responses),
        asked.critique,
        None if asked.critiques is None else tuple(asked.critiques),
        asked.n,
        Sampling(temperature=asked.temperature, seed=asked.seed % 2**32),
        asked.max_critique_tokens,
    )
    found, prompt_tokens = await unless_gone(request, lambda: judge(service, Prompted(asked.messages, asked.record_id), wanted))
    data = [
        {"index": index, "reward": each.reward, "std": each.std, "critiques": list(each.critiques)}
        for index, each in enumerate(found)
    ]
    return JSONResponse(_envelope(service, "reward") | {"data": data, "usage": _usage(prompt_tokens, found)})


async def judge(service: Service, prompted: Prompted, wanted: Rewards) -> tuple[list[Judged], int]:
    """(what is found of every response, tokens of the trunk)."""
    service.check_open()
    limits, model = service.limits, service.model
    if model.engine.config.reward_head is None:
        raise ApiError(400, f"model {model.name!r} has no reward head")
    if len(wanted.responses) > limits.responses:
        raise ApiError(400, f"responses: {len(wanted.responses)} are more than {limits.responses}", param="responses")
    if sum(map(len, wanted.responses)) > limits.text:
        raise ApiError(400, f"responses: more than {limits.text} characters", param="responses")
    if prompted.messages is not None:
        conversation = await service.aside(read_conversation, prompted.messages, limits)
        tree = await service.aside(model.rewards_tree, conversation, wanted)
    else:
        tree = await service.aside(_of_record, service, prompted.record_id, wanted)
    async with service.job(tree) as job:
        async for _ in service.events(job, len(tree.branches)):
            pass
    samples = len(tree.branches) // len(wanted.responses)
    return [_judged(model, wanted, texts) for texts in _runs(job.written, samples)], len(tree.tokens)


def _runs(texts: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [texts[first : first + size] for first in range(0, len(texts), size)]


def _judged(model, wanted: Rewards, texts) -> Judged:
    values = [text.reward for text in texts]
    if any(value is None for value in values):
        raise ApiError(400, "a critique, tokenised anew, does not fit; ask for fewer max_critique_tokens")
    if not all(map(math.isfinite, values)):
        raise ApiError(500, "the model's reward is not finite; check the checkpoint, or serve it in float32")
    critiques = ()
    if wanted.critique == "written":
        critiques = tuple(
            {"text": model.engine.decode(text.tokens), "reward": text.reward, "finish_reason": text.reason} for text in texts
        )
    return Judged(sum(values) / len(values), spread(values), critiques, sum(len(text.tokens) for text in texts))


def _of_record(service: Service, record_id: str, wanted: Rewards):
    example = None if service.records is None else service.records(record_id)
    if example is None:
        where = "the server was started without --data" if service.records is None else f"there is no record {record_id!r}"
        raise ApiError(404, where, param="record_id")
    given = wanted.critiques or (None,) * len(wanted.responses)
    return service.model.record_tree(service.model.with_responses(example, wanted.responses, given), wanted)


# Views ---------------------------------------------------------------------------------------------------------------


async def score(request: Request) -> Response:
    service: Service = request.app.state.service
    asked = parse(ScoreRequest, await read_json(request, service.limits))
    _check_model(service, asked.model)
    queries, documents = _sides(asked.queries), _sides(asked.documents)
    if len(queries) not in (1, len(documents)):
        raise ApiError(400, f"{len(queries)} queries for {len(documents)} documents; give one, or as many", param="queries")
    pairs = list(zip(queries * (len(documents) if len(queries) == 1 else 1), documents, strict=True))
    found, tokens = await unless_gone(request, lambda: _judge_pairs(service, pairs))
    data = [{"index": index, "object": "score", "score": each.reward} for index, each in enumerate(found)]
    return JSONResponse(_envelope(service, "list") | {"data": data, "usage": _usage(tokens, found)})


async def rerank(request: Request) -> Response:
    service: Service = request.app.state.service
    asked = parse(RerankRequest, await read_json(request, service.limits))
    _check_model(service, asked.model)
    documents = _sides(asked.documents)
    found, tokens = await unless_gone(request, lambda: _judge_pairs(service, [(asked.query, each) for each in documents]))
    order = sorted(range(len(found)), key=lambda index: -found[index].reward)[: asked.top_n or len(found)]
    results = [
        {"index": index, "document": {"text": _text(documents[index])}, "relevance_score": found[index].reward}
        for index in order
    ]
    return JSONResponse(_envelope(service, "list") | {"results": results, "usage": _usage(tokens, found)})


async def classify(request: Request) -> Response:
    service: Service = request.app.state.service
    asked = parse(ClassifyRequest, await read_json(request, service.limits))
    _check_model(service, asked.model)
    *before, last = asked.messages
    if last.role != "assistant":
        raise ApiError(400, "messages: the last one must be the assistant's, which is judged", param="messages")
    wanted = Rewards((_text(last.content if isinstance(last.content, str) else Content(content=last.content)),))
    found, tokens = await unless_gone(request, lambda: judge(service, Prompted(before), wanted))
    data = [{"index": 0, "label": None, "probs": [found[0].reward], "num_classes": 1}]
    return JSONResponse(_envelope(service, "list") | {"data": data, "usage": _usage(tokens, found)})


async def get_reward(request: Request) -> Response:
    """OpenRLHF's reward of queries: the response is what follows the prompt, and the label names the record (or is JSON with
    `id`)."""
    service: Service = request.app.state.service
    asked = parse(OpenRlhfRequest, await read_json(request, service.limits))
    if not len(asked.query) == len(asked.prompts) == len(asked.labels):
        raise ApiError(400, "query, prompts and labels must have the same length", param="query")
    responses = []
    for index, (query, prompt) in enumerate(zip(asked.query, asked.prompts, strict=True)):
        if not query.startswith(prompt):
            raise ApiError(400, f"query.{index} does not begin with its prompt", param="query")
        responses.append(service.model.plain(query[len(prompt) :]))
    ids = [_record_id(label, index) for index, label in enumerate(asked.labels)]

    async def run() -> list[float]:
        found: list[float] = [math.nan] * len(ids)
        for record_id, group in itertools.groupby(sorted(range(len(ids)), key=lambda index: ids[index]), key=lambda i: ids[i]):
            places = list(group)
            wanted = Rewards(tuple(responses[place] for place in places))
            judged, _ = await judge(service, Prompted(record_id=record_id), wanted)
            for place, each in zip(places, judged, strict=True):
                found[place] = each.reward
        return found

    found = await unless_gone(request, run)
    return JSONResponse({"rewards": found, "scores": found, "extra_logs": {}})


def _record_id(label: str, index: int) -> str:
    if not label.lstrip().startswith("{"):
        return label
    try:
        return str(strict_json.loads(label)["id"])
    except (ValueError, LookupError, TypeError):
        raise ApiError(400, f"labels.{index} is no record id and no JSON object with an id", param="labels") from None


async def _judge_pairs(service: Service, pairs: Sequence[tuple[Side, Side]]) -> tuple[list[Judged], int]:
    """The rewards of (query, document) pairs; documents of equal queries share a tree."""
    found: list[Judged] = []
    tokens = 0
    for query, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        documents = [_text(document) for _, document in group]
        content = query if isinstance(query, str) else parts_of(query.content)
        prompted = Prompted([Message(role="user", content=content)])
        judged, count = await judge(service, prompted, Rewards(tuple(documents)))
        found, tokens = found + judged, tokens + count
    return found, tokens


def _sides(given: Side | list[Side]) -> list[Side]:
    return list(given) if isinstance(given, list) else [given]


def _text(side: Side) -> str:
    """The text of a document, which is a response and has no media."""
    if isinstance(side, str):
        return side
    if any(not isinstance(part, TextPart) for part in side.content):
        raise ApiError(400, "documents: a response has text alone", param="documents")
    return "".join(part.text for part in side.content)


def _check_model(service: Service, name: str | None) -> None:
    if name not in (None, service.model.name):
        raise ApiError(404, f"model {name!r} is not served; there is {service.model.name!r}", param="model")


def _envelope(service: Service, kind: str) -> dict[str, Any]:
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": service.model.name,
    }


def _usage(prompt_tokens: int, found: Sequence[Judged]) -> dict[str, int]:
    new = sum(each.tokens for each in found)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": new, "total_tokens": prompt_tokens + new}
