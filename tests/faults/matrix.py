"""The whole fault matrix by one command: `python -m tests.faults.matrix [--readme docs/launching.md] [--only TEXT ...]`.

Prints a table of what happened in every cell, and ends with status 1 where a cell did not end as it must. Half an hour on two
idle cores; cells are independent of each other, so `--only "full disk"` runs a part.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from mmrlhf_jax.progress import clock_time, say
from tests import ranked
from tests.damage import damage
from tests.faults import cells
from tests.sharding import loopback

RANKS, IMAGES = loopback.RANKS * 4, loopback.IMAGES * 4
WAIT = 300.0
# From the fault to the end of all processes: the heartbeat's limit, two beats of five seconds, and what a busy machine adds.
HANGS_AFTER = cells.HEARTBEAT + 2 * 5.0 + 40.0
BEGIN, END = "<!-- faults: written by `python -m tests.faults.matrix --readme docs/launching.md` -->", "<!-- end of faults -->"


@dataclasses.dataclass(frozen=True)
class Observed:
    """What happened in a cell: statuses of its processes, and from which step it went on (None: it finished)."""

    statuses: tuple[int, ...]
    continued_from: int | None
    seconds: float  # from the fault to the end of the last process

    def __str__(self) -> str:
        shown = " ".join("killed" if status == cells.KILLED else str(status) for status in self.statuses)
        return shown if self.continued_from is None else f"{shown}, on from {self.continued_from}"


class Matrix:
    """The model, the data and, for each layout, the whole run and the run that every cell begins with, in `root`."""

    def __init__(self, root: Path):
        self.root = root
        compiled = root / "compiled"
        # Attempts share their compiled programs, as they would on a pod.
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        settings = loopback.write_experiment(root / "model", "preference", steps=cells.STEPS)
        ranked.write(root / "data", RANKS, IMAGES)
        ranked.write(root / "held_out", loopback.RANKS, loopback.IMAGES, seed=1)
        settings["objective"] = {"kind": "preference", "reference": "cached"}
        settings["batch"] = {"rows": 2, "slots": 256, "logprob_chunk": 16}
        settings["run"] |= {"checkpoint_every": cells.EVERY, "eval_every": cells.EVAL_EVERY, "keep": cells.KEEP}
        self._settings = settings
        self._whole: dict[int, Path] = {}
        self._prefix: dict[int, Path] = {}

    def experiment(self, folder: Path) -> dict[str, Any]:
        """The experiment with its data and its run in `folder`, where a cell may damage them."""
        data = {"path": str(folder / "data" / "records.jsonl"), "held_out": str(folder / "held_out" / "records.jsonl")}
        return self._settings | {"data": data, "run": self._settings["run"] | {"directory": str(folder / "run")}}

    def folder(self, name: str) -> Path:
        """A fresh folder with the data in it."""
        folder = self.root / name
        for part in ("data", "held_out"):
            shutil.copytree(self.root / part, folder / part)
        return folder

    def whole(self, processes: int) -> Path:
        """The run that nothing happens to."""
        if processes not in self._whole:
            folder = self.folder(f"whole-{processes}")
            loopback.train(folder, self.experiment(folder), _mesh(processes), processes, 1)
            self._whole[processes] = folder / "run"
        return self._whole[processes]

    def prefix(self, processes: int) -> Path:
        """A run that was killed when its checkpoint of step PREFIX was complete and no later one begun."""
        if processes not in self._prefix:
            folder = self.folder(f"prefix-{processes}")
            started = start(folder, self.experiment(folder), processes, "stall", "prefix", range(processes))
            deadline = time.monotonic() + WAIT
            complete = folder / "run" / "checkpoints" / str(cells.PREFIX)
            while not (complete.exists() and len(list(folder.glob("stalled-*"))) == processes):
                assert time.monotonic() < deadline, loopback.output(folder)
                time.sleep(0.05)
            for process in started:
                process.send_signal(signal.SIGKILL)
                process.wait()
            for log in folder.glob("process-*.log"):
                log.unlink()
            self._prefix[processes] = folder / "run"
        return self._prefix[processes]

    def run_cell(self, fault: str, phase: str, processes: int) -> Observed:
        """Run a cell. AssertionError, with what the processes printed, where it does not end as it must."""
        whole, prefix = self.whole(processes), self.prefix(processes)
        folder = self.folder(f"{fault} {phase} {processes}".replace(" ", "-"))
        shutil.copytree(prefix, folder / "run")
        if phase == "reference pass":
            for cached in (folder / "run").rglob("reference-*.npz"):
                cached.unlink()
        wanted, suffering = cells.outcome(fault, phase), processes - 1
        experiment = self.experiment(folder)
        statuses = tuple(wait(start(folder, experiment, processes, fault, phase, [suffering]), folder))
        ended = time.monotonic()
        moment = folder / "fault.json"
        assert moment.exists(), f"the fault did not happen\n{loopback.output(folder)}"
        seconds = ended - json.loads(moment.read_text())["moment"]
        said = loopback.output(folder)
        assert statuses[suffering] in wanted.ends, f"{statuses}\n{said}"
        assert all(status in wanted.others for status in statuses[:suffering]), f"{statuses}\n{said}"
        assert wanted.says in said, said
        assert "Traceback" not in said, said
        if wanted.beside is not None:
            beside = (folder / "beside.log").read_text()
            assert int((folder / "beside.status").read_text()) == wanted.beside, beside
            assert "Traceback" not in beside, beside
        continued = None
        if any(statuses):
            assert seconds < HANGS_AFTER, f"{seconds:.0f} s until the end\n{said}"
            continued = self._continue(fault, folder, experiment, processes, wanted)
        assert_same(folder / "run", whole)
        shutil.rmtree(folder)
        return Observed(statuses, continued, seconds)

    def _continue(self, fault: str, folder: Path, experiment: Mapping[str, Any], processes: int, wanted: cells.Outcome) -> int:
        """Put right what the fault did to the machine, start the same command, and return the step that it went on from."""
        if fault == "corrupt newest checkpoint":
            damage(
                max((p for p in (folder / "run" / "checkpoints").iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
            )
        for path in (folder / "data").glob("*.away"):
            path.rename(path.with_suffix(".png"))
        for log in folder.glob("process-*.log"):
            log.rename(log.with_suffix(".first"))
        loopback.train(folder, experiment, _mesh(processes), processes, 1)
        said = loopback.output(folder)
        assert wanted.continued_says in said, said
        resumed = [line for line in said.splitlines() if line.startswith("resumed from step")]
        assert resumed, said
        step = int(resumed[0].split()[3])
        assert step >= wanted.continued_from, f"went on from {step}, and not from {wanted.continued_from}\n{said}"
        return step


def start(
    folder: Path, experiment: Mapping[str, Any], processes: int, fault: str, phase: str, suffering: Sequence[int]
) -> list[subprocess.Popen]:
    """Start the training with a fault in the processes of the numbers `suffering`."""
    command = [sys.executable, "-m", "tests.faults.injection", str(folder), fault, phase]
    return loopback.start(
        folder,
        experiment,
        _mesh(processes),
        processes,
        1,
        heartbeat=cells.HEARTBEAT,
        command=lambda process: [*command, str(process if process in suffering else -1)],
    )


def wait(processes: Sequence[subprocess.Popen], folder: Path) -> list[int]:
    """The statuses of all. Who does not end in WAIT seconds hangs, and is killed."""
    deadline = time.monotonic() + WAIT
    try:
        return [process.wait(timeout=max(1.0, deadline - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        raise AssertionError(f"a process hangs\n{loopback.output(folder)}") from None


def assert_same(run: Path, expected: Path) -> None:
    """Losses of all steps, parameters and optimizer state are the same bits."""
    assert loopback.losses(run) == loopback.losses(expected)
    for found, wanted in zip(_arrays(run), _arrays(expected), strict=True):
        np.testing.assert_array_equal(found, wanted)


def _arrays(run: Path) -> list[np.ndarray]:
    """All that the last checkpoint holds, as NumPy arrays: its devices need not be here."""
    last = run / "checkpoints" / str(cells.STEPS)
    stored = {name: ocp.checkpointables_metadata(last).metadata[name] for name in ("params", "opt_state")}
    return jax.tree.leaves(ocp.load_checkpointables(last, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored)))


def _mesh(processes: int) -> dict[str, int]:
    return {"fsdp": processes}


def table(observed: Mapping[tuple[str, str, str], Observed | str]) -> str:
    """Markdown: a row per fault, a column per phase; in a cell one process, then one of two (its own status last)."""
    lines = [f"| | {' | '.join(cells.PHASES)} |", f"|---|{'---|' * len(cells.PHASES)}"]
    for fault in cells.FAULTS:
        found = [[observed.get((fault, phase, layout), "-") for layout in cells.LAYOUTS] for phase in cells.PHASES]
        lines.append(f"| {fault} | {' | '.join('; '.join(map(str, cell)) for cell in found)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readme", type=Path, help="a file whose table, between its two marks, is replaced")
    parser.add_argument("--only", action="append", default=[], help="cells whose name contains this text")
    options = parser.parse_args(arguments)
    names = [(fault, phase, layout) for layout in cells.LAYOUTS for fault in cells.FAULTS for phase in cells.PHASES]
    names = [name for name in names if all(text in " / ".join(name) for text in options.only)]
    observed: dict[tuple[str, str, str], Observed | str] = {}
    failed, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        matrix = Matrix(Path(root))
        for number, name in enumerate(names, 1):
            try:
                observed[name] = matrix.run_cell(name[0], name[1], cells.LAYOUTS[name[2]])
            except AssertionError as error:
                observed[name] = "FAILED"
                failed.append(name)
                say(f"{' / '.join(name)}: {error}")
            left = (time.monotonic() - began) / number * (len(names) - number)
            print(
                f"{number}/{len(names)} {' / '.join(name)}: {observed[name]}, ETA {clock_time(left)}",
                file=sys.stderr,
                flush=True,
            )
    made = table(observed)
    print(made)
    if options.readme and not options.only:
        text = options.readme.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        options.readme.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
