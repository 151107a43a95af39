"""Whether two revisions compile LLaVA-OneVision to the same programs: `python -m tests.programs.same OLD [NEW]`.

NEW is the working tree where it is not given. Each revision's own code runs `train` (MM-DPO with scaled β, reward model,
adapters, supervised), `logprobs`, `score` and `generate` with tiny checkpoints on 1 and on 8 CPU devices, and plans the 7B
experiments of `configs/` for `launch/v5e-64.yaml` (train step, evaluation, reference pass, prefill and decoding). The optimised
HLO of every program is compared without the lines of its source, up to names and to the order of parameters (`graph`).

Says of every program whether it is the same, and ends with status 1 where one is not. Nothing is kept. It takes about ten
minutes on two cores; `--only TEXT` runs the commands whose names have that in them, as in `--only v5e-64`.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from tests.programs.compiled import compile_in, write_inputs
from tests.programs.graph import Program, difference, read_program

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.programs.same", description=__doc__.splitlines()[0])
    parser.add_argument("old", help="git revision")
    parser.add_argument("new", nargs="?", help="git revision; default: the working tree")
    parser.add_argument("--only", metavar="TEXT", default="", help="commands whose names have this in them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trees = [_tree(given.old, folder / "old"), ROOT if given.new is None else _tree(given.new, folder / "new")]
        (folder / "inputs").mkdir()
        commands = [each for each in write_inputs(folder / "inputs") if given.only in str(each)]
        started, same = time.monotonic(), True
        for command in commands:
            begun = time.monotonic()
            old, new = ([read_program(text) for text in compile_in(tree, command, folder / "run")] for tree in trees)
            print(f"{command} ({time.monotonic() - begun:.0f} s)", flush=True)
            same &= _compare(old, new, command.programs)
    print(f"{'the same' if same else 'NOT the same'}: {len(commands)} commands, {time.monotonic() - started:.0f} s")
    sys.exit(0 if same else 1)


def _tree(revision: str, folder: Path) -> Path:
    """The files of a revision, in a folder of their own."""
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True)
    if packed.returncode:
        sys.exit(f"{revision}: {packed.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def _compare(old: list[Program], new: list[Program], least: int) -> bool:
    """Whether both have the same programs, at least as many as a command must have. Says so of every one."""
    left, changed = list(new), []
    for program in old:
        equal = [each for each in left if each.digest == program.digest]
        if not equal:
            changed.append(program)
            continue
        twin = max(equal, key=lambda each: each.listed == program.listed)
        left.remove(twin)
        order = "" if twin.listed == program.listed else ", listed in another order"
        print(f"  {program.name}: identical ({program.size} instructions{order})", flush=True)
    for program in changed:
        # The likeliest one: of that name, else of about that size.
        other = min(left, key=lambda each: (each.name != program.name, abs(each.size - program.size)), default=None)
        if other is None:
            print(f"  {program.name}: DIFFERS, the new tree does not compile it", flush=True)
            continue
        left.remove(other)
        print(f"  {program.name}: DIFFERS", *difference(program, other), sep="\n    ", flush=True)
    for program in left:
        print(f"  {program.name}: DIFFERS, the old tree does not compile it", flush=True)
    if len(old) < least:
        print(f"  {len(old)} programs were found and {least} are expected; the comparison looks in the wrong place", flush=True)
    return len(old) >= least and not changed and not left


if __name__ == "__main__":
    main()
