"""What a server with OpenAI's protocol replies, checked: the parts of it that are used, and reasons of refusals in one line."""

from __future__ import annotations

import datetime
import email.utils
import math
from typing import Annotated, TypeVar

import pydantic
from pydantic import Field

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import shown

LONGEST_REASON = 300  # characters

Count = Annotated[int, Field(ge=0, strict=True)]


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="ignore")


class Named(_Part):
    id: str


class Models(_Part):
    """`/v1/models`."""

    data: list[Named]


class Message(_Part):
    content: str | None = None


class Choice(_Part):
    message: Message
    finish_reason: str | None

    @property
    def written(self) -> str:
        return self.message.content or ""


class Completed(_Part):
    text: str
    finish_reason: str | None

    @property
    def written(self) -> str:
        return self.text


class Usage(_Part):
    completion_tokens: Count | None = None


class Written(_Part):
    """What a model wrote. `prompt_token_ids` is vLLM's, for requests with `return_token_ids`."""

    choices: list[Choice] | list[Completed]
    usage: Usage | None = None
    prompt_token_ids: list[Count] | None = None


class Chat(Written):
    """`/v1/chat/completions`."""

    choices: Annotated[list[Choice], Field(min_length=1)]


class Completion(Written):
    """`/v1/completions`."""

    choices: Annotated[list[Completed], Field(min_length=1)]


Reply = TypeVar("Reply", bound=_Part)


class MalformedReply(Exception):
    """A reply that is not what the protocol says."""


def read(form: type[Reply], content: bytes) -> Reply:
    """The reply. MalformedReply, whose text is one line, for anything else."""
    try:
        return form.model_validate(strict_json.loads(content))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the reply"
        raise MalformedReply(f"not a reply of OpenAI's protocol: {place}: {first['msg'].lower()}") from None
    except strict_json.NotStrict as error:
        raise MalformedReply(f"not a reply of OpenAI's protocol: {error.msg}") from None
    except (ValueError, RecursionError):
        raise MalformedReply(f"the reply is not JSON, or is cut off: {_line(content) or 'it is empty'}") from None


def reason_of(status: int, content: bytes) -> str:
    """Why a request failed, in one line: the status and the server's own message."""
    try:
        body = strict_json.loads(content)
    except (ValueError, RecursionError):
        return f"{status}: {_line(content)}" if content.strip() else f"{status}"
    for name in ("error", "message", "detail"):  # OpenAI's; vLLM's and SGLang's older ones; FastAPI's
        found = body.get(name) if isinstance(body, dict) else None
        found = found.get("message") if isinstance(found, dict) else found
        if isinstance(found, str) and found.strip():
            return f"{status}: {_line(found.encode())}"
    return f"{status}: {shown(body, LONGEST_REASON)}"


def seconds_stated(retry_after: str | None) -> float | None:
    """The seconds that a header `Retry-After` asks to wait: a number, or a date. None if there is none, or it is neither."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        until = until if until.tzinfo else until.replace(tzinfo=datetime.UTC)
        seconds = max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _line(content: bytes) -> str:
    """The beginning of a text on one line, without control characters."""
    text = content[: 4 * LONGEST_REASON].decode(errors="replace")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 3]}..."
