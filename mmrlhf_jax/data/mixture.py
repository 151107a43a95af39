"""Mixtures of several sets: a list in an experiment's `data.path`, or a YAML file in the format of MM-RLHF's trainer.

    datasets:
      - json_path: short.jsonl          # also: path
        sampling_strategy: random:20%   # all, or first | end | random with a count or a share of the file's rows
      - {path: data/long, weight: 0.5, media_root: images}

`sampling_strategy` selects a fixed subset of the file. `weight` is how often an epoch contains each group: 2 means twice, 0.5
in every other epoch.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from mmrlhf_jax import config, sections
from mmrlhf_jax.data.built_examples import BuiltExamples, is_built
from mmrlhf_jax.data.examples import Example, Layout, SourceExamples
from mmrlhf_jax.data.media import MediaFile
from mmrlhf_jax.data.meta_file import read_meta
from mmrlhf_jax.data.sources import OnError
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import check_place, expand_home, is_remote
from mmrlhf_jax.finite import is_finite
from mmrlhf_jax.records import RankedRecord

# The seed of `sampling_strategy: random` is fixed, because the subset is part of the data and must not depend on a run's seed.
SAMPLING_SEED = 0

_MOST_PASSES = 1_000_000  # largest weight; the smallest is its inverse

_MIXTURE_SUFFIXES = (".yaml", ".yml")


@dataclasses.dataclass(frozen=True)
class Part:
    """One set of a mixture. `media_root` defaults to the mixture's, and that to the folder of the set's file."""

    path: str
    media_root: str | None = None
    weight: float = 1.0
    sampling_strategy: str = "all"

    def __post_init__(self) -> None:
        if not is_finite(self.weight) or not 1 / _MOST_PASSES <= self.weight <= _MOST_PASSES:
            expected = f"weight must be positive, at least 1/{_MOST_PASSES:,} and at most {_MOST_PASSES:,}"
            raise UserError(f"{self.path}: {expected}, found {shown(self.weight)}")


class MixedExamples:
    """The examples of several sets, concatenated. A record whose id occurs before gets `#2` (`#3`, ...) appended to its id.

    `weights`, float64[N], is how often an epoch contains each example.
    """

    def __init__(self, sets: Sequence[Any], weights: Sequence[float], paths: Sequence[str] = ()) -> None:
        """`paths` are the sets' names in `notes`."""
        self.sets, self._set_weights, self.paths = list(sets), [float(weight) for weight in weights], tuple(paths)
        self.weights = np.repeat(np.asarray(weights, np.float64), [len(examples) for examples in sets])
        self._starts = np.cumsum([0] + [len(examples) for examples in sets])
        self.records = _with_own_ids([record for examples in sets for record in examples.records])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        examples, own = self._locate(index)
        return dataclasses.replace(examples[own], record=self.records[index])

    def layout(self, index: int) -> Layout:
        examples, own = self._locate(index)
        return examples.layout(own)

    def media_files(self, index: int) -> list[MediaFile]:
        examples, own = self._locate(index)
        return examples.media_files(own)

    def frames_files(self, index: int) -> list[MediaFile]:
        examples, own = self._locate(index)
        return examples.frames_files(own)

    def digest(self, index: int, example: Example | None = None) -> bytes:
        examples, own = self._locate(index)
        return examples.digest(own, example)

    def media_content(self, index: int) -> str | None:
        examples, own = self._locate(index)
        return examples.media_content(own)

    def where(self, index: int) -> str:
        examples, own = self._locate(index)
        return examples.where(own)

    def part(self, numbers: Iterable[int]) -> MixedExamples:
        """The examples with these (ascending) indices, with their ids in this mixture."""
        numbers = np.asarray(list(numbers))
        owner = np.searchsorted(self._starts, numbers, side="right") - 1
        sets = [self.sets[s].part((numbers[owner == s] - self._starts[s]).tolist()) for s in np.unique(owner)]
        part = MixedExamples(sets, [self._set_weights[s] for s in np.unique(owner)])
        part.records = [self.records[i] for i in numbers]
        return part

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the sets (see `sources.Source`), and notes on repeated ids and sets that are listed twice."""
        own = [record.id for examples in self.sets for record in examples.records]
        renamed = [was for was, record in zip(own, self.records, strict=False) if was != record.id]
        notes = [note for examples in self.sets for note in getattr(examples, "notes", ())]
        if renamed:
            more = f"{len(renamed)} of {len(self)} records have the id of an earlier one (the first is {shown(renamed[0])})"
            notes.append(f"{', '.join(map(str, self.paths))}: {more}, and get #2 (#3, ...) added")
        notes += [f"{path} is listed {n} times" for path, n in collections.Counter(self.paths).items() if n > 1]
        return tuple(notes)

    @property
    def video_frames(self) -> int:
        return self.sets[0].video_frames  # the same for all sets (`open_examples`)

    @property
    def video_fps(self) -> float | None:
        return self.sets[0].video_fps

    @property
    def frames_per_second(self) -> float | None:
        return self.sets[0].frames_per_second

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the sets' contents, in order, and of their weights."""
        parts = [f"{examples.fingerprint} {weight}" for examples, weight in zip(self.sets, self._set_weights, strict=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _locate(self, index: int) -> tuple[Any, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sets[number], index - int(self._starts[number])


def open_examples(
    path: str | epath.Path | Sequence[str | Part],
    media_root: str | epath.Path | None = None,
    video_frames: int = 32,
    on_error: OnError | None = None,
    rank_by: str | None = None,
    prompts: bool = False,
    video_fps: float | None = None,
    frames_per_second: float | None = None,
) -> SourceExamples | BuiltExamples | Subset | MixedExamples:
    """Open a built directory, a source (a file, a folder of files, a pattern), a mixture file, or a list of these.

    `frames_per_second` is the rate of frames whose folder does not tell it. The other arguments are of source files only. With
    `prompts`, records may lack responses (`read_source`).
    """
    parts = find_parts(path)
    if len(parts) == 1 and parts[0].weight == 1:
        return _open(parts[0], media_root, video_frames, on_error, rank_by, prompts, video_fps, frames_per_second)
    sets = [_open(part, media_root, video_frames, on_error, rank_by, prompts, video_fps, frames_per_second) for part in parts]
    return MixedExamples(sets, [part.weight for part in parts], [_same(part.path) for part in parts])


def _same(path: str) -> str:
    """The normalised path, so that a set that is listed twice is recognised."""
    return path if is_remote(path) else os.path.normpath(path)


def sets(path: str | tuple[str | config.DataSet, ...]) -> str | list[str | Part]:
    """`data.path` of a configuration in the form that `open_examples` takes."""
    if isinstance(path, str):
        return path
    return [part if isinstance(part, str) else Part(**part.model_dump()) for part in path]


def find_parts(path: str | epath.Path | Sequence[str | Part]) -> list[Part]:
    """The sets named by a path, a list of paths, a mixture file, or a brace pattern such as `folder/{a,b}.json`."""
    if isinstance(path, Sequence) and not isinstance(path, str):
        if not path:
            raise UserError("data.path: the list of sets is empty")
        named = [part if isinstance(part, Part) else Part(part) for part in path]
        return [inner for part in named for inner in _expand(part)]
    return _expand(Part(str(path)))


def choose_rows(strategy: str, rows: Sequence[int], where: str) -> list[int]:
    """The indices of the records that a `sampling_strategy` keeps, ascending.

    `rows[i]` is the number of rows of its file that record i was made from. Counts and shares refer to rows, as in MM-RLHF's
    `train_dpo.py`, but groups are not split: the last chosen one is kept whole. Raises UserError for an unknown strategy.
    """
    found = re.fullmatch(r"(first|end|random):([0-9]{1,15})(%?)", strategy)
    if strategy == "all":
        return list(range(len(rows)))
    if found is None:
        expected = "all, or first, end or random as in random:1000 or first:20%"
        raise UserError(f"{where}: sampling_strategy must be {expected}, found {shown(strategy)}")
    kind, number, percent = found[1], int(found[2]), found[3]
    if percent and number > 100:
        raise UserError(f"{where}: sampling_strategy {strategy} is more than the whole set; set weight to see it more often")
    wanted = math.ceil(number * sum(rows) / 100) if percent else number
    order = np.arange(len(rows))
    if kind == "end":
        order = order[::-1]
    elif kind == "random":
        order = np.random.default_rng(SAMPLING_SEED).permutation(order)
    before = np.concatenate([[0], np.cumsum(np.asarray(rows)[order])[:-1]])
    return sorted(order[before < wanted].tolist())


def _expand(part: Part) -> list[Part]:
    """The sets of a mixture file or a brace pattern; for any other part, the part itself."""
    path = epath.Path(part.path)
    if path.name.endswith(_MIXTURE_SUFFIXES):
        return [_inside(part, inner) for inner in _read_mixture(path)]
    if (sets := read_meta(path)) is not None:
        return [_inside(part, Part(one.rows, one.images, one.weight)) for one in sets]
    braces = re.fullmatch(r"(.*)\{(.*)\}(.*)", part.path)
    if braces and not path.exists():
        return [dataclasses.replace(part, path=f"{braces[1]}{name.strip()}{braces[3]}") for name in braces[2].split(",")]
    return [part]


def _inside(outer: Part, inner: Part) -> Part:
    if outer.sampling_strategy != "all":
        raise UserError(f"{outer.path}: give sampling_strategy inside the mixture file")
    return dataclasses.replace(inner, media_root=inner.media_root or outer.media_root, weight=inner.weight * outer.weight)


def _read_mixture(path: epath.Path) -> list[Part]:
    raw = sections.read_value(path)
    entries = raw.get("datasets") if isinstance(raw, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: a mixture file is a list `datasets:` of `json_path` and `sampling_strategy`")
    if unknown := [name for name in raw if name != "datasets"]:
        others = "media_root, weight and sampling_strategy are of each entry of `datasets:`"
        raise UserError(f"{path}: unknown key {shown(unknown[0])}; {others}")
    parts = [_read_part(entry, path, f"{path}: datasets[{number}]") for number, entry in enumerate(entries)]
    if nested := [part.path for part in parts if part.path.endswith(_MIXTURE_SUFFIXES)]:
        raise UserError(f"{path}: names another mixture file, {nested[0]}; list its sets here")
    return [inner for part in parts for inner in _expand(part)]


def _read_part(entry: Any, path: epath.Path, where: str) -> Part:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected keys and values, found {shown(entry)}")
    if {"json_path", "path"} <= entry.keys():
        raise UserError(f"{where}: has json_path and path, which mean the same; give one of them")
    entry = {("path" if name == "json_path" else name): value for name, value in entry.items()}
    known = [field.name for field in dataclasses.fields(Part)]
    if unknown := sorted(set(map(str, entry)) - set(known)):
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known are json_path, {', '.join(known)}")
    if not isinstance(entry.get("path"), str):
        raise UserError(f"{where}: json_path must be a path, found {shown(entry.get('path'))}")
    weight = entry.get("weight", 1.0)
    if not is_finite(weight) or weight <= 0:
        raise UserError(f"{where}: weight must be a positive number, found {shown(weight)}")
    for name in ("media_root", "sampling_strategy"):
        if not isinstance(entry.get(name, ""), str):
            raise UserError(f"{where}: {name} must be text, found {shown(entry[name])}")
    # Paths in the file are relative to it; absolute ones are unchanged.
    entry |= {name: _beside(path, entry[name]) for name in ("path", "media_root") if entry.get(name)}
    return Part(**entry)


def _beside(path: epath.Path, named: str) -> str:
    named = expand_home(named)
    return check_place(named) if is_remote(named) else str(path.parent / check_place(named))


def _open(
    part: Part,
    media_root: str | epath.Path | None,
    video_frames: int,
    on_error: OnError | None,
    rank_by: str | None,
    prompts: bool,
    video_fps: float | None,
    frames_per_second: float | None,
) -> Any:
    path = epath.Path(part.path)
    if is_built(path):
        if video_fps is not None:
            raise UserError(
                f"{part.path}: data.video_fps (--video-fps) is for sources, and the frames of this data set were sampled when"
                " it was built; leave it out, or build the set again with it"
            )
        examples: SourceExamples | BuiltExamples = BuiltExamples(path, frames_per_second)
    else:
        examples = SourceExamples(
            path, part.media_root or media_root, video_frames, on_error, rank_by, prompts, video_fps, frames_per_second
        )
    if part.sampling_strategy == "all":
        return examples
    is_source = isinstance(examples, SourceExamples)
    chosen = choose_rows(part.sampling_strategy, examples.rows if is_source else [1] * len(examples), part.path)
    if not chosen:
        raise UserError(f"{part.path}: sampling_strategy {part.sampling_strategy} leaves nothing")
    return examples.part(chosen) if is_source else Subset(examples, chosen)


def _with_own_ids(records: list[RankedRecord]) -> list[RankedRecord]:
    taken: set[str] = set()
    named = []
    for record in records:
        free, number = record.id, 1
        while free in taken:
            number += 1
            free = f"{record.id}#{number}"
        taken.add(free)
        named.append(record if free == record.id else dataclasses.replace(record, id=free))
    return named
