"""Whether a user's own files of documents can be used, as far as columns, first documents and folders of media show.

That takes no time, so that it is said before anything is answered. Every other document is looked at when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite import rows
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.own.registry import grader_of
from mmrlhf_jax.suite.task import Task


def problems(tasks: Sequence[Task], local: Mapping[str, Local]) -> Iterator[tuple[str, str]]:
    """Yield (name of a task, why its files cannot be used as they are), in one line that names the option."""
    for task in tasks:
        if task.name in local:
            try:
                _check(task, local[task.name])
            except UserError as error:
                yield task.name, f"--data {task.name}: {error}"


def _check(task: Task, local: Local) -> None:
    """UserError for what is wrong."""
    for path in local.files:
        if path.suffix == ".parquet":
            _check_parquet(path, task)
        else:
            _check_lines(path, task)
    for pattern in task.data.files:
        folder = Path(local.folder) / pattern.split("{")[0]
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; it must hold {pattern.rpartition('/')[2]} of every document")


def _check_lines(path: Path, task: Task) -> None:
    for number, row in rows.json_lines(path):
        where = f"{path}: line {number}"
        _check_values(task, row, task.columns, where)
        for name in _pictures(task):
            _, reason = rows.picture(row.get(name), path, f"{where}: {name!r}")
            if reason is not None and not (row.get(name) is None and task.columns[name].endswith("or null")):
                raise UserError(f"{where}: {name!r}: {reason}")
        return


def _check_parquet(path: Path, task: Task) -> None:
    """The pictures of parquet files are large, and are not looked at. Nothing is without the library that reads the files."""
    try:
        import pyarrow.parquet
    except ImportError:
        return
    with pyarrow.parquet.ParquetFile(path) as file:
        there = file.schema_arrow.names
        rows.check_names(path, there, task.columns if not task.own_metrics else {name: "image" for name in _pictures(task)})
        columns = rows.checked(task.columns, described=rows.DESCRIBED in (file.schema_arrow.metadata or {}))
        read = [name for name in there if name not in _pictures(task)]
        for batch in file.iter_batches(1, columns=read):
            _check_values(task, batch.to_pylist()[0], columns, f"{path}: document 0")
            return


def _check_values(task: Task, row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    if task.own_metrics:
        grader_of(task.name, "corrected").check(row, where)
    else:
        rows.check(row, columns, where)


def _pictures(task: Task) -> list[str]:
    """The columns that hold pictures."""
    return [name for name, holds in task.columns.items() if holds in rows.PICTURES]
