"""The directory of a model's run: run.json says what its answers were made with, and by whom they are judged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import entries, exists, read_json_object, write_atomically
from mmrlhf_jax.inference.jobs import ALONE, LATE_SECONDS, POLL_SECONDS, Share

VERSION = 1
FILE = "run.json"
NO_JUDGE = "none"


def settle(directory: epath.PathLike, model: str, settings: Mapping[str, Any], share: Share = ALONE) -> None:
    """Begin a run with these settings, or go on with it. Of several processes the first one begins.

    UserError, which names the setting, if the run was begun with other ones, or if the folder holds something else.
    """
    directory = epath.Path(directory)
    path, given_up = directory / FILE, time.monotonic() + LATE_SECONDS
    while share.process and not exists(path) and time.monotonic() < given_up:
        time.sleep(POLL_SECONDS)
    settings = strict_json.loads(strict_json.dumps(settings))
    if not exists(path):
        if exists(directory) and any(not each.name.startswith(".") for each in entries(directory)):
            raise UserError(f"{directory}: holds something else than a run of benchmarks; choose another --out")
        _write(path, {"version": VERSION, "model": model, "settings": settings, "judge": None})
    before = read(directory)["settings"]
    for name in sorted(before.keys() | settings.keys()):
        if before.get(name) != settings.get(name):
            raise UserError(
                f"{directory}: was begun with {name} {shown(before.get(name))}, not {shown(settings.get(name))}; go on with the"
                " same settings, or choose another --out"
            )


def settle_judge(directory: epath.PathLike, name: str, **others: Any) -> None:
    """Note who judges. `others` are further keys of run.json about judges; None: nothing to note.

    UserError if the run has another judge already: figures of two are not one table.
    """
    path, found = epath.Path(directory) / FILE, read(directory)
    noted = {key: value for key, value in {"judge": None if name == NO_JUDGE else name, **others}.items() if value is not None}
    for key, value in noted.items():
        if found.get(key) not in (None, value):
            what = "is judged by" if key == "judge" else f"was begun with {key}"
            raise UserError(f"{directory}: {what} {shown(found[key])}, not {shown(value)}; choose another --out")
    if found != found | noted:
        _write(path, found | noted)


def read(directory: epath.PathLike) -> dict[str, Any]:
    """The content of run.json. UserError if there is none, or one of another version."""
    path = epath.Path(directory) / FILE
    if not exists(path):
        raise UserError(f"{directory}: has no {FILE}; `mmrlhf eval benchmarks --out {directory}` makes such a directory")
    found = read_json_object(path)
    if found.get("version") != VERSION or not isinstance(found.get("settings"), dict) or "judge" not in found:
        raise UserError(f"{path}: has version {shown(found.get('version'))} of runs, not {VERSION}; choose another --out")
    return found


def _write(path: epath.Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, strict_json.dumps(content, where=f"{path}", ensure_ascii=False, indent=1).encode())
