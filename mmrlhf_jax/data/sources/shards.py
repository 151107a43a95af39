"""Finds the files of a source: one file, all of a folder, or those that match a pattern such as `data/train-*.parquet`.

Several files are read as one source, sorted by name with numbers by value (`part-2` before `part-10`), so that the order is the
same on all machines.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Iterator

from etils import epath

from mmrlhf_jax.data.archives import ArchivedFile, find_archived
from mmrlhf_jax.data.hub import check_repository, hub_errors
from mmrlhf_jax.data.names import in_order
from mmrlhf_jax.data.sources.rows import SUFFIXES, row_suffix
from mmrlhf_jax.errors import UserError

# Files that `datasets` writes beside the rows.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
# How `datasets` names the files of a split: train-00000-of-00008.parquet, in older sets train-00000-of-00008-6f3b.parquet
_OF_A_SPLIT = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})([-.].+)")
# Words in file names -> split, as in `datasets`.
_SPLITS = {"train": "train", "training": "train"}
_SPLITS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_SPLITS |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclasses.dataclass(frozen=True)
class SourceFiles:
    """The files of a source, in order, and the folder that contains them."""

    folder: epath.Path
    files: tuple[epath.Path | ArchivedFile, ...]

    def name(self, file: epath.Path | ArchivedFile) -> str:
        """A file's path relative to the folder."""
        if isinstance(file, ArchivedFile):
            return file.name
        return str(file.relative_to(self.folder))


def find_files(source: str | epath.Path) -> SourceFiles:
    """The files of `source`. A name that exists is taken literally, even if it has characters of a pattern.

    Raises UserError for files that do not exist, for a folder without rows, with several kinds of files, several splits, or an
    incomplete split, and for a hub repository that is not available. Hidden files (`.name`) are ignored.
    """
    source = str(source)
    path = epath.Path(source)
    check_repository(source)
    with hub_errors(source):
        if path.is_dir():
            return _of_folder(path)
        if path.exists():
            return SourceFiles(path.parent, (path,))
        if archived := _archived(path):
            return SourceFiles(path.parent, (archived,))
        if _HUB_ID.fullmatch(source) and row_suffix(path) is None:
            raise UserError(f"{source}: no such file; a data set on the hub is named hf://datasets/{source}")
        if not is_pattern(source):
            return SourceFiles(path.parent, (path,))
        folder, steps = _split_pattern(path)
        found = _in_order(_fitting(folder, steps))
    if not found:
        raise UserError(f"{source}: no file is named like that")
    _check_are_alike(source, found, "write a pattern that fits only those that are meant")
    _check_are_whole(source, found, steps[-1])
    return SourceFiles(folder, tuple(found))


def _archived(path: epath.Path) -> ArchivedFile | None:
    """The file inside an archive, as in MMPR: annotations/x.jsonl in annotations.zip. None if there is none."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return find_archived(folder, str(path.relative_to(folder)))


def is_pattern(source: str) -> bool:
    return re.search(r"[*?\[]", source.rpartition("://")[2]) is not None


def _of_folder(folder: epath.Path) -> SourceFiles:
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    found = _in_order(file for file in entries if row_suffix(file) and file.name not in _DESCRIPTIONS)
    if not found and any(file.name.endswith(".arrow") for file in entries):
        raise UserError(f"{folder}: holds Arrow files of `save_to_disk`; write the set with `to_parquet` and name that")
    if not found and (folder / "data").is_dir():  # the usual place in data sets on the hub
        return _of_folder(folder / "data")
    if not found:
        raise UserError(
            f"{folder}: holds no rows ({', '.join(SUFFIXES)}), and is not a built data set; make one with"
            " `mmrlhf data build SRC OUT`"
        )
    _check_are_alike(str(folder), found, "name those that are meant, as in FOLDER/train-*.parquet")
    _check_are_whole(str(folder), found, "*")
    return SourceFiles(folder, tuple(found))


def _check_are_alike(source: str, files: list[epath.Path], advice: str) -> None:
    kinds = {file: row_suffix(file) for file in files}
    if strange := [file.name for file, kind in kinds.items() if kind is None]:
        raise UserError(f"{source}: {strange[0]} is of an unknown kind; expected {', '.join(SUFFIXES)}; {advice}")
    if len(set(kinds.values())) > 1:
        raise UserError(f"{source}: holds rows of several kinds, {_listed(files)}; {advice}")
    splits = set().union(*(_splits_of(file.name) for file in files))
    if len(splits) > 1:
        raise UserError(f"{source}: holds the splits {', '.join(sorted(splits))}; {advice}")


def _splits_of(name: str) -> set[str]:
    """The split in a file's name; several or none if the name is ambiguous."""
    if fits := _OF_A_SPLIT.fullmatch(name):
        return {fits[1]}
    return {_SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in _SPLITS}


def _check_are_whole(source: str, files: list[epath.Path], pattern: str) -> None:
    """UserError if files of a split are missing that would match the pattern. (A narrower pattern selects only some on
    purpose.)"""
    groups: dict[tuple[epath.Path, str, int], dict[int, str]] = {}
    for file in files:
        if fits := _OF_A_SPLIT.fullmatch(file.name):
            groups.setdefault((file.parent, fits[1], int(fits[3])), {})[int(fits[2])] = fits[4]
    for (_, split, count), found in groups.items():
        rest = next(iter(found.values()))
        names = [f"{split}-{number:05}-of-{count:05}{rest}" for number in range(count) if number not in found]
        if missing := [name for name in names if fnmatch.fnmatchcase(name, pattern)]:
            there = f"{len(found)} of the {count} files of {split}"
            raise UserError(f"{source}: holds {there}, {missing[0]} is missing; fetch it, or name those that are meant")


def _in_order(files: Iterable[epath.Path]) -> list[epath.Path]:
    paths = {str(file): file for file in files}
    return [paths[name] for name in in_order(paths)]


def _listed(files: list[epath.Path]) -> str:
    names = [file.name for file in files]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _split_pattern(path: epath.Path) -> tuple[epath.Path, list[str]]:
    """(the folder before the first component with a pattern, the components from there)."""
    steps = [path.name]
    folder = path.parent
    while is_pattern(str(folder)) and not folder.is_dir():
        steps.insert(0, folder.name)
        folder = folder.parent
    if any("**" in step for step in steps):
        raise UserError(f"{path}: '**' is not understood; write the folders, as in data/*/train.jsonl")
    return folder, steps


def _fitting(folder: epath.Path, steps: list[str]) -> Iterator[epath.Path]:
    if not folder.is_dir():
        return
    first, *rest = steps
    for entry in folder.iterdir():
        is_hidden = entry.name.startswith(".") and not first.startswith(".")
        if entry.name == first or (fnmatch.fnmatchcase(entry.name, first) and not is_hidden):
            if rest:
                yield from _fitting(entry, rest)
            elif not entry.is_dir():
                yield entry
