"""Texts from a running server with OpenAI's protocol (vLLM, SGLang, or `mmrlhf serve`), for models that outgrow this engine.

A group's requests go out one behind the other with identical bytes of their pictures, so that the server's prefix cache finds
them. Errors are told apart: what may pass is tried again, a refused request is that prompt's error, and a server that does not
know the key or the model ends the pass.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Protocol

import httpx

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import replies
from mmrlhf_jax.inference.failures import KEY, MALFORMED_TRIES, TRIES, Failure, of_connection, of_reply
from mmrlhf_jax.inference.messages import user_message
from mmrlhf_jax.places import PromptText
from mmrlhf_jax.progress import say

CHAT = "/v1/chat/completions"
FIRST_TRIES = 4  # of the first request, which shows whether the server is there
LONGEST_WAIT, LONGEST_STATED = 60.0, 600.0  # seconds between two tries: our own, the server's
SAY_SECONDS = 10.0
UNFINISHED = {"content_filter", "abort", "error", "tool_calls", "function_call"}  # reasons of replies that are no whole text
LARGEST_REPLY = 32 * 2**20  # bytes


@dataclasses.dataclass(frozen=True)
class Text:
    """What an endpoint wrote.

    Attributes:
        finish_reason: as the server says it: "stop", "length" for a text that was cut off, or another one.
        tokens: the number of new tokens; None: the server does not say.
        error: why the server refused the prompt, and then there is no text.
        prompt_ids: the tokens that the server read, if they were asked for and it says them.
    """

    text: str = ""
    finish_reason: str = "stop"
    tokens: int | None = None
    error: str | None = None
    prompt_ids: tuple[int, ...] | None = None


class Asked(Protocol):
    """A request: where it goes, the form of its reply, and its body for the model of this name."""

    path: str
    form: type[replies.Written]

    def body(self, model: str | None) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt with its media, and how it is to be answered, in at most `most` tokens. Sample i of a prompt is asked for with
    the seed + i, as vLLM does it."""

    path, form = CHAT, replies.Chat  # of every one

    prompt: PromptText
    example: Example
    most: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    prompt_ids: bool = False

    def body(self, model: str | None) -> dict[str, Any]:
        """What is sent. UserError for media that cannot be read."""
        body = {
            "model": model,
            "messages": user_message(self.prompt, self.example),
            "max_completion_tokens": self.most,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
        # Beyond OpenAI's own protocol: a server that does not know them refuses them, if they are asked for.
        body |= {name: value for name, value in (("top_k", self.top_k), ("min_p", self.min_p)) if value}
        return body | ({"return_token_ids": True} if self.prompt_ids else {})


class Endpoint:
    """A model at an address. `concurrency` requests are under way at a time, each for at most `timeout` seconds.

    The key, if the server wants one, is in the environment variable `key_from`. Certificates of https are verified. `option`
    is what chooses one of several models of a server. UserError for what is no address.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        concurrency: int = 64,
        timeout: float = 600.0,
        key_from: str = KEY,
        option: str | None = None,
    ):
        self.url, self.model = _address(url, key_from), model
        self._concurrency, self._timeout = concurrency, timeout
        self._key_from, self._key, self._option = key_from, _key(key_from), option
        self._answered, self._written, self._said = 0, 0, -SAY_SECONDS

    async def check(self) -> str:
        """The model's name, after one call. UserError if the server does not answer, or has no model or another one."""
        self.say_if_unencrypted()
        async with self._client() as client:
            reply = await self._send(client, "GET", "/v1/models", None, replies.Models, FIRST_TRIES)
        if isinstance(reply, str):
            raise UserError(f"{self.url}/v1/models: {reply}")
        names = [each.id for each in reply.data]
        if self.model is None and len(names) != 1:
            how = "name one" if self._option is None else f"name one by {self._option}"
            raise UserError(f"{self.url} serves {', '.join(names) or 'no model'}; {how}")
        if self.model is not None and self.model not in names:
            raise UserError(f"{self.url} does not serve {self.model!r}, but {', '.join(names) or 'no model'}")
        self.model = self.model or names[0]
        return self.model

    def say_if_unencrypted(self) -> None:
        """Say that the key can be read on the way, if it can."""
        if self._key and httpx.URL(self.url).scheme == "http" and not _is_loopback(httpx.URL(self.url).host):
            say(f"{self.url}: {self._key_from} goes there unencrypted; https:// would protect it")

    async def write(self, requests: Iterable[Asked]) -> AsyncIterator[tuple[int, Text]]:
        """Yield (number of a request, its text) as they are finished. Requests are taken when their turn comes, in order.

        UserError for what concerns every request.
        """
        source, running = enumerate(requests), set()
        async with self._client() as client:

            async def answer(number: int, request: Asked) -> tuple[int, Text]:
                return number, await self._answer(client, request)

            try:
                while True:
                    while source is not None and len(running) < self._concurrency:
                        taken = await asyncio.to_thread(next, source, None)  # reads media
                        if taken is None:
                            source = None
                        else:
                            running.add(asyncio.create_task(answer(*taken)))
                    if not running:
                        return
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in sorted(done, key=lambda task: task.exception() is not None):  # no finished text is lost
                        yield task.result()
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    def texts(self, requests: Iterable[Asked]) -> Iterator[tuple[int, Text]]:
        """`write`, for callers that have no event loop."""
        with asyncio.Runner() as runner:
            found = self.write(requests)

            async def following() -> tuple[int, Text] | None:
                return await anext(found, None)

            try:
                while (each := runner.run(following())) is not None:
                    yield each
            finally:
                runner.run(found.aclose())

    def first(self, request: Asked) -> Text:
        """The text of a single request, tried as often as shows whether the server is there. UserError like `write`."""

        async def answer() -> Text:
            async with self._client() as client:
                return await self._answer(client, request, FIRST_TRIES)

        return asyncio.run(answer())

    async def _answer(self, client: httpx.AsyncClient, request: Asked, tries: int = TRIES) -> Text:
        body = await asyncio.to_thread(request.body, self.model)  # encodes media
        reply = await self._send(client, "POST", request.path, body, request.form, tries)
        if isinstance(reply, str):
            return Text(error=reply)
        self._written += 1
        choice, usage, ids = reply.choices[0], reply.usage, reply.prompt_token_ids
        if choice.finish_reason in UNFINISHED:
            return Text(error=f"the server ended the text: {choice.finish_reason}")
        return Text(
            choice.written,
            choice.finish_reason or "stop",
            None if usage is None else usage.completion_tokens,
            prompt_ids=None if ids is None else tuple(ids),
        )

    async def _send(
        self,
        client: httpx.AsyncClient,
        method: str,
        path: str,
        body: Any,
        form: type[replies.Reply],
        tries: int = TRIES,
    ) -> replies.Reply | str:
        """The reply, or why this request alone has none. UserError for what concerns every request."""
        place, answered = f"{self.url}{path}", self._answered
        content = None if body is None else strict_json.dumps(body).encode()
        attempt = 0
        while True:
            found = await self._try(client, method, place, content, form)
            if not isinstance(found, Failure):
                self._answered += 1
                return found
            reason = found.reason if self._key is None else found.reason.replace(self._key, "***")
            if found.refused:
                return reason
            attempt += 1
            if attempt >= min(tries, found.tries):
                others = self._answered > answered  # were answered meanwhile
                if found.may_be_own and (others or (self._written and await self._writes(client))):
                    return f"{reason}, {attempt} times"
                raise UserError(f"{place}: {reason}{f', {attempt} times' if attempt > 1 else ''}{found.advice}")
            wait = _pause(attempt, found.wait)
            if wait > LONGEST_STATED:
                raise UserError(f"{place}: {reason}; it asks to come back in {wait:.0f} s: start again then")
            if time.monotonic() - self._said >= SAY_SECONDS:
                self._said = time.monotonic()
                say(f"{self.url}: {reason}; trying again in {wait:.1f} s")
            await asyncio.sleep(wait)

    async def _writes(self, client: httpx.AsyncClient) -> bool:
        """Whether the server answers a short question now, so that a request that always fails is to blame itself."""
        body = {"model": self.model, "messages": [{"role": "user", "content": "Hello"}], "max_completion_tokens": 1}
        reply = await self._try(client, "POST", f"{self.url}{CHAT}", strict_json.dumps(body).encode(), replies.Chat)
        return not isinstance(reply, Failure)

    async def _try(
        self, client: httpx.AsyncClient, method: str, place: str, content: bytes | None, form: type[replies.Reply]
    ) -> replies.Reply | Failure:
        try:
            async with asyncio.timeout(self._timeout), client.stream(method, place, content=content) as reply:
                found = bytearray()
                async for part in reply.aiter_bytes():
                    found += part
                    if len(found) > LARGEST_REPLY:
                        return Failure(f"a reply of more than {LARGEST_REPLY} bytes", tries=1, may_be_own=True)
        except TimeoutError:
            return Failure(f"no reply within {self._timeout:.0f} s", may_be_own=True)
        except (httpx.TransportError, httpx.DecodingError) as error:
            return of_connection(error)
        if reply.status_code == 200:
            try:
                return replies.read(form, bytes(found))
            except replies.MalformedReply as error:
                return Failure(str(error), tries=MALFORMED_TRIES, may_be_own=True)
        key = b"" if self._key is None else self._key.encode()  # hidden before a long message is cut in the middle of it
        return of_reply(reply, bytes(found).replace(key, b"***") if key else bytes(found), self._key_from)

    def _client(self) -> httpx.AsyncClient:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {self._key}"} if self._key else {})
        limits = httpx.Limits(max_connections=self._concurrency, max_keepalive_connections=self._concurrency)
        return httpx.AsyncClient(timeout=httpx.Timeout(self._timeout, connect=30.0), headers=headers, limits=limits)


def _pause(attempt: int, stated: float | None) -> float:
    """Seconds before the next try: longer every time, with a part at random, and no less than what the server says."""
    own = min(2.0 ** (attempt - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0)
    return own if stated is None else max(stated, own / 4)


def _address(url: str, key_from: str) -> str:
    """The address in front of `/v1`. UserError, which does not show a password, if it is none."""
    said = re.sub("//[^/]*@", "//***@", url)
    expected = "give http://HOST:PORT or https://HOST, with a path if need be"
    try:
        found = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise UserError(f"{said}: not an address ({error}); {expected}") from None
    if found.userinfo:
        raise UserError(f"{said}: the address has a name or a password in it; put the server's key into {key_from}")
    if found.scheme not in ("http", "https") or not found.host or not 0 < (found.port or 1) < 65536:
        raise UserError(f"{said}: not an address; {expected}")
    if found.query or found.fragment:
        raise UserError(f"{said}: something follows the path; {expected}")
    return re.sub(r"(/v1)?(/chat)?/completions$|/v1$", "", str(found).rstrip("/")).rstrip("/")


def _key(name: str) -> str | None:
    key = os.environ.get(name, "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise UserError(f"{name}: the key has characters that an HTTP header cannot have")
    return key or None


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
