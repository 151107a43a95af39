"""Tokens to text while they come: pieces that later tokens do not change, and stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class TextStream:
    """The text of one sequence of new tokens, in pieces that together are the tokenizer's decoding of all of them.

    Held back are bytes that are no character yet, and an end that may begin one of the stop strings. `stopped` says that a stop
    string has been found; the text ends before it, and further tokens are ignored. Special tokens are left out.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()):
        if any(not stop for stop in stops):
            raise ValueError("an empty stop string")
        self.stopped = False
        self.text = ""  # what has been given out
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._seen = ""  # text of whole characters

    def push(self, token: int) -> str:
        """The text that the token makes certain."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        piece = self._stream.step(self._tokenizer.backend_tokenizer, token)
        return self._give(self._seen + (piece or ""), final=False)

    def close(self) -> str:
        """The text that was held back, when no further tokens come."""
        if self.stopped:
            return ""
        whole = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        # Bytes that never became a character are decoded as replacement characters.
        return self._give(whole if whole.startswith(self._seen) else self._seen, final=True)

    def _give(self, seen: str, *, final: bool) -> str:
        self._seen = seen
        found = [place for place in (seen.find(stop, len(self.text)) for stop in self._stops) if place >= 0]
        if found:
            self.stopped, end = True, min(found)
        else:
            end = len(seen) if final else len(seen) - self._may_begin_a_stop(seen)
        piece = seen[len(self.text) : end]
        self.text += piece
        return piece

    def _may_begin_a_stop(self, seen: str) -> int:
        """The length of the longest end of `seen` with which a stop string begins."""
        lengths = (n for stop in self._stops for n in range(min(len(stop) - 1, len(seen)), 0, -1) if seen.endswith(stop[:n]))
        return max(lengths, default=0)


class TokenBytes:
    """The bytes of single tokens, which may be a part of a character's. Tokenizers here are byte-level: a token's name has one
    character per byte (GPT-2's table)."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        self._byte = {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}

    def __call__(self, token: int) -> bytes:
        text = self._tokenizer.decode([token])
        if "\ufffd" not in text:
            return text.encode()
        name = self._tokenizer.convert_ids_to_tokens(token) or ""
        whole = bytes(self._byte.get(sign, 0) for sign in name)
        return whole if name and all(sign in self._byte for sign in name) else text.encode()
