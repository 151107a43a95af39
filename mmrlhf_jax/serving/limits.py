"""Bounds of what a request may contain. Each stands against an attack on a server of models that is known (docs/serving.md)."""

from __future__ import annotations

import dataclasses

MiB = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    body: int = 32 * MiB  # bytes of a request
    bodies: int = 512 * MiB  # bytes of all requests that are being read and prepared; more are refused with 429
    body_seconds: float = 60.0  # for the body of a request to come
    values: int = 20_000  # values and keys of a request's JSON, counted before it is parsed
    media: int = 16  # pictures of a request
    frames: int = 64  # frames of a video, counted before any is decoded
    frames_per_second: float | None = None  # of these frames, which requests do not tell; None: not known
    pixels: int = 50_000_000  # of one picture, from its header
    decoded: int = 400 * MiB  # bytes of all decoded pictures of a request
    messages: int = 64
    responses: int = 64  # of one prompt, in a rewards request
    pairs: int = 256  # of prompt and response, in a request of a view
    text: int = 400_000  # characters of all texts of a request
    samples: int = 16  # `n`
    stops: int = 4
    stop_length: int = 64
    stop_tokens: int = 32
    requests: int = 512  # at a time, whatever they wait for; more are refused with 429
    waiting: int = 256  # requests that wait for a slot; more are refused with 429
    seconds: float = 600.0  # a request's time, waiting included
