"""Texts from a running server with OpenAI's protocol (vLLM, SGLang, or `mmrlhf serve`), for models that outgrow this engine.

A group's requests go out one behind the other with identical bytes of their pictures, so that the server's prefix cache finds
them. Errors are told apart: what may pass is tried again, a refused request is that prompt's error, and a server that does not
know the key or the model ends the pass.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.places import PromptText

PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
OF_ONE_REQUEST = {400, 413, 415, 422}
TRIES, LONGEST_WAIT = 6, 60.0
KEY = "MMRLHF_ENDPOINT_KEY"


@dataclasses.dataclass(frozen=True)
class Text:
    """What an endpoint wrote. `error` is why it refused the prompt, and then there is no text."""

    text: str = ""
    finish_reason: str = "stop"
    tokens: int = 0
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt with its media, and how it is to be answered. Sample i of a request has the seed `seed` + i, as in vLLM."""

    prompt: PromptText
    example: Example
    most: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Endpoint:
    """A model at an address. `concurrency` requests are under way at a time."""

    def __init__(self, url: str, model: str | None = None, *, concurrency: int = 64, timeout: float = 600.0):
        self.url, self.model = url.rstrip("/").removesuffix("/v1"), model
        self._concurrency, self._timeout = concurrency, timeout
        key = os.environ.get(KEY)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    async def check(self) -> str:
        """The model's name, after one call. UserError if the server does not answer, or has no model or another one."""
        async with self._client() as client:
            reply = await self._send(client, "GET", "/v1/models", None)
        if isinstance(reply, str):
            raise UserError(f"{self.url}: {reply}")
        names = [each["id"] for each in reply["data"]]
        if self.model is None and len(names) != 1:
            raise UserError(f"{self.url} serves {', '.join(names) or 'no model'}; name one")
        if self.model is not None and self.model not in names:
            raise UserError(f"{self.url} does not serve {self.model!r}, but {', '.join(names) or 'no model'}")
        self.model = self.model or names[0]
        return self.model

    async def write(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Text]]:
        """Yield (number of a request, its text) as they are finished. UserError if the server refuses all of them."""
        turn = asyncio.Semaphore(self._concurrency)
        async with self._client() as client:

            async def one(number: int) -> tuple[int, Text]:
                async with turn:
                    return number, await self._answer(client, requests[number])

            tasks = [asyncio.ensure_future(one(number)) for number in range(len(requests))]
            try:
                for done in asyncio.as_completed(tasks):
                    yield await done
            finally:
                for task in tasks:
                    task.cancel()

    async def _answer(self, client: httpx.AsyncClient, request: Request) -> Text:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content(request.prompt, request.example)}],
            "max_tokens": request.most,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        reply = await self._send(client, "POST", "/v1/chat/completions", body)
        if isinstance(reply, str):
            return Text(error=reply)
        choice = reply["choices"][0]
        return Text(choice["message"]["content"] or "", choice["finish_reason"], reply["usage"]["completion_tokens"])

    async def _send(self, client: httpx.AsyncClient, method: str, path: str, body: Any) -> dict[str, Any] | str:
        """The reply, or why this request was refused. UserError for what concerns every request."""
        reason = ""
        for attempt in range(TRIES):
            try:
                reply = await client.request(method, f"{self.url}{path}", json=body)
            except httpx.TransportError as error:
                reason, wait = f"{type(error).__name__}: {error}", None
            else:
                if reply.status_code == 200:
                    return reply.json()
                reason, wait = f"{reply.status_code}: {reply.text[:300]}", reply.headers.get("retry-after")
                if reply.status_code in OF_ONE_REQUEST:
                    return reason
                if reply.status_code not in PASSING:
                    raise UserError(f"{self.url}{path}: {reason}")
            if attempt < TRIES - 1:
                await asyncio.sleep(_pause(attempt, wait))
        raise UserError(f"{self.url}{path}: {reason}; {TRIES} tries, the last of them just now")

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=self._concurrency)
        return httpx.AsyncClient(timeout=self._timeout, headers=self._headers, limits=limits)


def _pause(attempt: int, stated: str | None) -> float:
    """Seconds before the next try: what the server says, else longer every time, with a part at random."""
    if stated is not None and stated.isdecimal():
        return min(float(stated), LONGEST_WAIT)
    return min(2.0**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)


def content(prompt: PromptText, example: Example) -> list[dict[str, Any]]:
    """The parts of a user message: pictures first, or in their places; a video as its frames (vLLM's `video/jpeg`)."""
    if example.frames:
        joined = ",".join(base64.b64encode(frame).decode() for frame in example.frames)
        media = [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{joined}"}}]
    else:
        media = [{"type": "image_url", "image_url": {"url": _url(image)}} for image in example.images]
    text: Callable[[str], dict[str, str]] = lambda value: {"type": "text", "text": value}
    if isinstance(prompt, str):
        return [*media, text(prompt)]
    parts = [text(prompt[0])] if prompt[0] else []
    for medium, after in zip(media, prompt[1:], strict=True):
        parts += [medium, text(after)] if after else [medium]
    return parts


def _url(image: bytes) -> str:
    kinds = {b"\xff\xd8": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
    kind = next((kind for start, kind in kinds.items() if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
