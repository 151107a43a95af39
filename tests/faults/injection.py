"""`mmrlhf train` with one fault at one moment: `python -m tests.faults.injection FOLDER FAULT PHASE PROCESS train ...`.

The fault happens in the process of that number when its training first enters the phase. The moment of the fault is written
to FOLDER/fault.json, in seconds of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import builtins
import functools
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.cells import EVALUATED, PREFIX, STEP, WRITTEN

# (step, what the loop says that it does) -> whether a phase has begun.
PHASES: dict[str, Callable[[int, str], bool]] = {
    "reference pass": lambda step, doing: "reference log-probs" in doing,
    "compile": lambda step, doing: doing == "compiling",
    "step": lambda step, doing: step == STEP and doing == "in step",
    "evaluation": lambda step, doing: step == EVALUATED and "evaluating" in doing,
    "checkpoint": lambda step, doing: step == WRITTEN and "saving" in doing,
    "prefix": lambda step, doing: step == PREFIX + 1 and doing == "in step",
}
# From the beginning of a phase to the fault: compiling and writing take a moment, and the fault is to fall into it.
SECONDS_INTO = {"compile": 0.2, "checkpoint": 0.01, "reference pass": 0.0, "step": 0.0, "evaluation": 0.0}
DAY = 86400.0
FAILING_READS = 2
FULL_BYTES = 2048


def send(number: int, phase: str, folder: Path) -> None:
    """A signal to this process, shortly after the phase began."""
    threading.Timer(SECONDS_INTO[phase], os.kill, (os.getpid(), number)).start()


def fail_reads(phase: str, folder: Path) -> None:
    """The first reads of every file of the data, and of every folder of the run, fail as an object store's do when it is busy.

    In the phase of writing a checkpoint also the reads of what is just being written do, which are Orbax's own.
    """
    spared = "" if phase == "checkpoint" else ".orbax-checkpoint-tmp"
    real_open, failures, lock = builtins.open, {}, threading.Lock()

    @functools.wraps(real_open)
    def open_(file, mode="r", *args, **kwargs):
        name = os.fspath(file) if isinstance(file, (str, os.PathLike)) else ""
        reads = "r" in mode and "+" not in mode and isinstance(name, str) and name.startswith(str(folder))
        if reads and not (spared and spared in name):
            area = Path(name).relative_to(folder).parts[:2]
            with lock:
                failures[area] = failures.get(area, 0) + 1
                fails = failures[area] <= FAILING_READS
            if fails:
                raise OSError(f"503 Service Unavailable: {name}")
        return real_open(file, mode, *args, **kwargs)

    builtins.open = io.open = open_


def fill_disk(phase: str, folder: Path) -> None:
    """No file can grow beyond a few bytes: writing more fails, as on a full disk.

    What the process prints ends in a file as well, so it goes there through a process without the limit.
    """
    printer = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    for number in (1, 2):
        os.dup2(printer.stdin.fileno(), number)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def move_clock(phase: str, folder: Path) -> None:
    """The wall clock jumps, a day ahead in one process and a day back in another."""
    real, days = time.time, -1 if int(os.environ.get("JAX_PROCESS_ID", 0)) else 1

    def jump() -> None:
        time.time = lambda: real() + days * DAY
        time.time_ns = lambda: int(time.time() * 1e9)

    threading.Timer(SECONDS_INTO[phase], jump).start()


def remove_data(phase: str, folder: Path) -> None:
    """The pictures of the data are gone."""
    for path in (folder / "data").glob("*.png"):
        path.rename(path.with_suffix(".away"))


def beside(folder: Path, *arguments: str) -> subprocess.Popen:
    """Another command of the program, as one process, while this one trains. Its output goes to FOLDER/beside.log."""
    shared = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    alone = {name: value for name, value in os.environ.items() if name not in shared}
    code = "from mmrlhf_jax.cli import main; main()"
    with (folder / "beside.log").open("a") as log:
        return subprocess.Popen([sys.executable, "-c", code, *arguments], env=alone, stdout=log, stderr=log)


def finish(process: subprocess.Popen, folder: Path) -> None:
    (folder / "beside.status").write_text(str(process.wait(timeout=300)))


def second_trainer(phase: str, folder: Path) -> None:
    finish(beside(folder, "train", str(folder / "experiment.yaml")), folder)


def export(phase: str, folder: Path) -> None:
    """While a checkpoint is written, it is not finished before the export is: the export meets it unfinished."""
    process = beside(folder, "export", str(folder / "run"), str(folder / "exported"))
    if phase != "checkpoint":
        finish(process, folder)
        return
    for name in ("rename", "replace"):
        real = getattr(os, name)

        def after_export(source, *args, real=real, **kwargs):
            if str(WRITTEN) in Path(source).name and process.poll() is None:
                process.wait(timeout=300)
            return real(source, *args, **kwargs)

        setattr(os, name, after_export)
    threading.Thread(target=finish, args=(process, folder)).start()


def stall(phase: str, folder: Path) -> None:
    """Nothing goes on, until somebody kills the process."""
    (folder / f"stalled-{os.getpid()}").touch()
    signal.pause()


FAULTS: dict[str, Callable[[str, Path], None]] = {
    "SIGKILL": functools.partial(send, signal.SIGKILL),
    "SIGTERM": functools.partial(send, signal.SIGTERM),
    "transient read error": fail_reads,
    "corrupt newest checkpoint": functools.partial(send, signal.SIGKILL),  # the parent damages it before the run goes on
    "full disk": fill_disk,
    "clock jump": move_clock,
    "vanished data file": remove_data,
    "second trainer": second_trainer,
    "concurrent export": export,
    "stall": stall,
}


def install(folder: Path, fault: str, phase: str, process: int) -> None:
    """Let the training of this process suffer the fault when it says that it enters the phase."""
    from mmrlhf_jax.training.peers import Peers

    if int(os.environ.get("JAX_PROCESS_ID", 0)) != process:
        return
    real, begun = Peers.at, PHASES[phase]
    happened = threading.Event()

    @functools.wraps(real)
    def at(self, step: int, doing: str) -> None:
        real(self, step, doing)
        if not happened.is_set() and begun(step, doing):
            happened.set()
            (folder / "fault.json").write_text(json.dumps({"moment": time.monotonic(), "step": step, "doing": doing}))
            FAULTS[fault](phase, folder)

    Peers.at = at


def main() -> None:
    folder, fault, phase, process, *arguments = sys.argv[1:]
    install(Path(folder), fault, phase, int(process))
    from mmrlhf_jax.cli import main

    sys.argv = ["mmrlhf", *arguments]
    main()


if __name__ == "__main__":
    main()
