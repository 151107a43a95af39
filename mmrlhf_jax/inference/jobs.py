"""Long passes over a data set that write one JSON line per record, survive a kill and continue where they stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import read_bytes, write_atomically
from mmrlhf_jax.progress import say

# Records per piece: what a kill can cost.
PIECE = 512


def write_in_pieces(
    examples, out: epath.PathLike, job: str, work: Callable[[Subset], Iterable[dict[str, Any]]], *, piece: int = PIECE
) -> None:
    """Run `work` over pieces of the examples and write its lines to `out`, in the order of the examples.

    Finished pieces are kept in a folder beside `out`, named after `job` (whatever the lines depend on) and the data, that
    the first of them makes; `out` appears when all are there. Raises UserError if `out` exists already.
    """
    out = epath.Path(out)
    if out.exists():
        raise UserError(f"{out}: already exists; choose another --out or remove it first")
    key = hashlib.sha256(f"{job} {examples.fingerprint} {piece}".encode()).hexdigest()[:16]
    folder = out.parent / f".{out.name}.{key}.pieces"
    parts = []
    for start in range(0, len(examples), piece):
        part = folder / f"{start:09d}.jsonl"
        if part.exists():
            say(f"records {start} to {min(start + piece, len(examples)) - 1}: done before")
        else:
            lines = work(Subset(examples, range(start, min(start + piece, len(examples)))))
            write_atomically(part, "".join(strict_json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        parts.append(part)
    write_atomically(out, b"".join(read_bytes(part) for part in parts))
    if parts:
        folder.rmtree()
