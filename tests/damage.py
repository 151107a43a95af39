"""What happens to checkpoints on a disk."""

from __future__ import annotations

from pathlib import Path


def damage(checkpoint: Path) -> None:
    """Cut every file of the parameters to half, as a copy that was broken off leaves them."""
    for path in (checkpoint / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
