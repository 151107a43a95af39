"""Reading a request: who asks, how large it is, and its JSON."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
from typing import Any

from starlette.requests import ClientDisconnect, Request

from mmrlhf_jax import strict_json
from mmrlhf_jax.serving.errors import ApiError, ClientGone
from mmrlhf_jax.serving.limits import Limits
from mmrlhf_jax.serving.protocol import Kind, parse
from mmrlhf_jax.serving.service import Intake, Service

MOST_HEAD, MOST_HEADERS = 32 * 2**10, 100  # bytes and number of a request's headers

# A string of a JSON text, or what is left of the text behind a quotation mark that nothing closes.
_STRING = re.compile(rb'"[^"\\]*+(?:\\(?:.|\Z)[^"\\]*+)*+(?:"|\Z)', re.DOTALL)


def check_head(request: Request) -> None:
    """ApiError for a head that is too large; the connection bounds only what comes in pieces."""
    headers = request.headers.raw
    if len(headers) > MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > MOST_HEAD:
        raise ApiError(431, f"more than {MOST_HEADERS} headers, or more than {MOST_HEAD} bytes of them")


def check_host(request: Request, key: str | None) -> None:
    """ApiError if a server without a key, which only this machine reaches, is addressed by another name.

    A web page whose name is made to point to this machine (DNS rebinding) could otherwise use a browser here to ask.
    """
    name = request.headers.get("host")
    if key is None and name is not None and not is_loopback(re.sub(r":\d*$", "", name)):
        raise ApiError(421, "this server has no key and answers to names of this machine alone; set MMRLHF_API_KEY")


def is_loopback(host: str) -> bool:
    """Whether a host, which may stand in brackets, is this machine for itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_key(request: Request, key: str | None) -> None:
    """ApiError unless the request has the server's key; compared in constant time."""
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        message = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
        raise ApiError(401, message, code="invalid_api_key")


async def read(kind: type[Kind], request: Request, service: Service, intake: Intake) -> Kind:
    """The request's JSON object, as `kind` has it. ApiError if it is too large, comes too slowly or is invalid."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json":
        raise ApiError(415, f"content-type {given[:80]!r} is not application/json, which requests must have")
    try:
        async with asyncio.timeout(service.limits.body_seconds):
            body = await _body(request, service.limits, intake)
    except TimeoutError:
        raise ApiError(408, f"the request's body took longer than {service.limits.body_seconds:.0f} s") from None
    except ClientDisconnect:
        raise ClientGone from None
    return await service.aside(lambda: parse(kind, _object(body, service.limits)))


async def _body(request: Request, limits: Limits, intake: Intake) -> bytearray:
    """The body, read no further than the limit, whatever the head says of its length."""
    too_large = ApiError(413, f"the request is larger than {limits.body} bytes")
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > limits.body:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        intake.add(len(part))
        body += part
        if len(body) > limits.body:
            raise too_large
    return body


def _object(body: bytearray, limits: Limits) -> dict[str, Any]:
    """The JSON object of a body, whose values are counted first: millions of small ones would take many times its size."""
    between = _STRING.sub(b"", body)
    values = sum(between.count(sign) for sign in (b",", b"[", b"{", b":"))
    if values > limits.values:
        raise ApiError(400, f"the request's JSON has more than {limits.values} values")
    try:
        found = strict_json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "the request is not valid JSON") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the request must be a JSON object")
    return found
