"""Runs each part in a process of its own, with a time limit, and writes what is known after each one. Imports no jax."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf_jax import strict_json
from mmrlhf_jax.files import write_atomically
from tests.benchmarks.gpu.parts import Part

ROOT = Path(__file__).parents[3]
LEAST = 5.0  # seconds; a part that would have less is not begun
DONE, FAILED, TIMED_OUT, SKIPPED, NOT_RUN = "done", "failed", "timed out", "skipped", "not run"

# The command of a part's process, for the file into which it writes its result.
Command = Callable[[Part, Path], Sequence[str]]


def run(
    parts: Sequence[Part], command: Command, *, seconds: float, results: dict[str, Any], written: Callable[[], None]
) -> None:
    """Run the parts in turn, in `seconds` altogether. Into `results`, by name, goes for each a status, its reason, the seconds
    that it took, and what it measured, which a part that fails later keeps. `written` is called after each part."""
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate(parts):
            left = deadline - time.monotonic()
            limit = min(part.seconds, left)
            if left < min(LEAST, part.seconds):
                results[part.name] = _row(NOT_RUN, f"no time is left of {seconds:g} s", 0.0, {})
            else:
                results[part.name] = _run(part, command, limit, Path(folder) / str(number))
            written()


def _row(status: str, reason: str, seconds: float, result: Mapping[str, Any]) -> dict[str, Any]:
    return {"status": status, "reason": reason, "seconds": round(seconds, 1), "result": dict(result)}


def _run(part: Part, command: Command, limit: float, out: Path) -> dict[str, Any]:
    environment = _environment(part)
    started = time.monotonic()
    said = out.with_suffix(".log")
    with said.open("wb") as log:
        try:
            process = subprocess.Popen(
                command(part, out), cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        except OSError as error:
            return _row(FAILED, str(error), 0.0, {})
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(process)
    took = time.monotonic() - started
    result, skipped = _read(out)
    if code is None:
        return _row(TIMED_OUT, f"it took longer than {limit:.0f} s", took, result)
    if skipped is not None:
        return _row(SKIPPED, skipped, took, result)
    if code != 0:
        return _row(FAILED, _last_words(said, code), took, result)
    return _row(DONE, "", took, result)


def _environment(part: Part) -> dict[str, str]:
    """The caller's variables take precedence, but for XLA_FLAGS, which are joined, and JAX_PLATFORMS."""
    found = dict(part.environment) | os.environ
    flags = filter(None, (os.environ.get("XLA_FLAGS"), part.environment.get("XLA_FLAGS")))
    found |= {"XLA_FLAGS": " ".join(flags)} if "XLA_FLAGS" in found else {}
    return found | {name: value for name, value in part.environment.items() if name == "JAX_PLATFORMS"}


def _kill(process: subprocess.Popen) -> None:
    """End the part's process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(out: Path) -> tuple[dict[str, Any], str | None]:
    """(what the part has measured, why it was skipped or None)."""
    try:
        found = strict_json.loads(out.read_text())
    except (OSError, ValueError):
        return {}, None
    return found["result"], found["skipped"]


def _last_words(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ended = f"signal {-code}" if code < 0 else f"exit status {code}"
    return f"{lines[-1][:300]} ({ended})" if lines else ended


def write(path: Path, figures: Any) -> None:
    """Strict JSON; figures that are not finite are null."""
    write_atomically(path, (strict_json.dumps(strict_json.with_nulls(figures), indent=1) + "\n").encode())


def here(small: bool, kind: str | None) -> Command:
    """The command that runs a part by this package; `kind` is that of the card, if it is known."""

    def command(part: Part, out: Path) -> list[str]:
        known = [*(["--small"] if small else []), *(["--kind", kind] if kind else [])]
        return [sys.executable, "-m", "tests.benchmarks.gpu", "--part", part.name, "--json", str(out), *known]

    return command
