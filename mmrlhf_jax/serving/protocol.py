"""The JSON of requests. Fields that would change the result and are not supported are refused, never ignored.

Reference: OpenAI's `chat/completions`, vLLM's `pooling/scoring/protocol.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from mmrlhf_jax.serving.errors import ApiError

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]

_MESSAGES = {
    "extra_forbidden": "this field is not supported; leave it out",
    "unsupported": "this value is not supported; leave the field out",
    "model_type": "it must be an object",  # pydantic's own message names a class
}
_KINDS = ("text", "image_url", "video_url")


def _only(*values: Any) -> Any:
    """The type of a field that has no meaning here: null, or one of the values that change nothing. JSON's types are told
    apart, as elsewhere: false is not 0."""

    def check(given: Any) -> Any:
        if given is not None and not any(type(given) is type(value) and given == value for value in values):
            raise PydanticCustomError("unsupported", "unsupported")
        return given

    return Annotated[Any, AfterValidator(check)]


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
    name: _only() = None
    refusal: _only() = None
    audio: _only() = None
    function_call: _only() = None
    tool_calls: _only([]) = None
    annotations: _only([]) = None


class StreamOptions(Fields):
    include_usage: bool = False


class ChatRequest(Fields):
    """`chat/completions`. Fields of OpenAI that have no meaning here may have the value that changes nothing."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = 0
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
    store: _only(False) = None
    service_tier: _only("auto", "default") = None
    frequency_penalty: _only(0, 0.0) = None
    presence_penalty: _only(0, 0.0) = None
    repetition_penalty: _only(1, 1.0) = None
    logit_bias: _only({}) = None
    tools: _only([]) = None
    tool_choice: _only("none") = None
    parallel_tool_calls: _only(True, False) = None
    response_format: _only({"type": "text"}) = None


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
    use_activation: _only(False) = None
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
    use_activation: _only(False) = None
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
        param = ".".join(_names(worst["loc"]))[:200] or None
        message = _MESSAGES.get(worst["type"], worst["msg"])
        raise ApiError(400, f"{param}: {message}" if param else message, param=param) from None


def _names(places: Sequence[str | int]) -> list[str]:
    """The names on the way to a field. The form that a value was taken for is no part of its name: `str`, a class, or the type
    of a part of a message's content. Names of unknown fields may be anything."""
    found: list[str] = []
    for before, place in zip((None, *places), places):
        kind_of_part = place in _KINDS and isinstance(before, int) and found[-2:-1] == ["content"]
        if not kind_of_part and "[" not in str(place) and place not in ("str", "int", "Content"):
            found.append(str(place))
    return found
