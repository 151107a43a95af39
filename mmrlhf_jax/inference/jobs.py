"""Long passes over a data set that write one JSON line per record, and can be resumed after a kill."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line, retried
from mmrlhf_jax.files import exists, hidden_beside, read_bytes, write_atomically, write_json_lines
from mmrlhf_jax.progress import say
from mmrlhf_jax.sole_writer import Held, held

# Records per piece; a kill loses at most one piece.
PIECE = 512

# Version of the lines' contents. Increment it when they change, so that pieces of an earlier version are not reused.
VERSION = 2


def write_in_pieces(
    examples, out: epath.PathLike, job: str, work: Callable[[Subset], Iterable[dict[str, Any]]], *, piece: int = PIECE
) -> None:
    """Run `work` over pieces of the examples and write its lines to `out`, in the order of the examples.

    `out` is a path, or the result of `reserved`. Finished pieces are kept in a folder beside it, whose name is a digest of
    `job` (a text with everything that the lines depend on) and the data; `out` is written when all pieces are finished. Raises
    UserError like `reserved`, and for a line with a number that is not finite, whose piece is not kept.
    """
    key = hashlib.sha256(f"{VERSION} {job} {examples.fingerprint} {piece}".encode()).hexdigest()[:16]
    with reserved(out) as place:
        out, parts = place.out, []
        folder = hidden_beside(out, f"{key}.pieces")
        for start in range(0, len(examples), piece):
            part, chosen = folder / f"{start:09d}.jsonl", Subset(examples, range(start, min(start + piece, len(examples))))
            if exists(part) and _is_whole(part, chosen):
                say(f"records {start} to {start + len(chosen) - 1}: done before")
            else:
                write_json_lines(part, work(chosen))
            parts.append(part)
        content = b"".join(read_bytes(part) for part in parts)
        place.lock.check(at_once=True)
        _refuse_existing(out)  # another program may have made it meanwhile
        write_atomically(out, content)
        try:
            retried(lambda: folder.rmtree(missing_ok=True), f"{folder}")
        except Exception as error:  # any storage backend's error: the output is already written
            say(f"{folder}: cannot be removed ({first_line(error)}); it is not needed any more")


@contextlib.contextmanager
def reserved(out: epath.PathLike) -> Iterator[Held]:
    """Reserve an output file before a model is loaded. Pass the yielded object to `write_in_pieces`.

    UserError if the file exists, if it cannot be written, or if another process, on this or another host, is writing it.
    """
    if isinstance(out, Held):
        yield out
        return
    _refuse_existing(out)
    with held(out, hidden_beside(out, "writing"), "is writing it") as place:
        _refuse_existing(out)  # a process that held the lock before may have written it
        try:
            yield place
        finally:
            place.lock.clear()


def _refuse_existing(out: epath.PathLike) -> None:
    if exists(out):
        raise UserError(f"{out}: already exists; choose another --out or remove it first")


def _is_whole(part: epath.Path, examples: Subset) -> bool:
    """Whether a stored piece has one line for each of these records, with all its responses."""
    try:
        lines = [strict_json.loads(line) for line in read_bytes(part).split(b"\n")[:-1]]
        found = [(line["id"], len(line["responses"])) for line in lines]
    except (ValueError, LookupError, TypeError):
        found = None
    whole = found == [(record.id, len(record.responses)) for record in examples.records]
    if not whole:
        say(f"{part}: is not whole, or of other records; it is made anew")
    return whole
