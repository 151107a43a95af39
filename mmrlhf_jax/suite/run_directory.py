"""The directory of a model's run: run.json says what its answers were made with, and by whom they are judged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import entries, exists, is_remote, read_json_object, write_atomically
from mmrlhf_jax.suite.hosts import FOLDER as SHARES

VERSION = 1
FILE = "run.json"
AGAINST = "against"  # in a run's directory: the run of the base


def settle(
    directory: epath.PathLike,
    model: str,
    identity: Mapping[str, Any],
    options: Mapping[str, Any],
    made_with: Mapping[str, Any] | None = None,
) -> None:
    """Begin a run, or go on with it. `model` is the model's name, `identity` tells it from other models, `options` are those
    of all tasks, and `made_with` is what else the answers depend on. Of the last two a key that the run does not have yet is
    added; the identity is there from the beginning.

    UserError if the run is of another model or was begun with other options, or if the folder holds something else.
    """
    directory = epath.Path(directory)
    if not exists(directory / FILE):
        others = [each.name for each in entries(directory) if not each.name.startswith(".")]
        if set(others) - {SHARES, AGAINST}:
            raise UserError(f"{directory}: holds something else than a run of benchmarks; choose another --out")
        begin(directory, model, {**identity, **options})
    _refuse_another_model(directory, model, identity)
    note(directory, model, made_with or {}, options)


def begin(directory: epath.PathLike, model: str, settings: Mapping[str, Any]) -> None:
    """Write the run.json of a new run."""
    _write(epath.Path(directory) / FILE, {"version": VERSION, "model": model, "settings": dict(settings), "judge": None})


def note(directory: epath.PathLike, model: str, made_with: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> None:
    """Add settings to a run that was begun. UserError like `settle`."""
    found, new = read(directory), strict_json.loads(strict_json.dumps({**made_with, **(options or {})}))
    before = found["settings"]
    for name in sorted(before.keys() & new.keys()):
        if before[name] == new[name]:
            continue
        if name in made_with:
            raise _another_model(directory, found, name, model, new[name])
        raise UserError(
            f"{directory}: was begun with {name} {shown(before[name])}, not {shown(new[name])}; go on with the same, or choose"
            " another --out"
        )
    if new.keys() - before.keys():
        _write(epath.Path(directory) / FILE, found | {"settings": before | new})


def _refuse_another_model(directory: epath.Path, model: str, identity: Mapping[str, Any]) -> None:
    """UserError if a run that was begun is not of this model. A model of a server and one of a directory have not a single key
    in common, so that a key which the run does not have tells them apart as well."""
    found, new = read(directory), strict_json.loads(strict_json.dumps(identity))
    for name in sorted(new):
        if name not in found["settings"]:
            raise UserError(
                f"{directory}: is a run of {found['model']}, for which {FILE} has no {name}, so that {model} is another model"
                " or is found in another way (a directory, a server); choose another --out"
            )
        if found["settings"][name] != new[name]:
            raise _another_model(directory, found, name, model, new[name])


def _another_model(directory: epath.PathLike, found: Mapping[str, Any], name: str, model: str, value: Any) -> UserError:
    if name == "model":  # that of a server is known by its name alone
        return UserError(f"{directory}: holds a run of {found['settings'][name]}, not of {value}; choose another --out")
    return UserError(
        f"{directory}: is a run of {found['model']} with {name} {shown(found['settings'][name])}, and that of {model} is"
        f" {shown(value)}; choose another --out"
    )


def settle_judges(directory: epath.PathLike, judges: Mapping[str, Any]) -> None:
    """Note who judges: keys of run.json, of which those are noted that are not None.

    UserError if the run has another judge already: figures of two are not one table.
    """
    found, noted = read(directory), {key: value for key, value in judges.items() if value is not None}
    for key, value in noted.items():
        if found.get(key) not in (None, value):
            what = "is judged by" if key == "judge" else f"was begun with {key}"
            raise UserError(f"{directory}: {what} {shown(found[key])}, not {shown(value)}; choose another --out")
    if found != found | noted:
        _write(epath.Path(directory) / FILE, found | noted)


def settle_base(directory: epath.PathLike, base: epath.PathLike | None) -> epath.Path | None:
    """Note the directory of the base's run, or find the one that was noted by an earlier run; None if there is none."""
    directory, found = epath.Path(directory), read(directory)
    if base is None:
        noted = found.get("against")
        return directory / noted if isinstance(noted, str) else None
    base = epath.Path(base)
    noted = AGAINST if base == directory / AGAINST else os.fspath(base) if is_remote(base) else os.path.abspath(base)
    if found.get("against") != noted:
        _write(directory / FILE, found | {"against": noted})
    return base


def read(directory: epath.PathLike) -> dict[str, Any]:
    """The content of run.json. UserError if there is none, or one of another version."""
    path = epath.Path(directory) / FILE
    if not exists(path):
        raise UserError(f"{directory}: has no {FILE}; `mmrlhf eval benchmarks --out {directory}` makes such a directory")
    found = read_json_object(path)
    if found.get("version") != VERSION or not isinstance(found.get("settings"), dict) or "judge" not in found:
        raise UserError(f"{path}: has version {shown(found.get('version'))} of runs, not {VERSION}")
    return found


def _write(path: epath.Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, strict_json.dumps(content, where=f"{path}", ensure_ascii=False, indent=1).encode())
