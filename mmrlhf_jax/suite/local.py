"""A user's own documents of a task, instead of those of the hub: `--data TASK=FILE`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line
from mmrlhf_jax.suite import catalogue

SUFFIXES = (".parquet", ".jsonl")


@dataclasses.dataclass(frozen=True)
class Local:
    """A file of documents, or a folder of such files. Videos lie beside it, as they lie in HF_HOME."""

    path: str

    @property
    def folder(self) -> str:
        path = os.path.abspath(self.path)
        return path if os.path.isdir(path) else os.path.dirname(path)

    @property
    def files(self) -> list[Path]:
        """Its files, sorted. UserError if there are none."""
        path = Path(self.path)
        if path.is_dir():
            found = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES)
            if not found:
                raise UserError(f"{path}: the folder has no files {' or '.join(SUFFIXES)}")
            return found
        if not path.exists():
            raise UserError(f"{path}: there is no such file")
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path}: is neither {' nor '.join(SUFFIXES)}")
        return [path]

    @functools.cached_property
    def documents(self) -> int | None:
        """How many documents there are; None if that is not known without the library that reads them."""
        found = 0
        for path in self.files:
            if path.suffix == ".jsonl":
                found += sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
                continue
            try:
                import pyarrow.parquet
            except ImportError:
                return None
            try:
                found += pyarrow.parquet.read_metadata(path).num_rows
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(f"{path}: is not a parquet file that can be read ({first_line(error)})") from None
        return found

    @property
    def fingerprint(self) -> str:
        """A digest of names, sizes and times of its files."""
        stated = [(each.name, (stat := each.stat()).st_size, stat.st_mtime_ns) for each in self.files]
        return hashlib.sha256(repr(stated).encode()).hexdigest()[:16]


def parse(values: Iterable[str]) -> Mapping[str, Local]:
    """Task -> its own documents, of values TASK=FILE; a benchmark's name stands for its tasks. UserError for what is neither,
    and for files that are not there."""
    found: dict[str, Local] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (equals and name and path):
            raise UserError(f"--data {value}: expected TASK=FILE, with a task of `mmrlhf eval benchmarks --list`")
        tasks, local = catalogue.find(name), Local(os.path.expanduser(path))
        _ = local.files
        for task in tasks:
            if found.setdefault(task.name, local) != local:
                raise UserError(f"--data: {task.name} has two files, {found[task.name].path} and {path}")
    return found
