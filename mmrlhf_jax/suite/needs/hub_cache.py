"""What of tasks' data the caches of the Hugging Face hub have, without asking the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mmrlhf_jax.suite.needs.downloads import media_folder
from mmrlhf_jax.suite.own.documents import CONVERTED, pattern_of
from mmrlhf_jax.suite.task import Data, Task

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")  # in the name of a file that is one of several


def has(task: Task) -> bool:
    """Whether a task needs no download: its documents are there, and the folder in which its videos are unpacked."""
    folder = media_folder(task.data)
    if folder is not None and not _holds_something(home() / folder):
        return False
    if task.own_metrics:
        return _is_whole(_snapshot(task.data.hub, CONVERTED), pattern_of(task.data))
    return _is_prepared(task.data) or (not _is_offline() and _has_files(task.data))


def _is_prepared(data: Data) -> bool:
    """Whether the library `datasets` has loaded a config before: then it needs no network."""
    owner, _, name = data.hub.partition("/")
    snake = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    snake = re.sub(r"([a-z\d])([A-Z])", r"\1_\2", snake).lower()
    place = data_sets() / f"{owner}___{snake}"
    return any(_holds_something(folder) for folder in place.glob(f"{data.config or '*'}/*/*") if folder.is_dir())


def _has_files(data: Data) -> bool:
    """Whether the files of a config and split are in the hub's cache. Which files these are is said by their names."""
    snapshot = _snapshot(data.hub, "main")
    of_split = f"**/{data.split}-*.parquet"
    patterns = (of_split, "*.parquet") if data.config is None else (f"**/{data.config}/{of_split}",)
    return any(_is_whole(snapshot, pattern) for pattern in patterns)


def _is_whole(snapshot: Path | None, pattern: str) -> bool:
    """Whether files of this pattern are there, and all parts of what is split into several."""
    found = [] if snapshot is None else [path for path in snapshot.glob(pattern) if path.is_file()]
    shards = [match for path in found if (match := _SHARD.search(path.name))]
    return bool(found) and all(sum(each[2] == one[2] for each in shards) == int(one[2]) for one in shards)


def _snapshot(hub: str, revision: str) -> Path | None:
    """The folder of a revision of a data set in the hub's cache; None if it is not there."""
    repository = repositories() / f"datasets--{hub.replace('/', '--')}"
    reference = repository / "refs" / revision
    return repository / "snapshots" / reference.read_text().strip() if reference.is_file() else None


def home() -> Path:
    """The folder HF_HOME, below which the hub's caches and the videos of tasks are."""
    return _folder("HF_HOME") or (_folder("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"


def repositories() -> Path:
    """The cache of the hub's client."""
    return _folder("HF_HUB_CACHE") or _folder("HUGGINGFACE_HUB_CACHE") or home() / "hub"


def data_sets() -> Path:
    """The cache of the library `datasets`."""
    return _folder("HF_DATASETS_CACHE") or home() / "datasets"


def _folder(variable: str) -> Path | None:
    """The folder that an environment variable names, as the hub's client reads it; None if it names none."""
    found = os.environ.get(variable)
    return Path(os.path.expanduser(os.path.expandvars(found))) if found else None


def _is_offline() -> bool:
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    )


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
