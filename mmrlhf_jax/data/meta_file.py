"""Reads MMPR's `meta.json` as its authors' trainer does: sets by name, each with its rows, its image folder, and a weight.

{"name": {"root": "MMPR/images/ScienceQA", "annotation": "MMPR/annotations/x.jsonl", "repeat_time": 1, "length": 66457, ...}}
"""

from __future__ import annotations

from typing import Any, NamedTuple

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.hub import hub_errors
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import read_bytes
from mmrlhf_jax.finite import is_finite


class MetaSet(NamedTuple):
    """A set of the file, with the paths of its rows and images; `weight` is how often an epoch contains it."""

    rows: str
    images: str
    weight: float


def read_meta(path: epath.Path) -> list[MetaSet] | None:
    """The sets that a JSON file lists, in its order; None if the file is no such list.

    The authors' paths are relative to the trainer's working directory. Here they are looked up beside the file, with and
    without their first folder. UserError for a set that lacks a field, or whose rows do not exist.
    """
    if not path.name.lower().endswith(".json"):
        return None
    with hub_errors(path):
        if not path.exists() or path.is_dir():
            return None
        with path.open("rb") as file:
            if not file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                return None
        try:
            sets = strict_json.loads(read_bytes(path))
        except (ValueError, RecursionError):
            return None  # reading it as rows will report the error
    if not isinstance(sets, dict) or not any(isinstance(entry, dict) and "annotation" in entry for entry in sets.values()):
        return None
    return [_read_set(name, entry, path) for name, entry in sets.items()]


def _read_set(name: str, entry: Any, path: epath.Path) -> MetaSet:
    where = f"{path}: set {shown(name)}"
    if not isinstance(entry, dict) or not all(isinstance(entry.get(field), str) for field in ("annotation", "root")):
        raise UserError(f"{where}: must have 'annotation' and 'root', both paths, found {shown(entry)}")
    repeat = entry.get("repeat_time", 1)
    if not is_finite(repeat):
        raise UserError(f"{where}: repeat_time must be a finite number, found {shown(repeat)}")
    steps = [epath.Path(entry[field]).parts for field in ("annotation", "root")]
    for cut in (0, 1) if len(steps[0]) > 1 else (0,):
        rows, images = (path.parent.joinpath(*parts[cut:]) for parts in steps)
        if rows.exists() or (rows.parent.parent / f"{rows.parent.name}.zip").exists():
            return MetaSet(str(rows), str(images), repeat)
    raise UserError(f"{where}: its rows {entry['annotation']!r} are not beside the file; fetch them, or correct the path")
