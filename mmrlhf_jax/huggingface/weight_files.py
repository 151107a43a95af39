"""Which files of a model directory its tensors are read from. No jax here, and no file is opened but the index.

If there is an index, it decides; otherwise the single file is read, or else a complete set of numbered shards. Other weight
files in the directory (a leftover single file, shards of an earlier export, consolidated copies) are not the model; a message
says that they are ignored.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")
NAMED = 3  # files or tensors that a message names; the others are counted


@dataclass
class WeightFiles:
    """`files` hold the model; `places` maps every tensor to the file that it is read from; None: all tensors of all files are
    read."""

    directory: Path
    files: list[Path]
    places: Mapping[str, str] | None = None
    _elsewhere: dict[str, int] = field(default_factory=dict)  # file -> how many of its tensors are not read from it

    def names(self, path: Path, stored: Iterable[str]) -> list[str]:
        """Those of the `stored` tensors of a file that are read from it. UserError if the index names others."""
        stored = list(stored)
        if self.places is None:
            return stored
        wanted = [name for name, filename in self.places.items() if self.directory / filename == path]
        lacking = sorted({*wanted} - {*stored})
        if lacking:
            raise UserError(
                f"{path}: {INDEX} says that it holds {some(lacking)}, but it does not; download or export the model again"
            )
        if len(wanted) < len(stored):
            self._elsewhere[self._relative(path)] = len(stored) - len(wanted)
        return wanted

    def chosen(self, stored: Callable[[Path], Iterable[str]]) -> dict[str, str | None]:
        """For each tensor that several files hold, or that the index omits: the file that it is read from, or None.

        `stored` returns the names of a file's tensors. Without an index it is not called, and the result is empty.
        """
        if self.places is None:
            return {}
        counts = Counter(name for path in self.files for name in stored(path))
        return {name: self.places.get(name) for name, count in counts.items() if count > 1 or name not in self.places}

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self.directory)

    def say_ignored(self) -> None:
        """One line, once a process, if there is anything that a reader might take for a part of this model."""
        read = {self._relative(path) for path in self.files}
        others = sorted({path.name for path in self.directory.glob("*.safetensors")} - read)
        ignored = [name for name in others if not name.startswith("adapter_")]
        ignored += [f"{count} tensors of {name}" for name, count in self._elsewhere.items()]
        if ignored:
            taken = INDEX if self.places is not None else some(sorted(read))
            say_once(f"{self.directory}: the weights are those of {taken}; ignored: {some(ignored)} (remove what is stale)")


def find_weight_files(directory: Path) -> WeightFiles:
    """UserError where there are no weights, and where files are missing; both say which files there are."""
    if (directory / INDEX).exists():
        places = _read_index(directory / INDEX)
        filenames = sorted({*places.values()})
        missing = [name for name in filenames if not (directory / name).is_file()]
        if missing:
            counted = f"{len(missing)} of {len(filenames)} weight files are missing, first {missing[0]}"
            raise UserError(f"{directory}: {counted}; download them again")
        return WeightFiles(directory, [directory / name for name in filenames], places)
    if (directory / SINGLE).exists():
        return WeightFiles(directory, [directory / SINGLE])
    shards = _numbered_shards(directory)
    if shards:
        say_once(f"{directory}: no {INDEX}; all tensors of its {len(shards)} numbered shards are read")
        return WeightFiles(directory, shards)
    raise UserError(f"{directory}: no weights ({SINGLE} or {INDEX}){_hint(directory)}")


def _hint(directory: Path) -> str:
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    if others:
        return f"; there is {some(others)}: rename it to {SINGLE}, or fetch the index"
    return "; convert pytorch_model*.bin to safetensors" if list(directory.glob("pytorch_model*.bin")) else ""


def _read_index(path: Path) -> dict[str, str]:
    wrong = UserError(f"{path}: not a safetensors index; download or export the model again")
    try:
        places = strict_json.loads(path.read_text(), object_pairs_hook=_without_repeats)["weight_map"]
    except _Repeated as error:
        raise UserError(f"{path}: {error} is given twice; download or export the model again") from None
    except (ValueError, KeyError, TypeError):
        raise wrong from None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise wrong
    return places


class _Repeated(ValueError):
    pass


def _without_repeats(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if found.get(name, value) != value:
            raise _Repeated(name)
        found[name] = value
    return found


def _numbered_shards(directory: Path) -> list[Path]:
    """All of `model-00001-of-0000N.safetensors` to N of N, where such files lie without an index."""
    matches = [match for path in sorted(directory.glob("*.safetensors")) if (match := SHARD.fullmatch(path.name))]
    if not matches:
        return []
    sets = sorted({f"{match['stem']}-*-of-{match['count']}.safetensors" for match in matches})
    if len(sets) > 1:
        raise UserError(f"{directory}: no {INDEX}, and shards of several sets ({some(sets)}); keep one set, or fetch the index")
    count = int(matches[0]["count"])
    missing = sorted({*range(1, count + 1)} - {int(match["number"]) for match in matches})
    if missing:
        named = some([f"{number:0{len(matches[0]['number'])}d}" for number in missing])
        raise UserError(f"{directory}: no {INDEX}, and of {sets[0]} number {named} is missing; download the model again")
    return [directory / match[0] for match in matches]


@functools.cache
def say_once(message: str) -> None:
    """Print a message once per process, because a directory may be opened several times."""
    say(message)


def some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
