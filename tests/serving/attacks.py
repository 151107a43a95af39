"""Requests for attacks on the running server, and what its refusals must look like."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import httpx
from PIL import Image

CHAT = "/v1/chat/completions"


def chat(content, **settings) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 3, "temperature": 0, **settings}


def picture(data: bytes, kind: str = "image/png") -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def frames(*data: bytes, kind: str = "video/jpeg") -> list[dict]:
    joined = ",".join(base64.b64encode(each).decode() for each in data)
    return [{"type": "video_url", "video_url": {"url": f"data:{kind};base64,{joined}"}}]


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says this size, and which has next to no content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def alive(address: str) -> bool:
    return httpx.get(f"{address}/health").status_code == 200


def refused(reply: httpx.Response, status: int, says: str) -> None:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert says in error["message"] and set(error) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]
