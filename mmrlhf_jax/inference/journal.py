"""A folder in which the hosts of a job keep finished lines until all are there."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.files import entries, exists, read_bytes, write_atomically
from mmrlhf_jax.progress import say

# Seconds between two parts; a kill loses at most so much work of a host.
PART_SECONDS = 5.0
_SUFFIX = ".jsonl"

Lines = dict[int, dict[str, Any]]


class Journal:
    """The lines that this process has finished, in parts, which are files that appear whole or not at all.

    `is_line(index, line)` says whether a stored line is one of the record with this index; others are reported and left out.
    """

    def __init__(self, folder: epath.Path, process: int, is_line: Callable[[int, Any], bool]):
        self._folder, self._is_line = folder, is_line
        self._name = f"{process:04d}-{uuid.uuid4().hex[:12]}"
        self._parts, self._kept, self._saved = 0, [], time.monotonic()
        self._read: set[str] = set()
        self.lines: Lines = {}  # of all processes, as far as they have been read

    def add(self, index: int, line: Mapping[str, Any]) -> None:
        """Keep a finished line; it is stored within PART_SECONDS of the next call, or by `save`.

        UserError, for a number that is not finite, from the call that stores it.
        """
        self._kept.append({"index": index, "line": line})
        if time.monotonic() - self._saved >= PART_SECONDS:
            self.save()

    def save(self) -> None:
        """Store all lines that were added."""
        if self._kept:
            kept, self._kept = self._kept, []
            lines = [strict_json.dumps(each, where=f"record {each['line'].get('id')!r}") + "\n" for each in kept]
            name = f"{self._name}-{self._parts:06d}{_SUFFIX}"
            write_atomically(self._folder / name, "".join(lines).encode())
            self._read.add(name)
            self._parts += 1
            self.lines |= {each["index"]: each["line"] for each in kept}
        self._saved = time.monotonic()

    def has_parts_of(self, process: int) -> bool:
        """Whether a process of this number has stored anything, as far as is known."""
        return any(name.startswith(f"{process:04d}-") for name in self._read)

    def refresh(self) -> Lines:
        """Read the parts that came since the last call; all lines so far."""
        if exists(self._folder):
            for path in sorted(entries(self._folder), key=lambda path: path.name):
                if path.name.endswith(_SUFFIX) and path.name not in self._read:
                    self._read.add(path.name)
                    self._take(path)
        return self.lines

    def _take(self, path: epath.Path) -> None:
        spoilt = 0
        for text in read_bytes(path).split(b"\n")[:-1]:
            try:
                row = strict_json.loads(text)
                index, line = row["index"], row["line"]
                whole = isinstance(index, int) and self._is_line(index, line)
            except (ValueError, LookupError, TypeError, AttributeError):
                whole = False
            if whole:
                self.lines.setdefault(index, line)
            spoilt += not whole
        if spoilt:
            say(f"{path}: {spoilt} lines are not whole, or of other records; they are made anew")
