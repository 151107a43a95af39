"""`/v1/rewards`: raw rewards of responses to one prompt, with the critiques that they were computed with.

A group of responses to one prompt is one tree: the picture is encoded once, whatever the number of responses and critiques.
"""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.requests import Tree
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.serving import media
from mmrlhf_jax.serving.conversation import Conversation, read_conversation
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.limits import Limits
from mmrlhf_jax.serving.model import Rewards, ServedModel, spread
from mmrlhf_jax.serving.protocol import Message, RewardsRequest
from mmrlhf_jax.serving.requests import read
from mmrlhf_jax.serving.service import Service, tree_tokens, unless_gone

Prompt = Conversation | str  # or the id of a record of the server's data


@dataclasses.dataclass(frozen=True)
class Judged:
    """The rewards of one response, with the critiques that they were computed with; `tokens` counts new ones."""

    reward: float
    std: float | None
    critiques: tuple[dict[str, Any], ...]
    tokens: int


@dataclasses.dataclass(frozen=True)
class Group:
    """What was found of the responses to one prompt; tokens of their prompts, and those of them that were in the cache."""

    responses: tuple[Judged, ...]
    prompt_tokens: int
    cached: int


async def rewards(request: Request) -> Response:
    service: Service = request.app.state.service
    tree, wanted = await _prepared(request, service)
    found = await unless_gone(request, lambda: judge(service, tree, wanted))
    data = [
        {"index": index, "reward": each.reward, "std": each.std, "critiques": list(each.critiques)}
        for index, each in enumerate(found.responses)
    ]
    return JSONResponse(envelope(service, "reward") | {"data": data, "usage": usage([found])})


async def _prepared(request: Request, service: Service) -> tuple[Tree, Rewards]:
    """When this returns, nothing refers to the request's body any more."""
    with service.intake() as intake:
        asked = await read(RewardsRequest, request, service, intake)
        check_model(service, asked.model)
        if (asked.messages is None) == (asked.record_id is None):
            raise ApiError(400, "give messages or record_id, one of them", param="messages")
        wanted = _wanted(asked, service.limits)
        prompt: Prompt = asked.record_id or ""
        if asked.messages is not None:
            (prompt,) = await service.aside(conversations, [asked.messages], service.limits)
        return await service.aside(make_tree, service, prompt, wanted), wanted


def _wanted(asked: RewardsRequest, limits: Limits) -> Rewards:
    if asked.n > limits.samples:
        raise ApiError(400, f"n: {asked.n} is more than {limits.samples}", param="n")
    if (asked.critique == "given") != (asked.critiques is not None):
        raise ApiError(400, 'critiques are needed for critique "given", and only there', param="critiques")
    if asked.critiques is not None and len(asked.critiques) != len(asked.responses):
        raise ApiError(400, f"{len(asked.critiques)} critiques for {len(asked.responses)} responses", param="critiques")
    if asked.n > 1 and (asked.critique != "written" or asked.temperature == 0):
        raise ApiError(400, "n above 1 needs written critiques at a temperature above 0", param="n")
    if asked.critique != "written" and asked.max_critique_tokens is not None:
        raise ApiError(400, "max_critique_tokens needs written critiques", param="max_critique_tokens")
    return Rewards(
        tuple(asked.responses),
        asked.critique,
        None if asked.critiques is None else tuple(asked.critiques),
        asked.n,
        Sampling(temperature=float(asked.temperature), seed=asked.seed % 2**32),
        asked.max_critique_tokens,
    )


# What the views need as well ------------------------------------------------------------------------------------------


def conversations(prompts: Sequence[Sequence[Message]], limits: Limits) -> list[Conversation]:
    """The conversations of several prompts of one request, whose media are bounded together."""
    found = [read_conversation(messages, limits) for messages in prompts]
    pictures = [data for each in found for data in each.images]
    if len(pictures) > limits.media:
        raise ApiError(400, f"{len(pictures)} pictures in all prompts of this request; at most {limits.media} are allowed")
    frames = [data for each in found for data in each.frames]
    if len(frames) > limits.frames:
        raise ApiError(400, f"{len(frames)} frames in all prompts of this request; at most {limits.frames} are allowed")
    if len(found) > 1:
        media.check_together([*pictures, *frames], limits, "the prompts")
    return found


def make_tree(service: Service, prompt: Prompt, wanted: Rewards) -> Tree:
    """The tree of responses to a prompt. ApiError for what does not fit, and while the server takes no requests."""
    service.check_open()
    limits, model = service.limits, service.model
    if model.engine.config.reward_head is None:
        raise ApiError(400, f"model {model.name!r} has no reward head")
    if len(wanted.responses) > limits.responses:
        raise ApiError(400, f"responses: {len(wanted.responses)} are more than {limits.responses}", param="responses")
    for name, texts in (("responses", wanted.responses), ("critiques", wanted.critiques or ())):
        if sum(map(len, texts)) > limits.text:
            raise ApiError(400, f"{name}: more than {limits.text} characters", param=name)
    if isinstance(prompt, Conversation):
        return model.rewards_tree(prompt, wanted)
    return _of_record(service, prompt, wanted)


def _of_record(service: Service, record_id: str, wanted: Rewards) -> Tree:
    if service.records is None:
        raise ApiError(404, "the server was started without --data", param="record_id")
    try:
        example = service.records(record_id)
    except UserError:  # its media are missing or broken
        raise ApiError(500, f"the server cannot read the media of record {record_id[:80]!r}", param="record_id") from None
    if example is None:
        raise ApiError(404, f"there is no record {record_id[:80]!r}", param="record_id")
    given = wanted.critiques or (None,) * len(wanted.responses)
    return service.model.record_tree(service.model.with_responses(example, wanted.responses, given), wanted)


async def judge(service: Service, tree: Tree, wanted: Rewards) -> Group:
    """What the model finds of the responses of a tree."""
    async with service.job(tree) as job:
        async for _ in service.events(job):
            pass
    samples = len(tree.branches) // len(wanted.responses)
    runs = [job.written[first : first + samples] for first in range(0, len(job.written), samples)]
    judged = tuple(_judged(service.model, wanted, texts) for texts in runs)
    return Group(judged, tree_tokens(tree), job.written[0].cached)


def _judged(model: ServedModel, wanted: Rewards, texts: Sequence[Any]) -> Judged:
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


def check_model(service: Service, name: str | None) -> None:
    if name not in (None, service.model.name):
        raise ApiError(404, f"model {name[:80]!r} is not served; there is {service.model.name!r}", param="model")


def envelope(service: Service, kind: str) -> dict[str, Any]:
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": service.model.name,
    }


def usage(groups: Sequence[Group]) -> dict[str, Any]:
    old = sum(group.prompt_tokens for group in groups)
    new = sum(each.tokens for group in groups for each in group.responses)
    cached = {"cached_tokens": sum(group.cached for group in groups)}
    return {"prompt_tokens": old, "completion_tokens": new, "total_tokens": old + new, "prompt_tokens_details": cached}
