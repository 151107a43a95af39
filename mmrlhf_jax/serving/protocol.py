"""The JSON of requests. Fields that would change the result and are not supported are refused, never ignored.

Reference: OpenAI's `chat/completions`, vLLM's `pooling/scoring/protocol.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field

from mmrlhf_jax.serving.errors import ApiError

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class Fields(pydantic.BaseModel):
    """JSON's types are not converted: the text "1", the number 1 and true are three things."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class ImageUrl(Fields):
    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class Url(Fields):
    url: str


class TextPart(Fields):
    type: Literal["text"]
    text: str


class ImagePart(Fields):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoPart(Fields):
    type: Literal["video_url"]
    video_url: Url


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(Fields):
    """A message. The empty fields are those that OpenAI's client puts into a reply's message, which may be sent back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None
    annotations: Nothing | None = None


class StreamOptions(Fields):
    include_usage: bool = False


class ResponseFormat(Fields):
    type: Literal["text"]


class ChatRequest(Fields):
    """`chat/completions`. Fields of OpenAI that have no meaning here may have the value that changes nothing."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 1.0
    top_k: Annotated[int, Field(ge=-1)] | None = 0
    min_p: Probability | None = 0.0
    n: Count | None = 1
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Whole] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = False
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    # Only the values that change nothing.
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none"] | None = None
    response_format: ResponseFormat | None = None


class RewardsRequest(Fields):
    """`/v1/rewards`: responses to one prompt, which share its trunk.

    The prompt is the user message of `messages`, or that of the record `record_id` of the data the server was given.
    """

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    record_id: str | None = None
    responses: Annotated[list[str], Field(min_length=1)]
    critique: Literal["written", "given", "none"] = "written"
    critiques: list[str] | None = None
    n: Count = 1
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    seed: Seed = 0
    max_critique_tokens: Count | None = None


class Content(Fields):
    content: list[Part]


Side = str | Content
Sides = Side | Annotated[list[Side], Field(min_length=1)]


class ScoreRequest(Fields):
    """`/score`: 1 x N or N x N pairs of a query (picture and question) and a document (response)."""

    model: str | None = None
    queries: Sides = Field(validation_alias=pydantic.AliasChoices("queries", "text_1", "data_1"))
    documents: Sides = Field(validation_alias=pydantic.AliasChoices("documents", "items", "text_2", "data_2"))
    use_activation: Literal[False] | None = None
    user: str | None = None


class RerankRequest(Fields):
    """`/rerank`."""

    model: str | None = None
    query: Side
    documents: Annotated[list[Side], Field(min_length=1)]
    top_n: Whole = 0
    user: str | None = None


class ClassifyRequest(Fields):
    """`/classify`: a conversation whose last message is the assistant's, or texts of them as the chat template writes them."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=2)] | None = None
    input: str | Annotated[list[str], Field(min_length=1)] | None = None
    use_activation: Literal[False] | None = None
    user: str | None = None


class OpenRlhfRequest(Fields):
    """`/get_reward` of OpenRLHF: prompts and queries (prompt and response) as texts; a label names the record of each, and is
    whatever the column of labels holds."""

    query: Annotated[list[str], Field(min_length=1)]
    prompts: list[str]
    labels: list[str | int | dict[str, Any]]


Kind = TypeVar("Kind", bound=Fields)


def parse(kind: type[Kind], body: Any) -> Kind:
    """The request. ApiError, with the field that is wrong; of several, the first of those that lie deepest, since a text that
    may be a list as well is refused as both."""
    try:
        return kind.model_validate(body)
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        worst = max(errors, key=lambda each: len(each["loc"]))
        # Forms of a field, of which it may have one, are no part of its name. The names of unknown fields may be anything.
        names = [str(part) for part in worst["loc"] if "[" not in str(part) and part not in ("str", "int", "Content")]
        param = ".".join(names)[:200] or None
        message = worst["msg"] if worst["type"] != "extra_forbidden" else "this field is not supported"
        raise ApiError(400, f"{param}: {message}" if param else message, param=param) from None
