"""The parts of a study, in processes of their own: the supervised start, then the cells."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax

import mmrlhf_jax
from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.progress import say
from mmrlhf_jax.quickstart import pipeline
from tests.benchmarks.drs_study.cell import Cell
from tests.benchmarks.drs_study.held_out import HeldOut
from tests.benchmarks.drs_study.sizes import Sizes
from tests.benchmarks.drs_study.variants import VARIANTS

STUDY, START, CACHE = "study.json", "start.json", "programs"
# What a study's results depend on, beside the versions of libraries: these folders' files, and these of the study itself.
SOURCES = ("config", "data", "inference", "models", "objectives", "quickstart", "tasks", "training", "../configs/quickstart")
OWN_SOURCES = ("annotators.py", "cell.py", "held_out.py", "quality.py", "variants.py")


def claim(out: Path, sizes: Sizes, *, reads_only: bool = False) -> None:
    """UserError if the directory has a study of other sizes or, unless it is only read, by another version of the code: its
    results would be those of two."""
    path, here = out / STUDY, _identity(sizes)
    if path.exists():
        found = strict_json.loads(path.read_bytes())
        for name in ("sizes",) if reads_only else here:
            if found.get(name) != here[name]:
                raise UserError(f"{out}: the study there has other {name}; give another directory")
        return
    if reads_only:
        raise UserError(f"{out}: no study is there")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, strict_json.dumps(here).encode())


def _identity(sizes: Sizes) -> dict[str, Any]:
    package, digest = Path(mmrlhf_jax.__file__).parent, hashlib.sha256()
    for path in [
        *sorted(path for folder in SOURCES for path in (package / folder).rglob("*") if path.suffix in (".py", ".yaml")),
        *(Path(__file__).with_name(name) for name in OWN_SOURCES),
    ]:
        digest.update(path.read_bytes())
    variants = {name: VARIANTS[name].objective for name in sizes.variants}
    made = {"sizes": sizes._asdict(), "variants": variants, "code": digest.hexdigest()}
    return strict_json.loads(strict_json.dumps(made))  # as it is read again: tuples become lists


def make_start(out: Path, sizes: Sizes) -> None:
    """The data and the supervised start, unless they are there. One that a kill has left half-made is made anew."""
    if not (out / START).exists():
        shutil.rmtree(out / "start", ignore_errors=True)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(_start, out, sizes).result()


def _start(out: Path, sizes: Sizes) -> None:
    """Data and the supervised start, as in the quickstart, and the start's own answers."""
    pipeline.use_processors()
    quickstart = pipeline.Quickstart(out / "start", sizes.scenes)
    for title, work in (
        ("data", pipeline.make_data),
        ("model", pipeline.make_model),
        ("policy before alignment", pipeline.warm_up),
    ):
        pipeline.step(title, work, quickstart)
    held_out = HeldOut(quickstart.model("policy"), quickstart.data("held_out"))
    kinds = [question.kind for question in held_out.questions]
    write_atomically(out / START, strict_json.dumps(held_out.start | {"kinds": kinds}).encode())


def run_cells(out: Path, sizes: Sizes, workers: int) -> None:
    """Run the cells, `workers` at a time, each worker on a core of its own. The first error ends them all."""
    context = multiprocessing.get_context("spawn")
    cores, free = context.Queue(), sorted(_cores())
    for worker in range(workers):
        cores.put(free[worker % len(free)])
    cells, started = sizes.cells(), time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_use_core, initargs=(cores, out)) as pool:
        running = [pool.submit(_cell, out, level, seed, sizes) for level, seed in cells]
        try:
            for done, future in enumerate(as_completed(running), 1):
                future.result()
                left = (time.monotonic() - started) / done * (len(cells) - done)
                say(f"=== {done} of {len(cells)} cells, about {left / 60:.0f} minutes left")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _use_core(cores, out: Path) -> None:
    """Take a core of its own: XLA then computes in one thread, and two runs beside each other do not wait for each other."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(out / CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, which a kill does not tell it: two studies would write to one directory."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


_HELD_OUT: dict[Path, HeldOut] = {}  # of this process: made once, because its programs take long to compile


def _cell(out: Path, level: float, seed: int, sizes: Sizes) -> None:
    cell = Cell(out, level, seed, sizes)
    if out not in _HELD_OUT:
        _HELD_OUT[out] = HeldOut(cell.start.model("policy"), cell.start.data("held_out"))
    cell.run(_HELD_OUT[out])
