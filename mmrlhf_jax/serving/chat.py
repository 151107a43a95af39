"""`/v1/chat/completions`, as OpenAI's clients use it. Reference: OpenAI's API, vLLM's `openai/protocol.py`."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.requests import Tree
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.inference.texts import TextStream
from mmrlhf_jax.serving.conversation import read_conversation
from mmrlhf_jax.serving.errors import ApiError, ClientGone
from mmrlhf_jax.serving.model import Wanted
from mmrlhf_jax.serving.protocol import ChatRequest
from mmrlhf_jax.serving.requests import read
from mmrlhf_jax.serving.service import Service, tree_tokens, unless_gone
from mmrlhf_jax.serving.worker import Event, Job

logger = logging.getLogger(__name__)


async def completions(request: Request) -> Response:
    service: Service = request.app.state.service
    reply, tree = await _prepared(request, service)
    if reply.streams:
        job = service.submit(tree)  # before the status goes out, which says whether there was room
        return _Stream(service, job, reply.stream(job, request.state.deadline))
    return JSONResponse(await unless_gone(request, lambda: reply.whole(tree)))


async def _prepared(request: Request, service: Service) -> tuple[_Reply, Tree]:
    """(the reply to a request, its tree). When this returns, nothing refers to the request's body any more."""
    with service.intake() as intake:
        asked = await read(ChatRequest, request, service, intake)
        service.check_open()
        wanted, stops = _wanted(asked, service)
        conversation = await service.aside(read_conversation, asked.messages, service.limits)
        tree = await service.aside(service.model.chat_tree, conversation, wanted)
    return _Reply(service, asked, stops, tree), tree


def _wanted(asked: ChatRequest, service: Service) -> tuple[Wanted, tuple[str, ...]]:
    """(what is wanted of the lanes, stop strings). ApiError for what is out of bounds."""
    limits = service.limits
    if asked.model != service.model.name:
        raise ApiError(404, f"model {asked.model[:80]!r} is not served; there is {service.model.name!r}", param="model")
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
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "stream_options needs stream", param="stream_options")
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


class _Stream(StreamingResponse):
    """A reply in pieces, which ends its job however it ends itself: also if the client goes before the first piece."""

    def __init__(self, service: Service, job: Job, pieces: AsyncIterator[bytes]):
        super().__init__(pieces, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._worker, self._job = service.worker, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(Request(scope, receive), lambda: self.stream_response(send))
        except ClientGone:
            pass
        finally:
            self._worker.cancel(self._job)


@dataclasses.dataclass
class _Text:
    """One choice, as it grows. `sent` counts its tokens that chunks have brought."""

    stream: TextStream
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    reason: str | None = None
    sent: int = 0


class _Reply:
    """The reply to one request."""

    def __init__(self, service: Service, asked: ChatRequest, stops: tuple[str, ...], tree: Tree):
        self._service, self._prompt_tokens = service, tree_tokens(tree)
        engine = service.model.engine
        self._ends = frozenset(engine.stop_tokens) | frozenset(asked.stop_token_ids or ())
        self._texts = [_Text(TextStream(engine.tokenizer, stops)) for _ in range(asked.n or 1)]
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}
        self._head |= {"system_fingerprint": service.model.fingerprint}
        self._cached = 0
        self.streams = bool(asked.stream)
        self._logprobs, self._top = bool(asked.logprobs), asked.top_logprobs or 0
        self._token_ids = bool(asked.return_token_ids)
        self._prompt_ids = [*tree.tokens.tolist(), *tree.branches[0].tokens.tolist()] if self._token_ids else []
        self._with_usage = asked.stream_options is not None and asked.stream_options.include_usage

    async def whole(self, tree: Tree) -> dict[str, Any]:
        """The reply at once."""
        async with self._service.job(tree) as job:
            async for event in self._service.events(job):
                self._take(job, event)
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": text.stream.text, "refusal": None},
                "logprobs": {"content": text.logprobs, "refusal": None} if self._logprobs else None,
                "finish_reason": text.reason,
                **({"token_ids": text.tokens} if self._token_ids else {}),
            }
            for number, text in enumerate(self._texts)
        ]
        found = self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage()}
        return found | ({"prompt_token_ids": self._prompt_ids} if self._token_ids else {})

    async def stream(self, job: Job, deadline: float) -> AsyncIterator[bytes]:
        """The reply in server-sent events. An error in the middle is an event too, since the status has been sent."""
        try:
            for number in range(len(self._texts)):
                yield self._chunk(number, {"role": "assistant", "content": ""}, first=True)
            async for event in self._service.events(job, deadline):
                for chunk in self._pieces(job, event):
                    yield chunk
        except ApiError as error:
            self._service.metrics.rejections.labels(error.code or str(error.status)).inc()
            yield _event(error.body())
            return
        except Exception:
            logger.exception("stream %s", self._head["id"])
            yield _event(ApiError(500, f"the server has failed; its log has the reason under {self._head['id']}").body())
            return
        if self._with_usage:
            yield _event(self._head | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _pieces(self, job: Job, event: Event) -> list[bytes]:
        """The chunks of an event. Tokens whose text is held back come with the next piece, or with the end."""
        text = self._texts[event.branch]
        ended = text.reason
        piece = self._take(job, event)
        found = []
        if piece:
            found.append(self._chunk(event.branch, {"content": piece}))
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
            if self._logprobs:
                text.logprobs.append(self._logprob(token, event.logps[place], event.top[place] if event.top else None))
            if text.stream.stopped:
                text.reason = "stop"
                self._service.worker.end(job, event.branch)
        if event.written is not None:
            self._cached = event.written.cached
            if text.reason is None:
                piece += text.stream.close()
                text.reason = "length" if event.written.reason == "length" and not text.stream.stopped else "stop"
        return piece

    def _logprob(self, token: int, logp: float, top) -> dict[str, Any]:
        likeliest = []
        if top is not None:
            values, ids = (each[: self._top] for each in top)
            likeliest = [self._named(int(i), float(v)) for v, i in zip(values, ids, strict=True)]
        return self._named(token, logp) | {"top_logprobs": likeliest}

    def _named(self, token: int, logp: float) -> dict[str, Any]:
        data = self._service.model.token_bytes(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(logp, -9999.0), "bytes": list(data)}

    def _usage(self) -> dict[str, Any]:
        new = sum(len(text.tokens) for text in self._texts)
        usage = {"prompt_tokens": self._prompt_tokens, "completion_tokens": new, "total_tokens": self._prompt_tokens + new}
        return usage | {"prompt_tokens_details": {"cached_tokens": self._cached}}

    def _chunk(self, number: int, delta: dict[str, Any], *, reason: str | None = None, first: bool = False) -> bytes:
        """A chunk of one choice, with what its tokens since the last one have."""
        text = self._texts[number]
        new, text.sent = slice(text.sent, len(text.tokens)), len(text.tokens)
        logprobs = {"content": text.logprobs[new], "refusal": None} if text.logprobs[new] else None
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = self._head | {"object": "chat.completion.chunk", "choices": [choice]}
        if self._token_ids:
            choice["token_ids"] = text.tokens[new]
            chunk |= {"prompt_token_ids": self._prompt_ids} if first else {}
        if self._with_usage:
            chunk["usage"] = None
        return _event(chunk)


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {strict_json.dumps(body)}\n\n".encode()
