"""What a judge is asked: one call, which is found again by its content."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.inference import replies
from mmrlhf_jax.inference.endpoint import CHAT

COMPLETIONS = "/v1/completions"


@dataclasses.dataclass(frozen=True)
class Question:
    """A call of a judge.

    Attributes:
        document: the id of the document that it is about; None where that is not known.
        messages: those of OpenAI's chat protocol.
        options: what else is sent, such as the temperature.
        prompt: a prompt in the place of `messages`, for models that are no chat models: it goes to `/v1/completions` as it is.
    """

    document: str | None
    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    prompt: str | None = None

    @property
    def path(self) -> str:
        return CHAT if self.prompt is None else COMPLETIONS

    @property
    def form(self) -> type[replies.Written]:
        return replies.Chat if self.prompt is None else replies.Completion

    def body(self, model: str | None) -> dict[str, Any]:
        """What is sent to a server for its model of this name."""
        asked = {"messages": list(self.messages)} if self.prompt is None else {"prompt": self.prompt}
        return {"model": model, **asked, **self.options}

    def key(self, judge: str) -> str:
        """The hash of the call's content and of the judge's name, by which a stored reply is found."""
        return text_digest(strict_json.dumps([self.path, self.body(judge)], sort_keys=True))


def single_message(document: str, content: str | Sequence[Mapping[str, Any]], most: int, temperature: float = 0.0) -> Question:
    """A question of one message, answered in at most `most` tokens."""
    return Question(document, ({"role": "user", "content": content},), limits(most, temperature))


def limits(most: int, temperature: float = 0.0) -> dict[str, Any]:
    """The options of a call whose reply has at most `most` tokens. (`max_tokens` is refused by OpenAI's newer models.)"""
    return {"max_completion_tokens": most, "temperature": temperature}
