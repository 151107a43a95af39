"""Everything of this project that needs a GPU to be measured, in one command of at most eight minutes.

    python -m tests.benchmarks.gpu [--json OUT] [--only PART ...] [--seconds 480] [--small]

Each part runs in a process of its own with a time limit. A part that fails or takes too long is a row of the table with its
reason, and what it had measured stays. OUT is written after every part; one that is there is completed, not begun anew. Without
a GPU, and with --small, the shapes are small: that shows that the parts run, and measures nothing of interest.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrlhf_jax import strict_json
from tests.benchmarks.gpu import runner, table
from tests.benchmarks.gpu.parts import CARD_PART, PARTS, Part, Skipped


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here, after every part")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--seconds", type=float, default=480, help="time limit of all parts together")
    parser.add_argument("--small", action="store_true", help="small shapes, as without a GPU")
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)  # this process is that part's own
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part is not None:
        measure(given.part, given.json, given.small, given.kind)
        return 0
    with tempfile.TemporaryDirectory() as cache:
        # Parts that run the same step compile it once.
        shared = {"JAX_COMPILATION_CACHE_DIR": cache}
        parts = [dataclasses.replace(part, environment=shared | part.environment) for part in PARTS]
        figures = everything(given.json, parts, given.only, given.seconds, given.small)
    failed = [name for name in given.only if figures["parts"][name]["status"] in (runner.FAILED, runner.TIMED_OUT)]
    return 1 if failed else 0


def everything(out: Path | None, parts: Sequence[Part], only: list[str], seconds: float, small: bool) -> dict[str, Any]:
    """Run those of the parts that `only` names, print a line as each one ends and the table at last. Returns what was written.

    The card's part also runs where its figures are not known yet, since they decide on the shapes of the others.
    """
    figures: dict[str, Any] = {"small": small, "parts": {}}
    if out is not None and out.exists():
        figures = strict_json.loads(out.read_text())
        figures["small"] = small = small or figures["small"]
    results = figures["parts"]

    def written() -> None:
        if out is not None:
            runner.write(out, figures)
        name = next(reversed(results))
        print(table.line(name, results[name]), flush=True)

    left = dict(seconds=seconds, results=results, written=written)
    if CARD_PART.name in only or CARD_PART.name not in results:
        results.pop(CARD_PART.name, None)
        runner.run(parts[:1], runner.here(small, None), **left)
        figures["small"] = small = small or results[CARD_PART.name]["result"].get("platform") != "gpu"
        left["seconds"] -= results[CARD_PART.name]["seconds"]
    for name in only:
        if name != CARD_PART.name:
            results.pop(name, None)  # so that it is the newest one
    kind = results.get(CARD_PART.name, {}).get("result", {}).get("kind")
    runner.run([part for part in parts[1:] if part.name in only], runner.here(small, kind), **left)
    print(table.as_text(figures), flush=True)
    return figures


def measure(name: str, out: Path, small: bool, kind: str | None) -> None:
    """Run one part in this process."""
    (part,) = (part for part in PARTS if part.name == name)
    result: dict[str, Any] = {}
    options = part.options | ({"kind": kind} if part.module == "plan" else {})

    def report(found: dict[str, Any]) -> None:
        result.update(found)
        runner.write(out, {"result": result, "skipped": None})

    try:
        importlib.import_module(f"tests.benchmarks.gpu.{part.module}").measure(small, report, **options)
    except Skipped as reason:
        runner.write(out, {"result": result, "skipped": str(reason)})


if __name__ == "__main__":
    sys.exit(main())
