"""A launch file: the devices, mesh and processes that an experiment runs on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pydantic
from etils import epath
from pydantic import Field

from mmrlhf_jax import sections
from mmrlhf_jax.accelerators import accelerator
from mmrlhf_jax.config.values import Count
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.mesh_axes import MESH_AXES, check_axes, sizes_over
from mmrlhf_jax.sections import Section
from mmrlhf_jax.setting_types import Integer


class Mesh(Section):
    """Sizes of the mesh axes; -1 is derived from the number of devices.

    `slices` gives for each axis the factor that runs between slices (or GPU hosts), over the network.
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
    """Time limits of a multi-process run, in seconds: until all processes must have connected; from a process's last heartbeat
    until the others exit; and without progress (compilation does not count) until the run is considered hanging and exits."""

    initialization_timeout: Count = 300
    heartbeat_timeout: Count = 40
    hang_timeout: Count = 1800


class Launch(Section):
    """The launch of an experiment. `accelerator` is a TPU slice or GPU host (`accelerators`), of which the mesh has as many as
    the product of `mesh.slices`; None means the local devices.

    `rows_per_device` is how many rows a batch shard computes at once, so that a step fits in memory; None means all its rows. A
    batch shard is one device, or the `mesh.tensor` x `mesh.context` devices that share its rows. An experiment's
    `batch.accumulation` takes precedence.

    `environment` are variables to set before JAX starts, unless they are already set; `clear` names variables to remove.
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
        """The size of every mesh axis over the accelerator's devices; None without an accelerator. UserError if they do not
        multiply to the number of devices."""
        if self.accelerator is None:
            return None
        chips = accelerator(self.accelerator).chips
        where = f"in {self.slices} x {self.accelerator}" if self.slices > 1 else f"in {self.accelerator}"
        return sizes_over(self.mesh.axes, self.mesh.slices, chips * self.slices, where)


def load_launch(path: epath.PathLike | None, overrides: Sequence[str] = ()) -> Launch:
    raw = {} if path is None else sections.read(epath.Path(path))
    return sections.validate(Launch, sections.override(Launch, raw, overrides), "the launch" if path is None else str(path))
