"""`mmrlhf plan`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.accelerators import accelerator
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import is_remote
from mmrlhf_jax.planning.plugin import plugin_packages
from mmrlhf_jax.planning.table import Table, read_table, write_table
from mmrlhf_jax.progress import say

if TYPE_CHECKING:
    from mmrlhf_jax.planning.plan import Plan
    from mmrlhf_jax.planning.workload import Workload

CONFIGS, LAUNCHES = "configs/*.yaml", "launch/*.yaml"


def plan(
    experiments: Sequence[str] | None,
    launches: Sequence[str] | None,
    overrides: Sequence[str],
    *,
    every: bool = False,
    fit: bool = False,
    generation: bool = True,
    passes: bool = True,
    quick: bool = False,
    readme: str | None = None,
    as_json: bool = False,
) -> None:
    if readme is not None and not every:
        raise UserError("--readme writes the whole table anew; use it with --all, and with --launch to renew some of its rows")
    if readme is not None and launches and experiments:
        raise UserError("--readme with --launch renews whole rows of the table; name no experiment")
    renewed = bool(launches)  # some rows of the table, not all
    experiments = list(experiments or (_files(CONFIGS) if every else ()))
    launches = list(launches or (_pods() if every else ()))
    if not experiments or not launches:
        raise UserError("give an experiment and --launch FILE, or --all for every launch file")
    kept = read_table(readme).without({Path(name).stem for name in launches}) if readme is not None and renewed else Table()
    incomplete = [name for name in (_pods() if kept.rows else ()) if Path(name).stem in kept.rows]  # columns may be missing
    places = {name: config.load_launch(name) for name in [*launches, *incomplete]}
    nameless = next((name for name, launch in places.items() if launch.accelerator is None), None)
    if nameless is not None:
        raise UserError(f"{nameless}: names no accelerator, so there is nothing to judge a plan by; set `accelerator`")
    _use_stand_ins(list(places.values()))
    from mmrlhf_jax.planning import show
    from mmrlhf_jax.planning.plan import as_json as as_object

    plans, several = [], len(experiments) * len(places) > 1
    read = {Path(name).stem: config.load_experiment(name, overrides) for name in experiments}
    groups = alike(read)
    columns, how = [together for together, _ in groups], dict(generation=generation, passes=passes, quick=quick)
    parts = ({name: places[name] for name in part} for part in (launches, incomplete))
    for made in itertools.chain.from_iterable(_plans(groups, part, kept, several, fit, **how) for part in parts):
        plans.append(made)
        if readme is not None:  # after every plan, because the next may take long
            write_table(readme, show.table_of(plans).keeping(kept, columns if renewed else ()))
        if not as_json:
            print(show.as_text(made), flush=True)
    if as_json:
        made = [as_object(each) for each in plans]
        strict_json.print_figures(made if several else made[0])
    if readme is not None:
        say(f"{readme}: {len(plans)} plans")


def _plans(
    groups: Sequence[tuple[list[str], config.Experiment]],
    places: Mapping[str, config.Launch],
    kept: Table,
    several: bool,
    fit: bool,
    **how: bool,
) -> Iterator[Plan]:
    """Yield a plan of each group of experiments (`alike`) for each launch file, but for those whose cell is kept. If there are
    several, those that fail are reported and left out."""
    from mmrlhf_jax.planning.lowering import model_sizes
    from mmrlhf_jax.planning.plan import make_plan
    from mmrlhf_jax.planning.workload import find_workload

    for together, experiment in groups:
        workload = None  # does not depend on the launch file
        for where, launch in places.items():
            names = (", ".join(together), Path(where).stem)
            if kept.cell(names[1], together) is not None:
                continue
            try:
                sizes = model_sizes(experiment)[0]
                if not fit:  # `--fit` chooses the mesh itself
                    _check_layout(experiment, launch, sizes)
                workload = workload or find_workload(experiment, sizes)
                if fit:
                    made = _fastest(experiment, launch, names, workload)
                else:
                    made = make_plan(experiment, launch, names=names, workload=workload, **how)
            except UserError as error:
                if not several:
                    raise
                say(f"{names[0]} on {names[1]}: {error}")
            else:
                yield made


def _check_layout(experiment: config.Experiment, launch: config.Launch, sizes: Any) -> None:
    """UserError if the experiment does not divide over the launch file's mesh. Reports settings that are overruled, and
    replicated computation."""
    from mmrlhf_jax.training.layout import check_layout, say_overruled, say_waste, with_accumulation

    axes = launch.axes()
    check_layout(with_accumulation(experiment, launch, axes), sizes, axes)
    say_overruled(experiment, launch, axes)
    say_waste(experiment, sizes, axes)


def _fastest(experiment: config.Experiment, launch: config.Launch, names: tuple[str, str], workload: Workload) -> Plan:
    """The plan of the fastest layout that fits; prints the settings that give it."""
    from mmrlhf_jax.planning.fit import as_overrides, best_fit
    from mmrlhf_jax.planning.topology import planned_devices

    made, chosen, place = best_fit(experiment, launch, len(planned_devices(launch)), names, workload=workload)
    say(f"{names[0]} on {names[1]}: {as_overrides(chosen, place)}")
    return made


def alike(experiments: Mapping[str, config.Experiment]) -> list[tuple[list[str], config.Experiment]]:
    """Group experiments whose steps have the same shapes, so that one plan serves them; they may differ in constants, in the
    form of β, or in the data that is read. Experiments whose data may be available are not grouped, because it is measured.
    """
    from mmrlhf_jax.tasks import task_of

    found: dict[str, tuple[list[str], config.Experiment]] = {}
    for name, experiment in experiments.items():
        key = experiment.model_dump(mode="json", exclude={"run": True, "data": {"rewards", "held_out_rewards", "workers"}})
        task = task_of(experiment.objective)
        key["objective"] = task.shape_settings()
        key["pieces"] = experiment.objective.looks_at_batch is None  # others do not allow gradient accumulation
        if not at_hand(experiment.data):
            key["data"] |= {"path": None, "pairs": None, "critiques": task.assumed_targets(experiment.data)}
        found.setdefault(strict_json.dumps(_without_values(key)), ([], experiment))[0].append(name)
    return list(found.values())


def at_hand(data: config.Data) -> bool:
    """Whether the data may be available for measuring; patterns and object stores are not opened to find out."""
    return any("{" in path or is_remote(path) or epath.Path(path).exists() for path in data.paths)


def _without_values(settings):
    """The settings with each float replaced by whether it is 0, because a term with weight 0 is not computed."""
    if isinstance(settings, dict):
        return {name: _without_values(value) for name, value in settings.items()}
    return settings != 0 if isinstance(settings, float) else settings


def _files(pattern: str) -> list[str]:
    found = sorted(str(path) for path in Path().glob(pattern))
    if not found:
        raise UserError(f"--all: no {pattern} here; run it in the repository, or name the files")
    return found


def _pods() -> list[str]:
    """The launch files that name an accelerator."""
    return [name for name in _files(LAUNCHES) if config.load_launch(name).accelerator is not None]


def _use_stand_ins(launches: Sequence[config.Launch]) -> None:
    """Prepare the environment before jax starts: no accelerator of this machine, the compiler flags, and a CPU device for every
    GPU that is planned if there is no compiler for GPUs.

    libtpu reads its flags only once, so they are used only if all launch files have the same. JAX's compilation cache is
    disabled, because a program from it has no HLO text.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    named = [(accelerator(launch.accelerator), launch.slices) for launch in launches if launch.accelerator is not None]
    flags = {launch.environment.get("LIBTPU_INIT_ARGS", "") for launch in launches if _is_tpu(launch)}
    if len(flags) == 1:
        os.environ.setdefault("LIBTPU_INIT_ARGS", flags.pop())
    elif flags:
        say("the launch files differ in LIBTPU_INIT_ARGS, so none of these flags is used; plan them one by one")
    gpus = [found.chips * slices for found, slices in named if not found.is_tpu]
    if gpus and not plugin_packages():
        import jax

        jax.config.update("jax_num_cpu_devices", max(gpus))
        os.environ["JAX_NUM_CPU_DEVICES"] = str(max(gpus))  # for the child processes that compile


def _is_tpu(launch: config.Launch) -> bool:
    return launch.accelerator is not None and accelerator(launch.accelerator).is_tpu
