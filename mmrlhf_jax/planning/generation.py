"""The plan of generation: one decoding step of every sequence on the devices of one host, as `inference.Engine` runs it."""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.inference.lane import Lane
from mmrlhf_jax.inference.lanes import make_lane
from mmrlhf_jax.inference.placement import cache_room, generation_mesh
from mmrlhf_jax.inference.programs import Programs
from mmrlhf_jax.inference.unstacked import TwoForms
from mmrlhf_jax.planning.abstract import abstract_model
from mmrlhf_jax.planning.compiled import Compiled
from mmrlhf_jax.planning.lowering import NOTHING, model_sizes
from mmrlhf_jax.planning.topology import chip_of, host_devices

# The sequences that are planned: answers, or critiques, of up to 1,024 tokens behind trunks of up to 4,096, four of each.
TRUNK, BRANCH, WIDTH = 4096, 1024, 4
SLOTS = 32  # sequences of one copy of the model at a time, if the memory has room for them


@dataclasses.dataclass(frozen=True)
class Generation:
    """A compiled decoding step on one of `hosts` hosts, where every copy of the model has a lane."""

    step: Compiled
    mesh: dict[str, int]
    lane: Lane
    hosts: int
    logits: int  # bytes of a step's logits on one device, which are gathered where `tensor` splits them

    @property
    def gathered(self) -> int:
        """Bytes that a device gets for a step beside logits and sums; 0 if it uses its own weights and keys alone."""
        kinds = ("all-gather", "all-to-all", "collective-permute")
        return max(0, sum(each.bytes for each in self.step.collectives if each.kind in kinds) - self.logits)

    @property
    def sequences(self) -> int:
        """Sequences that a host writes at a time."""
        return self.lane.slots * self.mesh["data"]

    @property
    def tokens_per_second(self) -> float | None:
        """A bound for all hosts, without prefilling; None if the step does not fit."""
        return None if self.step.roofline is None else self.hosts * self.sequences / self.step.roofline.step_seconds


def generation_place(experiment: config.Experiment, launch: config.Launch) -> tuple[Mesh, Lane, int]:
    """(mesh of one host, lane, number of hosts), chosen as the engine does for the chip's memory."""
    sizes, _ = model_sizes(experiment)
    devices, hosts = host_devices(launch)
    dtype, memory = experiment.model.dtype, chip_of(launch).hbm_bytes
    mesh = generation_mesh(sizes, dtype, devices, memory)
    room, slots = cache_room(sizes, dtype, mesh, memory), SLOTS
    shape = dict(trunk=TRUNK, branch=BRANCH, width=WIDTH, widest=WIDTH)
    while make_lane(slots, slots, **shape).bytes(sizes.text, dtype) > room and slots > 1:
        slots //= 2
    return mesh, make_lane(slots, slots, **shape), hosts


def lower_generation(experiment: config.Experiment, launch: config.Launch) -> tuple[jax.stages.Lowered, tuple, Mesh]:
    """Like `lowering.lower_step`, for a decoding step, with weights in the compute dtype."""
    sizes, _ = model_sizes(experiment)
    mesh, lane, _ = generation_place(experiment, launch)
    inference = config.Model(path=experiment.model.path, dtype=experiment.model.dtype, frozen_dtype=experiment.model.dtype)
    bare = experiment.model_copy(update={"model": inference, "lora": None, "trains": NOTHING})
    programs = Programs(TwoForms(abstract_model(sizes, bare, mesh)), lane, mesh)
    return programs.lower("decode"), programs.arguments("decode"), mesh
