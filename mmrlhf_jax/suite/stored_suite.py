"""suite.json in a run's directory: the benchmarks and dimensions of the run, where they are not those of MM-RLHF."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import pydantic
from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import exists, read_bytes, write_atomically
from mmrlhf_jax.suite.dimensions import Axis, Suite
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.task import Benchmark

FILE, VERSION = "suite.json", 1


@dataclasses.dataclass(frozen=True)
class _Stored:
    """The content of the file: a suite without its headlines, which are functions."""

    __pydantic_config__: ClassVar = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    version: int
    title: str
    dimensions: Mapping[str, str]
    axes: tuple[Axis, ...]
    benchmarks: tuple[Benchmark, ...]


def write_suite(directory: epath.PathLike, suite: Suite) -> None:
    stored = _Stored(VERSION, suite.title, dict(suite.dimensions), suite.axes, suite.benchmarks)
    content = strict_json.dumps(dataclasses.asdict(stored), ensure_ascii=False, indent=1)
    write_atomically(epath.Path(directory) / FILE, content.encode())


def read_suite(directory: epath.PathLike) -> Suite:
    """The suite of a run: what `write_suite` wrote there, or else MM-RLHF's. UserError for a file that is not whole."""
    path = epath.Path(directory) / FILE
    if not exists(path):
        return MM_RLHF
    try:
        content = read_bytes(path)
        strict_json.loads(content)
        stored = pydantic.TypeAdapter(_Stored).validate_json(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key}: {first['msg']}, found {shown(first['input'])}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if stored.version != VERSION:
        raise UserError(f"{path}: version is {stored.version}, and {VERSION} is read here")
    suite = Suite(stored.title, stored.benchmarks, stored.dimensions, stored.axes)
    for row in suite.table.values():
        if row.dimension not in suite.dimensions:
            raise UserError(f"{path}: row {shown(row.name)} is of dimension {shown(row.dimension)}, which there is not")
    return suite
