"""A folder in which the hosts of a job keep finished lines until all are there."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.files import entries, exists, read_bytes, write_atomically
from mmrlhf_jax.progress import counted, say

# Seconds after which a finished line is stored at the latest; a kill loses at most so much work of a host.
PART_SECONDS = 5.0
_SUFFIX = ".jsonl"

Lines = dict[int, Mapping[str, Any]]
# Computes the lines of the records with these indices, and yields (index, line) in any order, as they are finished.
Work = Callable[[Sequence[int]], Iterator[tuple[int, Mapping[str, Any]]]]


class Journal:
    """The lines that this process has finished, in parts, which are files that appear whole or not at all.

    `is_line(index, line)` says whether a stored line is one of the record with this index; others are reported and left out.
    """

    def __init__(self, folder: epath.Path, process: int, is_line: Callable[[int, Any], bool]):
        self._folder, self._is_line = folder, is_line
        self._name = f"{process:04d}-{uuid.uuid4().hex[:12]}"
        self._parts, self._kept, self._saved = 0, [], time.monotonic()
        self._lock, self._timer = threading.RLock(), None
        self._read: set[str] = set()
        self.lines: Lines = {}  # of all processes, as far as they have been read

    def fill(self, indices: Sequence[int], work: Work) -> None:
        """Keep the lines that `work` makes of these records; if an error ends it, those that were finished before."""
        try:
            for index, line in work(indices):
                self.add(index, line)
        finally:
            self.save()
        if lost := [index for index in indices if index not in self.lines]:
            raise RuntimeError(f"no line was made of {len(lost)} records, the first of which is {lost[0]}")

    def add(self, index: int, line: Mapping[str, Any]) -> None:
        """Keep a finished line. It is stored within PART_SECONDS, also if no other one is finished until then.

        UserError for a number that is not finite.
        """
        text = strict_json.dumps({"index": index, "line": line}, where=f"record {line.get('id')!r}")
        with self._lock:
            self._kept.append(text + "\n")
            self.lines[index] = line
            if time.monotonic() - self._saved >= PART_SECONDS:
                self.save()
            elif self._timer is None:
                self._timer = threading.Timer(PART_SECONDS, self._save_in_time)
                self._timer.daemon = True
                self._timer.start()

    def save(self) -> None:
        """Store all lines that were added."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._kept:
                name = f"{self._name}-{self._parts:06d}{_SUFFIX}"
                write_atomically(self._folder / name, "".join(self._kept).encode())
                self._kept = []
                self._read.add(name)
                self._parts += 1
            self._saved = time.monotonic()

    def _save_in_time(self) -> None:
        with contextlib.suppress(Exception):  # of any storage: the lines stay, and the next call raises what is in the way
            self.save()

    def has_parts_of(self, process: int) -> bool:
        """Whether a process of this number has stored anything, as far as is known."""
        return any(name.startswith(f"{process:04d}-") for name in self._read)

    def refresh(self) -> Lines:
        """Read the parts that came since the last call; all lines so far.

        The folder may go meanwhile: who has written the output removes it, and needs nobody to read the rest.
        """
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(entries(self._folder), key=lambda path: path.name) if exists(self._folder) else ():
                if path.name.endswith(_SUFFIX) and path.name not in self._read:
                    self._take(path, read_bytes(path))
                    self._read.add(path.name)
        return self.lines

    def _take(self, path: epath.Path, content: bytes) -> None:
        spoilt = 0
        for text in content.split(b"\n")[:-1]:
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
            say(f"{path}: {counted(spoilt, 'line')} left out (not whole, or of other records); what is missing is made anew")
