"""What tasks download: data sets of the hub, and archives of videos, each of them once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from mmrlhf_jax.suite.task import Data, Task


@dataclasses.dataclass(frozen=True)
class Download:
    """What is downloaded together.

    Attributes:
        name: in words: the data set, and the config if it has several.
        size: about how many bytes; None where that is not known.
        tasks: those that need it.
    """

    name: str
    size: int | None
    tasks: tuple[Task, ...]


def downloads(tasks: Iterable[Task]) -> list[Download]:
    """The downloads of tasks, in their order.

    Tasks of one config of a data set share it, and tasks whose videos are in one folder of HF_HOME share the archive: the
    harness unpacks it there once, whichever of them comes first.
    """
    together: dict[tuple[str, ...], list[Task]] = {}
    for task in tasks:
        together.setdefault(_key(task.data), []).append(task)
    return [_download(each) for each in together.values()]


def _key(data: Data) -> tuple[str, ...]:
    folder = media_folder(data)
    return ("videos", folder) if folder is not None else (data.hub, data.config or "")


def media_folder(data: Data) -> str | None:
    """The folder in HF_HOME in which a task's videos lie; None for a task without such files."""
    return data.files[0].split("/")[0] if data.files else None


def _download(tasks: list[Task]) -> Download:
    hubs = dict.fromkeys(task.data.hub for task in tasks)
    configs = dict.fromkeys(task.data.config for task in tasks if task.data.config is not None)
    config = f" ({', '.join(configs)})" if configs else ""
    size = max((task.data.size for task in tasks if task.data.size is not None), default=None)
    return Download(f"{' and '.join(hubs)}{config}", size, tuple(tasks))


def size_of(count: int) -> str:
    """A number of bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
