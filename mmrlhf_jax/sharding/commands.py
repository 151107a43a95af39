"""What `mmrlhf plan` does with its options."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.accelerators import accelerator

CONFIGS, LAUNCHES = "configs/*.yaml", "launch/*.yaml"


def plan(
    experiments: Sequence[str] | None,
    launches: Sequence[str] | None,
    overrides: Sequence[str],
    every: bool,
    fit: bool,
    generation: bool,
    readme: str | None,
    as_json: bool,
) -> None:
    experiments = list(experiments or (_files(CONFIGS) if every else ()))
    launches = list(launches or (_pods() if every else ()))
    if not experiments or not launches:
        raise UserError("give an experiment and --launch FILE, or --all for every launch file")
    places = {name: config.load_launch(name) for name in launches}
    _use_stand_ins(list(places.values()))
    from mmrlhf_jax.sharding import fit as fitting
    from mmrlhf_jax.sharding import plan as planning
    from mmrlhf_jax.sharding import show

    plans, several = [], len(experiments) * len(launches) > 1
    for name in experiments:
        experiment = config.load_experiment(name, overrides)
        for where, launch in places.items():
            names = (Path(name).stem, Path(where).stem)
            try:
                if fit:
                    devices = len(planning.planned_devices(launch))
                    made, chosen, place = fitting.best_fit(experiment, launch, devices, names)
                    say(f"{names[0]} on {names[1]}: {fitting.as_overrides(chosen, place)}")
                else:
                    made = planning.make_plan(experiment, launch, names=names, generation=generation)
            except UserError as error:
                if not several:
                    raise
                say(f"{names[0]} on {names[1]}: {error}")
                continue
            plans.append(made)
            if not as_json:
                print(show.as_text(made), flush=True)
    if as_json:
        made = [planning.as_json(each) for each in plans]
        print(json.dumps(made if several else made[0]))
    if readme is not None:
        show.write_table(readme, plans)
        say(f"{readme}: {len(plans)} plans")


def _files(pattern: str) -> list[str]:
    found = sorted(str(path) for path in Path().glob(pattern))
    if not found:
        raise UserError(f"--all: no {pattern} here; run it in the repository, or name the files")
    return found


def _pods() -> list[str]:
    """Launch files that name an accelerator."""
    return [name for name in _files(LAUNCHES) if config.load_launch(name).accelerator is not None]


def _use_stand_ins(launches: Sequence[config.Launch]) -> None:
    """Before jax starts: no accelerator of this machine, a CPU device for every GPU to be planned for, and the compiler flags.

    libtpu reads its flags once, so they are used where there is one launch file. A program from a cache would have no text.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    flags = [launch.environment.get("LIBTPU_INIT_ARGS") for launch in launches]
    if len(flags) == 1 and flags[0]:
        os.environ.setdefault("LIBTPU_INIT_ARGS", flags[0])
    named = [(accelerator(launch.accelerator), launch.slices) for launch in launches if launch.accelerator is not None]
    gpus = [found.chips * slices for found, slices in named if not found.is_tpu]
    if gpus:
        import jax

        jax.config.update("jax_num_cpu_devices", max(gpus))
