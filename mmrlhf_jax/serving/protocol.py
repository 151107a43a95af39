"""The JSON of requests. Fields that would change the result and are not supported are refused, never ignored.

Reference: OpenAI's `chat/completions`, vLLM's `pooling/scoring/protocol.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field

from mmrlhf_jax.serving.errors import ApiError

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0, strict=True)]


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class ImageUrl(_Model):
    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class Url(_Model):
    url: str


class TextPart(_Model):
    type: Literal["text"]
    text: str


class ImagePart(_Model):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoPart(_Model):
    type: Literal["video_url"]
    video_url: Url


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(_Model):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: None = None


class StreamOptions(_Model):
    include_usage: bool = False


class ResponseFormat(_Model):
    type: Literal["text"]


class ChatRequest(_Model):
    """`chat/completions`. Fields of OpenAI that have no meaning here may have the value that changes nothing."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 1.0
    top_k: Annotated[int, Field(ge=-1, strict=True)] | None = 0
    min_p: Probability | None = 0.0
    n: Annotated[int, Field(ge=1, strict=True)] | None = 1
    seed: Annotated[int, Field(strict=True)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Whole] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = False
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    # Only the values that change nothing.
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none"] | None = None
    response_format: ResponseFormat | None = None


class RewardsRequest(_Model):
    """`/v1/rewards`: responses to one prompt, which share its trunk.

    The prompt is the last user message of `messages`, or that of the record `record_id` of the data the server was given.
    """

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    record_id: str | None = None
    responses: Annotated[list[str], Field(min_length=1)]
    critique: Literal["written", "given", "none"] = "written"
    critiques: list[str] | None = None
    n: Annotated[int, Field(ge=1, strict=True)] = 1
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    seed: Whole = 0
    max_critique_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None


class Content(_Model):
    content: list[Part]


Side = str | Content


class ScoreRequest(_Model):
    """`/score`: 1 x N or N x N pairs of a query (picture and question) and a document (response)."""

    model: str | None = None
    queries: Annotated[
        Side | list[Side], Field(validation_alias=pydantic.AliasChoices("queries", "text_1", "data_1"), min_length=1)
    ]
    documents: Annotated[
        Side | list[Side], Field(validation_alias=pydantic.AliasChoices("documents", "items", "text_2", "data_2"), min_length=1)
    ]
    use_activation: Literal[False] | None = None
    user: str | None = None


class RerankRequest(_Model):
    """`/rerank`."""

    model: str | None = None
    query: Side
    documents: Annotated[list[Side], Field(min_length=1)]
    top_n: Whole = 0
    user: str | None = None


class ClassifyRequest(_Model):
    """`/classify`: conversations whose last message is the assistant's, or texts of them."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=2)]
    use_activation: Literal[False] | None = None
    user: str | None = None


class OpenRlhfRequest(_Model):
    """`/get_reward` of OpenRLHF: prompts and queries (prompt and response) as texts; a label names the record of each."""

    query: Annotated[list[str], Field(min_length=1)]
    prompts: list[str]
    labels: list[str]


Request = TypeVar("Request", bound=_Model)


def parse(kind: type[Request], body: Any) -> Request:
    """The request. ApiError, with the first field that is wrong."""
    try:
        return kind.model_validate(body)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        message = first["msg"] if first["type"] != "extra_forbidden" else "this field is not supported"
        raise ApiError(400, f"{param}: {message}" if param else message, param=param) from None
