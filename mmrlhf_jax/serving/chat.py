"""`/v1/chat/completions`, as OpenAI's clients use it. Reference: OpenAI's API, vLLM's `openai/protocol.py`."""

from __future__ import annotations

import dataclasses
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.inference.texts import TextStream
from mmrlhf_jax.serving.conversation import read_conversation
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.model import Wanted
from mmrlhf_jax.serving.protocol import ChatRequest, parse
from mmrlhf_jax.serving.requests import read_json
from mmrlhf_jax.serving.service import Service, unless_gone
from mmrlhf_jax.serving.worker import Event, Job


async def completions(request: Request) -> Response:
    service: Service = request.app.state.service
    asked = parse(ChatRequest, await read_json(request, service.limits))
    service.check_open()
    wanted, stops = _wanted(asked, service)
    conversation = await service.aside(read_conversation, asked.messages, service.limits)
    tree, tokens = await service.aside(service.model.chat_tree, conversation, wanted)
    reply = _Reply(service, asked, stops, tokens)
    if asked.stream:
        return StreamingResponse(reply.stream(tree), media_type="text/event-stream", headers={"cache-control": "no-cache"})
    return JSONResponse(await unless_gone(request, lambda: reply.whole(tree)))


def _wanted(asked: ChatRequest, service: Service) -> tuple[Wanted, tuple[str, ...]]:
    """(what is wanted of the lanes, stop strings). ApiError for what is out of bounds."""
    limits = service.limits
    if asked.model != service.model.name:
        raise ApiError(404, f"model {asked.model!r} is not served; there is {service.model.name!r}", param="model")
    samples = asked.n or 1
    if samples > limits.samples:
        raise ApiError(400, f"n: {samples} is more than {limits.samples}", param="n")
    stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    if len(stops) > limits.stops or any(not 0 < len(stop) <= limits.stop_length for stop in stops):
        raise ApiError(
            400, f"stop: at most {limits.stops} strings of 1 to {limits.stop_length} characters are allowed", param="stop"
        )
    ids = asked.stop_token_ids or []
    if len(ids) > limits.stop_tokens:
        raise ApiError(400, f"stop_token_ids: more than {limits.stop_tokens}", param="stop_token_ids")
    if asked.top_logprobs and not asked.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs")
    if asked.max_tokens is not None and asked.max_completion_tokens not in (None, asked.max_tokens):
        raise ApiError(400, "max_tokens and max_completion_tokens differ; give one", param="max_tokens")
    seed = secrets.randbits(32) if asked.seed is None else asked.seed % 2**32
    try:
        sampling = Sampling(
            temperature=float(1.0 if asked.temperature is None else asked.temperature),
            top_k=max(asked.top_k or 0, 0),
            top_p=float(1.0 if asked.top_p is None else asked.top_p),
            min_p=float(asked.min_p or 0.0),
            seed=seed,
        )
    except UserError as error:
        raise ApiError(400, str(error)) from None
    most = asked.max_completion_tokens or asked.max_tokens
    return Wanted(most, samples, sampling, frozenset(ids), bool(asked.logprobs and asked.top_logprobs)), stops


@dataclasses.dataclass
class _Text:
    """One choice, as it grows."""

    stream: TextStream
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    reason: str | None = None


class _Reply:
    """The reply to one request."""

    def __init__(self, service: Service, asked: ChatRequest, stops: tuple[str, ...], prompt_tokens: int):
        self._service, self._asked, self._prompt_tokens = service, asked, prompt_tokens
        self._tokenizer = service.model.engine.tokenizer
        self._ends = frozenset(service.model.engine.stop_tokens) | frozenset(asked.stop_token_ids or ())
        self._texts = [_Text(TextStream(self._tokenizer, stops)) for _ in range(asked.n or 1)]
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}
        self._cached = 0
        service.metrics.prompt_tokens.inc(prompt_tokens)

    async def whole(self, tree) -> dict[str, Any]:
        """The reply at once."""
        async with self._service.job(tree) as job:
            async for event in self._service.events(job, len(self._texts)):
                self._take(job, event)
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": text.stream.text, "refusal": None},
                "logprobs": {"content": text.logprobs, "refusal": None} if self._asked.logprobs else None,
                "finish_reason": text.reason,
                **({"token_ids": text.tokens} if self._asked.return_token_ids else {}),
            }
            for number, text in enumerate(self._texts)
        ]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage()}

    async def stream(self, tree) -> AsyncIterator[bytes]:
        """The reply in server-sent events. An error in the middle is an event too, since the status has been sent."""
        try:
            for number in range(len(self._texts)):
                yield self._chunk(number, {"role": "assistant", "content": ""})
            async with self._service.job(tree) as job:
                async for event in self._service.events(job, len(self._texts)):
                    for chunk in self._pieces(job, event):
                        yield chunk
        except ApiError as error:
            yield _event(error.body())
            return
        if self._asked.stream_options is not None and self._asked.stream_options.include_usage:
            yield _event(self._head | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _pieces(self, job: Job, event: Event) -> list[bytes]:
        """The chunks of an event."""
        text = self._texts[event.branch]
        before, ended = len(text.logprobs), text.reason
        piece = self._take(job, event)
        found = []
        if piece:
            logprobs = {"content": text.logprobs[before:], "refusal": None} if self._asked.logprobs else None
            found.append(self._chunk(event.branch, {"content": piece}, logprobs=logprobs))
        if text.reason is not None and ended is None:
            found.append(self._chunk(event.branch, {}, reason=text.reason))
        return found

    def _take(self, job: Job, event: Event) -> str:
        """Add an event to its text; the piece of text that has become certain."""
        text, piece = self._texts[event.branch], ""
        for place, token in enumerate(event.tokens):
            if text.reason is not None or token in self._ends:
                break
            text.tokens.append(token)
            piece += text.stream.push(token)
            if self._asked.logprobs:
                text.logprobs.append(self._logprob(token, event.logps[place], event.top[place] if event.top else None))
            if text.stream.stopped:
                text.reason = "stop"
                self._service.worker.end(job, event.branch)
        if event.written is not None:
            self._cached = event.written.cached
            if text.reason is None:
                piece += text.stream.close()
                text.reason = "length" if event.written.reason == "length" else "stop"
        return piece

    def _logprob(self, token: int, logp: float, top) -> dict[str, Any]:
        likeliest = []
        if top is not None:
            values, ids = top
            count = self._asked.top_logprobs or 0
            likeliest = [self._named(int(i), float(v)) for v, i in zip(values[:count], ids[:count], strict=True)]
        return self._named(token, logp) | {"top_logprobs": likeliest}

    def _named(self, token: int, logp: float) -> dict[str, Any]:
        text = self._tokenizer.decode([token])
        return {"token": text, "logprob": max(logp, -9999.0), "bytes": list(text.encode())}

    def _usage(self) -> dict[str, Any]:
        new = sum(len(text.tokens) for text in self._texts)
        usage = {"prompt_tokens": self._prompt_tokens, "completion_tokens": new, "total_tokens": self._prompt_tokens + new}
        self._service.metrics.prefix_hits.inc(self._cached)
        return usage | {"prompt_tokens_details": {"cached_tokens": self._cached}}

    def _chunk(self, number: int, delta: dict[str, Any], *, logprobs: Any = None, reason: str | None = None) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = self._head | {"object": "chat.completion.chunk", "choices": [choice]}
        if self._asked.stream_options is not None and self._asked.stream_options.include_usage:
            chunk["usage"] = None
        return _event(chunk)


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {strict_json.dumps(body)}\n\n".encode()
