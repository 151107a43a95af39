"""A launch file: on which devices an experiment runs, and by how many processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pydantic
from etils import epath
from pydantic import Field

from mmrlhf_jax import sections
from mmrlhf_jax.config.values import Count
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.mesh_axes import MESH_AXES, check_axes, sizes_over
from mmrlhf_jax.sections import Integer, Section


class Mesh(Section):
    """Sizes of the mesh axes; -1 takes the devices that are left.

    `slices` are the factors of the axes that run between slices (or GPU hosts), over the network.
    """

    data: Integer = 1
    fsdp: Integer = -1
    tensor: Integer = 1
    context: Integer = 1
    slices: dict[Literal["data", "fsdp", "tensor", "context"], Count] = Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _sizes(self):
        try:
            check_axes(self.axes, self.slices)
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def axes(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in MESH_AXES}


class Distributed(Section):
    """Several processes as one program. Seconds: for all to come, from a host's last sign of life to the others' end, and
    without any progress (compiling apart) until the run is said to hang and ended."""

    initialization_timeout: Count = 300
    heartbeat_timeout: Count = 40
    hang_timeout: Count = 1800


class Launch(Section):
    """On what an experiment runs. `accelerator` is one slice or GPU host (`accelerators`), of which the mesh has
    as many as `mesh.slices` say; None is whatever devices are here.

    `rows_per_device`: how many rows a batch shard takes at once, so that a step fits into memory; None is all that it gets. A
    batch shard is one device, or the `mesh.tensor` x `mesh.context` devices that share its rows. An experiment's
    `batch.accumulation` overrules it.

    `environment` is set before JAX starts, where it is not set already; `clear` names variables of earlier jobs to remove.
    """

    accelerator: str | None = None
    mesh: Mesh = Mesh()
    rows_per_device: Count | None = None
    distributed: Distributed | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    clear: tuple[str, ...] = ()

    @pydantic.field_validator("accelerator")
    @classmethod
    def _exists(cls, name: str | None) -> str | None:
        from mmrlhf_jax.accelerators import accelerator

        try:
            return name if name is None else accelerator(name).name
        except UserError as error:
            raise ValueError(str(error)) from None

    @pydantic.field_validator("environment")
    @classmethod
    def _variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(
                    f"{shown(name)} = {shown(value)} is no variable: no name is empty or has =, and nothing has NUL"
                )
        return environment

    @pydantic.model_validator(mode="after")
    def _covers(self):
        try:
            self.axes()
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def slices(self) -> int:
        return math.prod(self.mesh.slices.values())

    def axes(self) -> dict[str, int] | None:
        """The size of every axis over the accelerator's devices, None where it names none. UserError where they differ."""
        from mmrlhf_jax.accelerators import accelerator

        if self.accelerator is None:
            return None
        chips = accelerator(self.accelerator).chips
        where = f"in {self.slices} x {self.accelerator}" if self.slices > 1 else f"in {self.accelerator}"
        return sizes_over(self.mesh.axes, self.mesh.slices, chips * self.slices, where)


def load_launch(path: epath.PathLike | None, overrides: Sequence[str] = ()) -> Launch:
    raw = {} if path is None else sections.read(epath.Path(path))
    return sections.validate(Launch, sections.override(Launch, raw, overrides), "the launch" if path is None else str(path))
