"""`/get_reward`: rewards in OpenRLHF's form. Reference: OpenRLHF 0.11.2, `openrlhf/utils/agent.py: SingleTurnAgentExecutor`.

A query is a prompt and its response as one text, decoded from tokens; there are no pictures. So the label says which record of
the server's data the prompt is of, or holds the question and its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmrlhf_jax import strict_json
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.protocol import ImagePart, ImageUrl, Message, OpenRlhfRequest, TextPart
from mmrlhf_jax.serving.requests import read
from mmrlhf_jax.serving.service import Service
from mmrlhf_jax.serving.views import Asked, judge_pairs

Label = str | int | dict[str, Any]


async def get_reward(request: Request) -> Response:
    service: Service = request.app.state.service
    with service.intake() as intake:
        asked = await read(OpenRlhfRequest, request, service, intake)
        if not len(asked.query) == len(asked.prompts) == len(asked.labels):
            raise ApiError(400, "query, prompts and labels must have the same length", param="query")
        pairs = await service.aside(_pairs, asked, service)
        found, _ = await judge_pairs(request, service, pairs)
    values = [each.reward for each in found]
    return JSONResponse({"rewards": values, "scores": values, "extra_logs": {}})


def _pairs(asked: OpenRlhfRequest, service: Service) -> list[Asked]:
    pairs: list[Asked] = []
    for index, (query, prompt, label) in enumerate(zip(asked.query, asked.prompts, asked.labels, strict=True)):
        response = response_of(query, prompt)
        if response is None:
            raise ApiError(400, f"query.{index} does not begin with its prompt", param="query")
        pairs.append((_labelled(label, index), service.model.plain(response)))
    return pairs


def response_of(query: str, prompt: str) -> str | None:
    """What follows the prompt in a query, or None if the prompt is not found.

    The query is decoded from the model's tokens. There, a picture's place in the prompt has become many tokens (as a processor
    writes it), and a long prompt may have lost its beginning. So if the query does not begin with the prompt, the longest end
    of the prompt that the query has is where the response begins; it must have the whole last line (`<|im_start|>assistant`).
    """
    if query.startswith(prompt):
        return query[len(prompt) :]
    same = next((place for place, (a, b) in enumerate(zip(query, prompt)) if a != b), len(query))
    end, rest = prompt[same:], query[same:]
    found = _longest_end(end, rest)
    last_line = end.rstrip("\n").rpartition("\n")[2]
    if not found or last_line not in found or (same == 0 and not rest.startswith(found)):
        return None
    return rest.partition(found)[2]


def _longest_end(text: str, of: str) -> str:
    """The longest end of `text` that is in `of`. Bisected: whatever is in a text, its own ends are in it as well."""
    shortest, longest = 0, len(text)
    while shortest < longest:
        length = (shortest + longest + 1) // 2
        if text[-length:] in of:
            shortest = length
        else:
            longest = length - 1
    return text[len(text) - shortest :]


def _labelled(label: Label, index: int) -> Sequence[Message] | str:
    """The prompt that a label names: a record's id, or that of an object (which may be JSON in a text), or its own question."""
    if isinstance(label, int):
        return str(label)
    wrong = ApiError(400, f"labels.{index} is no record id, and no JSON object with id, or question and images", param="labels")
    if isinstance(label, str):
        if not label.strip():
            raise wrong
        if not label.lstrip().startswith("{"):
            return label
        try:
            label = strict_json.loads(label)
        except (ValueError, RecursionError):
            raise wrong from None
    if isinstance(label.get("id"), str | int) and not isinstance(label["id"], bool):
        return str(label["id"])
    question, images = label.get("question"), label.get("images") or []
    if not isinstance(question, str) or not isinstance(images, list) or not all(isinstance(url, str) for url in images):
        raise wrong
    pictures = [ImagePart(type="image_url", image_url=ImageUrl(url=url)) for url in images]
    return [Message(role="user", content=[*pictures, TextPart(type="text", text=question)])]
