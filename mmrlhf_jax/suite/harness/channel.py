"""A connection between this program and a process of the harness: objects as lines of JSON, with the bytes of media behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from mmrlhf_jax import strict_json


class Channel:
    """One end. EOFError if the other end is gone in the middle of a frame."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def send(self, frame: Mapping[str, Any], *blobs: bytes) -> None:
        """Send an object, and bytes that belong to it. A BrokenPipeError if nobody reads it."""
        text = strict_json.dumps({**frame, "blobs": [len(blob) for blob in blobs]}, ensure_ascii=False)
        self._file.write(text.encode() + b"\n")
        for blob in blobs:
            self._file.write(blob)
        self._file.flush()

    def receive(self) -> dict[str, Any]:
        """The next object, which has no bytes behind it. EOFError if there is none."""
        frame, _ = self.receive_with_bytes()
        return frame

    def receive_with_bytes(self) -> tuple[dict[str, Any], list[bytes]]:
        """The next object, and the bytes that belong to it. EOFError if there is none."""
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the other end is gone")
        frame = strict_json.loads(line)
        sizes = frame.pop("blobs")
        blobs = [self._file.read(size) for size in sizes]
        if [len(blob) for blob in blobs] != sizes:
            raise EOFError("the other end is gone")
        return frame, blobs

    def commands(self) -> Iterator[dict[str, Any]]:
        """Objects, until there are no more."""
        while True:
            try:
                yield self.receive()
            except EOFError:
                return
