"""The directory of a grown data set: what it was made with, and the lines of each step.

job.json         settings, by which a run is continued, and what was counted, also at the review
held_out.jsonl   per prompt: the benchmark's record that it is, or is near to
samples.jsonl    per prompt: the policy's answers
critiques.jsonl  per prompt: critiques of the different answers, if a server writes them
scores.jsonl     per prompt: the critic's critiques and rewards of the different answers
records.jsonl    ranked records, with their media in media/
review.jsonl     the prompts that people look through, and their verdicts
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import exists, hidden_beside, read_bytes, read_json_object, write_atomically
from mmrlhf_jax.inference.jobs import ALONE, LATE_SECONDS, POLL_SECONDS, Share, Work, run_job
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.sole_writer import held

VERSION = 1  # of the files' contents

Line = dict[str, Any]
Holds = Callable[[RankedRecord, Any], bool]


class GrownDirectory:
    """The files of a grown data set."""

    def __init__(self, path: epath.PathLike):
        self.path = epath.Path(path)
        self.job, self.held_out = self.path / "job.json", self.path / "held_out.jsonl"
        self.samples, self.scores = self.path / "samples.jsonl", self.path / "scores.jsonl"
        self.critiques = self.path / "critiques.jsonl"
        self.calibration, self.calibration_critiques = (
            self.path / f"{name}.jsonl" for name in ("calibration", "calibration-critiques")
        )
        self.records, self.review = self.path / "records.jsonl", self.path / "review.jsonl"

    def made_with(self) -> dict[str, Any]:
        """The content of job.json. UserError if there is none, or one of another version."""
        if not exists(self.job):
            raise UserError(f"{self.path}: has no job.json; `mmrlhf annotate --out {self.path}` makes such a directory")
        found = read_json_object(self.job)
        if found.get("version") != VERSION or not isinstance(found.get("settings"), dict):
            raise UserError(f"{self.job}: version {shown(found.get('version'))}, not {VERSION}; choose another --out")
        return found

    def settle(self, settings: Mapping[str, Any], names: Mapping[str, Any], share: Share = ALONE) -> dict[str, Any]:
        """Begin with these settings, or go on with them: the content of job.json. `names` are what the user calls things whose
        contents `settings` identifies. Of several processes the first one begins; the others wait for it, but not for ever.

        UserError, which names a setting that has changed, if the directory was begun with others.
        """
        settings = strict_json.loads(strict_json.dumps(settings))
        given_up = time.monotonic() + LATE_SECONDS
        while share.process and not exists(self.job) and time.monotonic() < given_up:
            time.sleep(POLL_SECONDS)
        if not exists(self.job):
            if exists(self.path) and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                raise UserError(f"{self.path}: exists and is no directory of `mmrlhf annotate`; choose another --out")
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            content = {"version": VERSION, "created": created, "names": dict(names), "settings": settings}
            self._write(content)
        found = self.made_with()
        for name, (before, now) in changes(found["settings"], settings).items():
            raise UserError(
                f"{self.path}: was begun with {name} {shown(before)}, not {shown(now)}; go on with the same settings, or choose"
                f" another --out (`--reuse {self.path}` takes its samples there)"
            )
        return found

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep figures in job.json, under a name."""
        found = self.made_with()
        if found.get(name) != value:
            self._write(found | {name: dict(value)})

    @contextlib.contextmanager
    def held_for_review(self) -> Iterator[None]:
        """A context in which no other process changes the queue. UserError if one does already."""
        with held(self.review, hidden_beside(self.review, "writing"), "is changing it") as place:
            try:
                yield
            finally:
                place.lock.clear()

    def _write(self, content: Mapping[str, Any]) -> None:
        write_atomically(self.job, (strict_json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (value before, value now) of settings that differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in (*before, *(name for name in now if name not in before)):
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found |= changes(one, other, f"{prefix}{name}.")
        elif one != other:
            found[f"{prefix}{name}"] = (one, other)
    return found


def made_lines(path: epath.Path, examples, job: str, work: Work, share: Share, holds: Holds) -> list[Line]:
    """The lines of a step, one per example: made by `run_job`, or read if they were made before."""
    if exists(path):
        say(f"{path}: was made before")
    else:
        run_job(examples, path, job, work, share=share, is_line=holds)
    return read_lines(path, examples.records, holds)


def read_lines(path: epath.Path, records: Sequence[RankedRecord], holds: Holds) -> list[Line]:
    """The lines of a file, one per record. UserError if they are not those of the records."""
    lines = list(json_lines(path))
    for record, (number, line) in zip(records, enumerate(lines, 1), strict=False):
        try:
            whole = holds(record, line)
        except (LookupError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise UserError(f"{path}, line {number}: is not of record {record.id!r}; remove the file, and it is made again")
    if len(lines) != len(records):
        raise UserError(f"{path}: has {len(lines)} lines for {len(records)} records; remove the file, and it is made again")
    return lines


def json_lines(path: epath.Path) -> Iterator[Line]:
    """The objects of a file with one per line. UserError for a line that is none."""
    for _, row in numbered_lines(read_bytes(path), path):
        yield row


def numbered_lines(content: bytes, path: epath.Path) -> Iterator[tuple[int, Line]]:
    """(number from 1, object) of each line of a file's content that is not blank. UserError for a line that holds none."""
    for number, text in enumerate(content.split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            row = strict_json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        yield number, row
