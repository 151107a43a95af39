"""The parts of a study, in processes of their own: the supervised start, then the cells."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import mmrlhf_jax
from mmrlhf_jax import strict_json
from mmrlhf_jax.data.processes import CONTEXT, spawn_pool
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.progress import say
from mmrlhf_jax.quickstart import pipeline
from tests.benchmarks.drs_study.cell import Cell
from tests.benchmarks.drs_study.held_out import HeldOut
from tests.benchmarks.drs_study.sizes import Sizes
from tests.benchmarks.drs_study.variants import VARIANTS

STUDY, START, CACHE = "study.json", "start.json", "programs"
# Packages of which a study uses no more than words and pages. What its results depend on are all other files of the package,
# the quickstart's experiments, these modules of the study, and these libraries.
ELSEWHERE = {"cli", "commands", "evaluation", "growing", "launching", "pages", "planning", "serving", "suite"}
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow")
OWN_SOURCES = ("annotators.py", "cell.py", "held_out.py", "quality.py")


def claim(out: Path, sizes: Sizes, *, reads_only: bool = False) -> None:
    """Say in `out`, which is made if necessary, what study it has; variants may be added to one that is there.

    UserError if the directory has something else: another study, or, unless it is only read, one by other code or other
    versions of libraries, because its results would be those of two.
    """
    path, here = out / STUDY, _identity(sizes)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: not a directory")
    if path.exists():
        found = _read(path)
        _check_same(out, found, here, reads_only)
        here["variants"] = found["variants"] | here["variants"]
    elif reads_only:
        raise UserError(f"{out}: no study is there")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: the directory has something else than a study; give a new one")
    if not reads_only:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, strict_json.dumps(here).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        found = strict_json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); the study cannot be continued, so give another directory") from None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in ("sizes", "variants")):
        raise UserError(f"{path}: not the description of a study; give another directory")
    return found


def _check_same(out: Path, found: dict[str, Any], here: dict[str, Any], reads_only: bool) -> None:
    for size, value in here["sizes"].items():
        if found["sizes"].get(size) != value:
            raise UserError(
                f"{out}: the study there has other {size.replace('_', ' ')}; give another directory, or look whether --small is"
                " right"
            )
    for name in found["variants"].keys() & here["variants"]:
        if found["variants"][name] != here["variants"][name]:
            raise UserError(f"{out}: in the study there the variant {name} has another objective; give another directory")
    if not reads_only and any(found.get(name) != here[name] for name in ("code", "libraries")):
        raise UserError(
            f"{out}: the study there was begun with other code or other versions of libraries, so that its results would be"
            " those of two; go on with those, or give another directory (--report still writes its report)"
        )


def _identity(sizes: Sizes) -> dict[str, Any]:
    package, digest = Path(mmrlhf_jax.__file__).parent, hashlib.sha256()
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    files = {name: path for name, path in files.items() if name.split("/")[0] not in ELSEWHERE}
    files |= {path.name: path for path in (package.parent / "configs" / "quickstart").glob("*.yaml")}
    files |= {f"study/{name}": Path(__file__).with_name(name) for name in OWN_SOURCES}
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    made = {
        "sizes": {name: value for name, value in sizes._asdict().items() if name != "variants"},
        "variants": {name: VARIANTS[name].objective for name in sizes.variants},
        "code": digest.hexdigest(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    return strict_json.loads(strict_json.dumps(made))  # as it is read again: tuples become lists


def make_start(out: Path, sizes: Sizes) -> None:
    """The data and the supervised start, unless they are there. One that a kill has left half-made is made anew."""
    if not (out / START).exists():
        shutil.rmtree(out / "start", ignore_errors=True)
        with worker_pool(1, _use_all_cores, None) as pool:
            pool.submit(_start, out, sizes).result()


def _use_all_cores(_: None) -> None:
    pipeline.use_processors()


def _start(out: Path, sizes: Sizes) -> None:
    """Data and the supervised start, as in the quickstart, and the start's own answers."""
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
    """Run the cells that are not complete, `workers` at a time, each worker on a core of its own. The first error ends them
    all."""
    cores = CONTEXT.Queue()
    for core in sorted(pipeline.usable_cores())[:workers]:
        cores.put(core)
    cells, started = [each for each in sizes.cells() if not Cell(out, *each, sizes).is_complete], time.monotonic()
    with worker_pool(workers, _use_core, (cores, out)) as pool:
        running = [pool.submit(_cell, out, level, seed, sizes) for level, seed in cells]
        watch_all(pool)
        for done, future in enumerate(as_completed(running), 1):
            future.result()
            left = (time.monotonic() - started) / done * (len(cells) - done)
            say(f"=== {done} of {len(cells)} cells that were missing, about {left / 60:.0f} minutes left")


@contextlib.contextmanager
def worker_pool(number: int, adopt: Callable[[Any], None], what: Any) -> Iterator[ProcessPoolExecutor]:
    """`spawn_pool` whose processes end at once with the first error, so that nothing is written after it was said. They also
    end with this process; otherwise two studies could write to one directory.

    They are killed: a run takes a signal to end as one to finish its step and write a checkpoint. Half a part is made anew.
    """
    with spawn_pool(number, adopt, what) as pool:
        try:
            yield pool
        except BaseException as error:
            for process in (processes := multiprocessing.active_children()):
                process.kill()
            for process in processes:
                process.join()
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a worker of the study was ended from outside, perhaps because memory ran out; the same command continues"
                    " the study, and --workers 1 needs less"
                ) from None
            raise


def watch_all(pool: ProcessPoolExecutor) -> None:
    """Let the pool see also the end of the worker that it started last: it looks which workers there are when a task comes, and
    starts the worker for that task after it has looked."""
    pool.submit(int)


def _use_core(given: tuple[Any, Path]) -> None:
    """Take a core of its own: XLA then computes in one thread, and two runs beside each other do not wait for each other.

    `given` are a queue of cores and the directory of the study.
    """
    cores, out = given
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(out / CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


_HELD_OUT: dict[Path, HeldOut] = {}  # of this process: made once, because its programs take long to compile


def _cell(out: Path, level: float, seed: int, sizes: Sizes) -> None:
    cell = Cell(out, level, seed, sizes)
    if out not in _HELD_OUT:
        _HELD_OUT[out] = HeldOut(cell.start.model("policy"), cell.start.data("held_out"))
    cell.run(_HELD_OUT[out])
