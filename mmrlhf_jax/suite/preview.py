"""What a run needs, said before it begins: downloads, local data, judges."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.task import Task


def lines(tasks: Sequence[Task], local: Mapping[str, Local], judge: str | None) -> list[str]:
    """What is local, what must be downloaded, and what needs a judge. `judge` says who judges; None: nobody."""
    own = [task for task in tasks if task.name in local]
    cached = [task for task in tasks if task.name not in local and is_cached(task)]
    missing = [task for task in tasks if task not in own and task not in cached]
    documents = sum((local[task.name].documents if task in own else task.data.documents) or 0 for task in tasks)
    found = [f"{len(tasks)} tasks with about {documents:,} documents"]
    found += [f"  local data (--data): {_names(own)}"] if own else []
    found += [f"  in the hub's cache: {_names(cached)}"] if cached else []
    found += [f"  to be downloaded: {_downloads(missing)}"] if missing else []
    for kind, what in (("always", "need a judge"), ("unparsable", "need a judge for answers that no rule can read")):
        judged = [task for task in tasks if task.judge == kind]
        who = "there is none (--judge): their answers are kept, and can be judged later" if judge is None else judge
        found += [f"  {what}: {_names(judged)}; {who}"] if judged else []
    return found


def is_cached(task: Task) -> bool:
    """Whether the hub's cache has a task's data set, and its videos are unpacked, as far as folders show that."""
    home = Path(os.path.expanduser(os.environ.get("HF_HOME") or "~/.cache/huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    folders = [hub / f"datasets--{task.data.hub.replace('/', '--')}" / "snapshots"]
    folders += [home / file.split("/")[0] for file in task.data.files]
    return all(folder.is_dir() and any(folder.iterdir()) for folder in folders)


def _downloads(tasks: Sequence[Task]) -> str:
    """The data sets of tasks with their sizes, and their sum."""
    sizes: dict[str, int | None] = {}
    for task in tasks:
        name = f"{task.data.hub}{f' ({task.data.config})' if task.data.config else ''}"
        sizes[name] = max(filter(None, (sizes.get(name), task.data.size)), default=None)
    known = sum(size for size in sizes.values() if size)
    unknown = sum(size is None for size in sizes.values())
    total = f"{size_of(known)} in all" + (f", and {unknown} data sets of unknown size" if unknown else "")
    return f"{', '.join(f'{name} {size_of(size)}' if size else name for name, size in sizes.items())}: {total}"


def size_of(count: int) -> str:
    """A number of bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _names(tasks: Sequence[Task]) -> str:
    return ", ".join(task.name for task in tasks)
