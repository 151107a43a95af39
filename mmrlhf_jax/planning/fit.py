"""`mmrlhf plan --fit`: searches mesh, accumulation and remat policy for the fastest layout that fits in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.planning.plan import Plan, make_plan
from mmrlhf_jax.planning.workload import Workload
from mmrlhf_jax.progress import say

# Sizes of the mesh axes (tensor, context), by which devices share a row.
SPLITS = ((1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1))
REMAT = ("dots", "full")  # ordered by the amount of recomputation
TRIES = 12


def candidates(experiment: config.Experiment, launch: config.Launch, devices: int) -> Iterator[tuple]:
    """Yield (experiment, launch) for all meshes, remat policies and accumulations that divide, the most promising first.

    The accumulation is set in both: as `batch.accumulation`, and as the `rows_per_device` that gives it.
    """
    given = experiment.batch.accumulation
    tried = (given,) if given else (1,) if experiment.objective.looks_at_batch else (1, 2, 4, 8)
    per_slice = launch.mesh.slices
    for (tensor, context), remat in itertools.product(SPLITS, REMAT):
        shards, rest = divmod(devices, tensor * context)
        data = per_slice.get("data", 1)
        if rest or shards % data or experiment.batch.rows % shards:
            continue
        mesh = launch.mesh.model_copy(update={"data": data, "fsdp": shards // data, "tensor": tensor, "context": context})
        for accumulation in tried:
            at_once, uneven = divmod(experiment.batch.rows, shards * accumulation)
            if not uneven:
                batch = experiment.batch.model_copy(update={"accumulation": accumulation})
                model = experiment.model.model_copy(update={"remat": remat})
                place = launch.model_copy(update={"mesh": mesh, "rows_per_device": at_once})
                yield experiment.model_copy(update={"batch": batch, "model": model}), place


def best_fit(
    experiment: config.Experiment,
    launch: config.Launch,
    devices: int,
    names: tuple[str, str],
    tries: int = TRIES,
    workload: Workload | None = None,
) -> tuple[Plan, config.Experiment, config.Launch]:
    """Compile candidates without machine code and return the one that fits with the lowest bound on step time. UserError if
    none fits.

    More accumulation than necessary only costs time, so for each mesh and remat policy the search stops at the first
    accumulation that fits. If a mesh fits without accumulation, policies that recompute more are not tried.
    """
    found, left, best, settled, least = 0, 0, None, set(), None
    for candidate, place in candidates(experiment, launch, devices):
        key = (place.mesh.tensor, place.mesh.context, candidate.model.remat)
        if key in settled:
            continue
        if found == tries:
            left += 1
            continue
        found += 1
        plan = make_plan(candidate, place, names=names, generation=False, quick=True, workload=workload)
        how = f"{_mesh(place)}, remat {candidate.model.remat}, {place.rows_per_device} rows per device"
        if not plan.fits:
            least = min(plan.peak, least or plan.peak)
            say(f"  {how}: does not fit ({plan.peak / 2**30:.1f} GiB)")
            continue
        settled.add(key)
        if candidate.batch.accumulation == 1:
            settled |= {(*key[:2], policy) for policy in REMAT}
        say(f"  {how}: {plan.step_seconds:.3f} s a step at best")
        if best is None or plan.step_seconds < best[0].step_seconds:
            best = plan, candidate, place
    if left:
        say(f"  {tries} ways tried, {left} less promising ones left out")
    if best is None:
        reason = "no split divides batch.rows" if least is None else f"the least of {found} tried takes {least / 2**30:.1f} GiB"
        raise UserError(f"{names[0]} does not fit {names[1]} in any of the ways tried: {reason}; take more chips")
    return best


def as_overrides(experiment: config.Experiment, launch: config.Launch) -> str:
    """How to write a candidate's settings, in words: `--set` options, and the launch file's rows per device and mesh."""
    place = f"rows_per_device: {launch.rows_per_device} and mesh: {_mesh(launch)}"
    return f"--set model.remat={experiment.model.remat}, and in the launch file {place}"


def _mesh(launch: config.Launch) -> str:
    mesh = launch.mesh
    slices = {name: count for name, count in mesh.slices.items() if count > 1}
    between = f", slices: {{{', '.join(f'{name}: {count}' for name, count in slices.items())}}}" if slices else ""
    return f"{{data: {mesh.data}, fsdp: {mesh.fsdp}, tensor: {mesh.tensor}, context: {mesh.context}{between}}}"
