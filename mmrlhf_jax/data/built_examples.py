"""The examples of a built data set, by index."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.digests import digest
from mmrlhf_jax.data.examples import Example, Layout
from mmrlhf_jax.data.hub import check_repository, hub_errors
from mmrlhf_jax.data.videos import check_rate
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.faults import first_line
from mmrlhf_jax.files import exists, read_bytes
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.records import RankedRecord, record_from_json

DATASET_INFO_FILE = "dataset_info.json"
RECORDS_FILE = "records.jsonl"  # in a built data set: all records without their media, in order
LAYOUTS_FILE = "layouts.jsonl"  # in a built data set: the sizes of their media
_ARRAY_RECORDS = ".array_record"  # part of the names of its shards


class BuiltExamples:
    """The examples of a directory that `data.builder.build` wrote, in the order of its source.

    Files are opened on first use, in each process separately.
    """

    weights = None  # an epoch sees every example once

    def __init__(self, directory: str | epath.Path, frames_per_second: float | None = None) -> None:
        """`frames_per_second` is the rate of the frames of videos that were folders of frames without it."""
        check_rate(frames_per_second, "frames_per_second")
        self.directory, self._rate = epath.Path(directory), frames_per_second
        if not exists(self.directory / DATASET_INFO_FILE):
            raise UserError(f"{self.directory}: not a built data set; make one with `mmrlhf data build SRC OUT`")
        for name in (RECORDS_FILE, LAYOUTS_FILE):
            if not exists(self.directory / name):
                raise UserError(f"{self.directory}: {name} is missing; remove the directory and build it again")
        self._length, self._of_source, self._files = _read_info(self.directory)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        """The example at `index` in [0, len)."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        stored = self._data_source[index]
        record = record_from_json(strict_json.loads(stored["record"]), f"{self.directory}: example {index}")
        frames = tuple(stored["frames"])
        return Example(record, tuple(stored["images"]), frames, self._layouts[index].video if frames else None)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the source's content, and of `frames_per_second` if any frames have their times from it."""
        if self._rate is None or not any(row.get("video") and not row["video"]["rate"] for row in self._rows()):
            return self._of_source
        return hashlib.sha256(f"{self._of_source} at {self._rate!r}".encode()).hexdigest()

    def layout(self, index: int) -> Layout:
        """Sizes of the example's media, as stored by the build; no media are read."""
        return self._layouts[index]

    def media_content(self, index: int) -> str | None:
        """A digest of the files that the example was built from; None if an older build did not store it."""
        return self._layouts[index].content

    def where(self, index: int) -> str:
        """The beginning of an error message about example `index`: path and record."""
        return f"{self.directory}: record {shown(self.records[index].id)}"

    @functools.cached_property
    def _layouts(self) -> list[Layout]:
        return [_layout_from_json(row, self._rate) for row in self._rows()]

    def _rows(self) -> list[dict[str, Any]]:
        return [strict_json.loads(line) for line in self._read(LAYOUTS_FILE).splitlines()]

    @functools.cached_property
    def records(self) -> list[RankedRecord]:
        """All records, read without their media."""
        from mmrlhf_jax.data.sources import ranked, rows

        self._read(RECORDS_FILE)
        return ranked.FORMAT.read(rows.read_rows(self.directory / RECORDS_FILE))

    def _read(self, name: str) -> bytes:
        """The content of a file with one line per example of the shards. UserError if it is not as the build wrote it."""
        content = read_bytes(self.directory / name)
        if content.count(b"\n") != len(self) or self._files.get(name, own := digest(content)) != own:
            raise UserError(
                f"{self.directory / name}: is not as the build wrote it, beside {len(self)} stored examples; change the source"
                " and build it again"
            )
        return content

    @functools.cached_property
    def _data_source(self) -> Any:
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self.directory).as_data_source("train")

    def __getstate__(self) -> dict[str, Any]:
        """The state without open files and without caches, which the other process reads itself."""
        caches = ("_data_source", "_layouts", "records")
        return {name: value for name, value in self.__dict__.items() if name not in caches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def is_built(path: epath.Path) -> bool:
    """Whether a path is a folder that `data.builder.build` wrote or began to write, recognised by its file names."""
    check_repository(path)
    with hub_errors(path):
        return path.is_dir() and any(_ARRAY_RECORDS in file.name or file.name == LAYOUTS_FILE for file in path.iterdir())


def dump_layout(layout: Layout) -> str:
    """A layout as one line of LAYOUTS_FILE. `frames` is there for programs that know no more of a video."""
    row = dataclasses.asdict(layout) | {"frames": layout.frames}
    return strict_json.dumps(row if layout.video else {name: value for name, value in row.items() if name != "video"})


def _layout_from_json(row: dict[str, Any], rate: float | None) -> Layout:
    """The layout of a line of LAYOUTS_FILE; `rate` is that of frames without one. Older builds stored the number of frames
    alone."""
    video = VideoLayout(row["frames"]) if row["frames"] else None
    if stored := row.get("video"):
        size, numbers = (None if value is None else tuple(value) for value in (stored["size"], stored["numbers"]))
        video = VideoLayout(stored["frames"], size, numbers, stored["total"], stored["rate"] or rate)
    return Layout(tuple((h, w) for h, w in row["images"]), video, row.get("content"))


def _read_info(directory: epath.Path) -> tuple[int, str, dict[str, str]]:
    """(number of examples, source fingerprint, digests of the files beside the shards) from the data set's metadata."""
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(directory).info
    except Exception as error:  # TFDS and protobuf raise various types for damaged files and other versions
        raise UserError(f"{directory}: {DATASET_INFO_FILE} cannot be read ({first_line(error)}); build it again") from error
    fingerprint = (info.metadata or {}).get("fingerprint")
    if not isinstance(fingerprint, str) or "train" not in info.splits:
        raise UserError(f"{directory}: a data set of another program; make one with `mmrlhf data build SRC OUT`")
    return info.splits["train"].num_examples, fingerprint, dict(info.metadata.get("files") or {})
