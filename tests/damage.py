"""What happens to checkpoints on a disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

# What a copy that was broken off, or a host that lost its power, leaves of a file; None: not even its name.
HARM: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "gone": lambda content: None,
}


def damage(checkpoint: Path, part: str = "params", harm: str = "half") -> None:
    """Harm every file of a part of a checkpoint, or the one file that `part` names."""
    for path in files(checkpoint / part):
        content = HARM[harm](path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)


def files(place: Path) -> list[Path]:
    """The file itself, or all that a folder holds."""
    return [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
