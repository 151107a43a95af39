"""Reading a request: who asks, how large it is, and its JSON."""

from __future__ import annotations

import hmac
from typing import Any

from starlette.requests import ClientDisconnect, Request

from mmrlhf_jax import strict_json
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.limits import Limits

MOST_HEAD, MOST_HEADERS = 32 * 2**10, 100  # bytes and number of a request's headers


def check_head(request: Request) -> None:
    """ApiError for a head that is too large; the connection bounds only what comes in pieces."""
    headers = request.headers.raw
    if len(headers) > MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > MOST_HEAD:
        raise ApiError(431, f"more than {MOST_HEADERS} headers, or more than {MOST_HEAD} bytes of them")


def check_key(request: Request, key: str | None) -> None:
    """ApiError unless the request has the server's key; compared in constant time."""
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")


async def read_json(request: Request, limits: Limits) -> Any:
    """The request's JSON object. It is read no further than the limit, whatever its header says of its length."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"content-type {kind!r} is not application/json")
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > limits.body:
        raise ApiError(413, f"the request is larger than {limits.body} bytes")
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > limits.body:
                raise ApiError(413, f"the request is larger than {limits.body} bytes")
    except ClientDisconnect:
        raise ApiError(400, "the client has gone") from None
    try:
        found = strict_json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise ApiError(400, "the request is not valid JSON") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the request must be a JSON object")
    return found
