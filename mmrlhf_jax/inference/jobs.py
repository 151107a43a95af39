"""Long passes over a data set that write one JSON line per record, survive a kill and continue where they stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import hidden_beside, read_bytes, write_atomically, write_json_lines
from mmrlhf_jax.progress import say
from mmrlhf_jax.sole_writer import sole_writer

# Records per piece: what a kill can cost.
PIECE = 512

# Of what lines hold. Whoever changes them counts on: pieces of an earlier version are then not gone on from.
VERSION = 2


def write_in_pieces(
    examples, out: epath.PathLike, job: str, work: Callable[[Subset], Iterable[dict[str, Any]]], *, piece: int = PIECE
) -> None:
    """Run `work` over pieces of the examples and write its lines to `out`, in the order of the examples.

    Finished pieces are kept in a folder beside `out`, named after `job` (whatever the lines depend on) and the data, that
    the first of them makes; `out` appears when all are there. Raises UserError if `out` exists already, and for a line with a
    number that is not finite, which is not kept.
    """
    out = epath.Path(out)
    refuse_existing(out)
    key = hashlib.sha256(f"{VERSION} {job} {examples.fingerprint} {piece}".encode()).hexdigest()[:16]
    folder = hidden_beside(out, f"{key}.pieces")
    with sole_writer(folder, out, "is writing it") as lock:
        refuse_existing(out)  # by a process that was at it until now
        parts = []
        for start in range(0, len(examples), piece):
            part, chosen = folder / f"{start:09d}.jsonl", Subset(examples, range(start, min(start + piece, len(examples))))
            if part.exists() and _is_whole(part, chosen):
                say(f"records {start} to {start + len(chosen) - 1}: done before")
            else:
                write_json_lines(part, work(chosen))
            parts.append(part)
        refuse_existing(out)  # by a process with other settings, whose pieces are elsewhere
        write_atomically(out, b"".join(read_bytes(part) for part in parts))
        lock.quiet()
        folder.rmtree()


def refuse_existing(out: epath.PathLike) -> None:
    """For the start of a command too: before a model is loaded for nothing."""
    if epath.Path(out).exists():
        raise UserError(f"{out}: already exists; choose another --out or remove it first")


def _is_whole(part: epath.Path, examples: Subset) -> bool:
    """Whether a kept piece has one line for each of these records, with all its responses."""
    try:
        lines = [strict_json.loads(line) for line in read_bytes(part).split(b"\n")[:-1]]
        found = [(line["id"], len(line["responses"])) for line in lines]
    except (ValueError, LookupError, TypeError):
        found = None
    whole = found == [(record.id, len(record.responses)) for record in examples.records]
    if not whole:
        say(f"{part}: is not whole, or of other records; it is made anew")
    return whole
