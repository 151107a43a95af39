"""Why a try to get a reply from a server had none, and what follows from it: another try, or whose error it is."""

from __future__ import annotations

import ssl
from typing import NamedTuple

import httpx

from mmrlhf_jax.faults import chain
from mmrlhf_jax.inference import replies

KEY = "MMRLHF_ENDPOINT_KEY"  # the environment variable with the server's key
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
OF_ONE_REQUEST = {400, 413, 415, 422}
TRIES, MALFORMED_TRIES = 10, 3  # of a request; of one with replies that are not of the protocol
# A server that ends a connection, or sends half of a reply, may do so because of the request.
_WHILE_IT_ANSWERS = (httpx.TimeoutException, httpx.ReadError, httpx.RemoteProtocolError, httpx.DecodingError)


class Failure(NamedTuple):
    """Why a try had no result.

    `refused`: the request itself is wrong. `tries`: how often such a thing is tried. `wait`: seconds that the server asks for.
    `may_be_own`: it may be this request's fault, which shows when others are answered. `advice` ends the message.
    """

    reason: str
    refused: bool = False
    tries: int = TRIES
    wait: float | None = None
    may_be_own: bool = False
    advice: str = ""


def of_connection(error: httpx.TransportError | httpx.DecodingError) -> Failure:
    """Of a connection without a whole reply."""
    if _is_of_certificates(error):
        return Failure(_named(error), tries=1, advice="; SSL_CERT_FILE names the certificates that are trusted")
    return Failure(_named(error), may_be_own=isinstance(error, _WHILE_IT_ANSWERS))


def of_reply(reply: httpx.Response, content: bytes, key_from: str) -> Failure:
    """Of a reply with a status other than 200, and this content. `key_from` is the environment variable of the key."""
    status, reason = reply.status_code, replies.reason_of(reply.status_code, content)
    if status in OF_ONE_REQUEST:
        return Failure(reason, refused=True)
    if status in PASSING and reply.headers.get("x-should-retry") != "false":
        return Failure(reason, wait=replies.seconds_stated(reply.headers.get("retry-after")), may_be_own=status >= 500)
    advice = ""
    if status in (401, 403):
        advice = f"; {key_from} must hold the server's key"
    elif 300 <= status < 400:
        advice = f"; it refers to {reply.headers.get('location')!r}: give that address"
    return Failure(reason, tries=1, advice=advice)


def _is_of_certificates(error: Exception) -> bool:
    found = (one for each in chain(error) for one in (each, *each.args))  # httpcore gives the cause as an argument alone
    return any(isinstance(one, ssl.SSLCertVerificationError) for one in found)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
