"""The GPU benchmark leaves what it knows, whatever happens to a part; and all of it runs on a CPU at small shapes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mmrlhf_jax import strict_json
from tests.benchmarks.gpu import __main__ as command_line
from tests.benchmarks.gpu import attention, runner, table
from tests.benchmarks.gpu.parts import PARTS, Part

ROOT = Path(__file__).parents[2]
# What the process of a part with this name does; OUT is the file for its result.
BODIES = {
    "well": "write({'figure': 1})",
    "raises": "write({'figure': 2}); raise ValueError('there is no such device')",
    "dies": "import os, signal; write({'figure': 3}); os.kill(os.getpid(), signal.SIGKILL)",
    "hangs": "import time; write({'figure': 4}); time.sleep(60)",
    "cannot": "write({}, 'there is no torch')",
    "silent": "pass",
    "garbage": 'open(out, \'w\').write(\'{"result": {"figure": NaN}, "skipped": null}\')',
}
HEAD = """
import json, sys
out = sys.argv[1]
def write(result, skipped=None): open(out, 'w').write(json.dumps({'result': result, 'skipped': skipped}))
"""


def command(part: Part, out: Path) -> list[str]:
    return [sys.executable, "-S", "-c", HEAD + BODIES[part.name], str(out)]


def run(*names: str, seconds: float = 60.0, limit: float = 30.0, **settings) -> tuple[dict, list[int]]:
    """(the rows by name, how many there were each time that they were written)."""
    parts = [Part(name, "none", limit, environment={}) for name in names]
    results, written = {}, []
    runner.run(parts, command, seconds=seconds, results=results, written=lambda: written.append(len(results)))
    return results, written


def test_a_part_that_fails_is_a_row_with_its_reason_and_the_others_run():
    rows, written = run("raises", "dies", "cannot", "silent", "garbage", "well")
    assert {name: row["status"] for name, row in rows.items()} == {
        "raises": "failed", "dies": "failed", "cannot": "skipped", "silent": "done", "garbage": "done", "well": "done",
    }  # fmt: skip
    assert rows["raises"]["reason"] == "ValueError: there is no such device (exit status 1)"
    assert rows["dies"]["reason"] == "signal 9" and rows["cannot"]["reason"] == "there is no torch"
    assert [row["result"].get("figure") for row in rows.values()] == [2, 3, None, None, None, 1]
    assert written == [1, 2, 3, 4, 5, 6], "what is known is written after every part"


def test_a_part_that_takes_too_long_is_ended_and_keeps_what_it_measured():
    started = time.monotonic()
    rows, _ = run("hangs", "well", limit=0.7)
    assert time.monotonic() - started < 10
    assert rows["hangs"]["status"] == "timed out" and "longer than" in rows["hangs"]["reason"]
    assert rows["hangs"]["result"] == {"figure": 4} and rows["well"]["status"] == "done"


def test_no_part_begins_that_has_no_time_left():
    rows, written = run("hangs", "well", "raises", seconds=0.5, limit=30)
    assert [row["status"] for row in rows.values()] == ["not run"] * 3 and written == [1, 2, 3]
    assert "no time is left of 0.5 s" in rows["well"]["reason"]


def test_what_is_written_is_strict_json(tmp_path):
    runner.write(tmp_path / "out.json", {"parts": {"a": {"loss": math.nan, "rates": [1.0, math.inf]}}})
    assert strict_json.loads((tmp_path / "out.json").read_text()) == {"parts": {"a": {"loss": None, "rates": [1.0, None]}}}


def test_a_file_that_is_there_is_completed(tmp_path, monkeypatch, capsys):
    """A part that was left out can be measured later, with the card's figures of before."""
    card = {"status": "done", "reason": "", "seconds": 1.0, "result": {"platform": "gpu", "matmul_flops_per_second": 4e12}}
    runner.write(tmp_path / "out.json", {"small": False, "parts": {"card": card}})
    found = dict(size="7b", lora=True, layout="group", groups=1, pairs=6, tokens=9, pieces=1, flops=1e12, seconds=1.0)
    body = f"write({found | {'pairs_per_second': 6.0}})"
    monkeypatch.setitem(BODIES, "step 7b lora", body)
    monkeypatch.setattr(runner, "here", lambda small, kind: command)
    assert command_line.main(["--json", str(tmp_path / "out.json"), "--only", "step 7b lora"]) == 0
    figures = strict_json.loads((tmp_path / "out.json").read_text())
    assert list(figures["parts"]) == ["card", "step 7b lora"] and not figures["small"]
    assert "6 pairs/s, 1.0 TFLOP/s useful, 25.0% of the measured products" in capsys.readouterr().out


def test_a_part_that_failed_is_the_exit_status(monkeypatch, capsys):
    monkeypatch.setitem(BODIES, "card", BODIES["well"])
    monkeypatch.setitem(BODIES, "attention", BODIES["raises"])
    monkeypatch.setattr(runner, "here", lambda small, kind: command)
    assert command_line.main(["--only", "attention"]) == 1
    assert "attention: failed" in capsys.readouterr().out


def test_our_step_is_compared_with_pytorchs():
    row = dict(status="done", reason="", seconds=9.0)
    ours = dict(size="0.5b", lora=False, layout="group", groups=1, pairs=6, tokens=9, pieces=1, flops=1e12, seconds=0.5)
    theirs = {"size": "0.5b", "torch": "2.13", "seconds": 2.0, "pairs_per_second": 3.0}
    results = {"step 0.5b": ours | {"pairs_per_second": 12.0}, "torch 0.5b": theirs}
    text = table.as_text({"small": False, "parts": {name: row | {"result": result} for name, result in results.items()}})
    assert "2 s, 3 pairs/s, peak -; our step has 4 times as many pairs/s" in text


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_part_alone_has_the_shapes_of_the_card_that_is_here(monkeypatch, tmp_path, platform):
    """The card is looked at though it is not named; a later call knows it from the file. Parts share a cache of programs."""
    asked = []
    monkeypatch.setitem(BODIES, "card", f"write({{'platform': {platform!r}, 'kind': 'a card'}})")
    body = "import os; write({'torch': '2', 'cache': os.path.isdir(os.environ['JAX_COMPILATION_CACHE_DIR'])})"
    monkeypatch.setitem(BODIES, "torch 0.5b", body)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(runner, "here", lambda *given: asked.append(given) or command)
    for _ in range(2):
        assert command_line.main(["--json", str(tmp_path / "out.json"), "--only", "torch 0.5b"]) == 0
    small = platform == "cpu"
    assert asked == [(False, None), (small, "a card"), (small, "a card")]
    assert strict_json.loads((tmp_path / "out.json").read_text())["parts"]["torch 0.5b"]["result"]["cache"]
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_every_part_is_shown_and_its_time_is_within_the_limit_of_all():
    assert {part.name.split()[0] for part in PARTS} == set(table.SHOWN)
    assert len({part.name for part in PARTS}) == len(PARTS)
    # The first six, which the table of a card is about, have time even if each takes all of its own.
    assert sum(part.seconds for part in PARTS[:6]) <= 480


def test_float64s_gradients_of_attention_are_its_differences():
    """The oracle's own gradients against central differences of its result."""
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(2, 9, 4, 3))
    k, v = rng.normal(size=(2, 9, 2, 3))
    until = attention.tree(9)
    _, *gradients = attention.in_float64(q, k, v, g, until)
    inputs = {"q": q, "k": k, "v": v}
    for (name, value), gradient in zip(inputs.items(), gradients, strict=True):
        step = rng.normal(size=value.shape)
        ends = [attention.in_float64(**inputs | {name: value + sign * 1e-5 * step}, g=g, until=until)[0] for sign in (1, -1)]
        np.testing.assert_allclose((gradient * step).sum(), ((ends[0] - ends[1]) * g).sum() / 2e-5, rtol=1e-6)


@pytest.mark.slow
def test_everything_runs_on_a_cpu_at_small_shapes(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    arguments = ["-m", "tests.benchmarks.gpu", "--json", str(tmp_path / "out.json"), "--seconds", "1800"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = strict_json.loads((tmp_path / "out.json").read_text())
    assert figures["small"] and list(figures["parts"]) == [part.name for part in PARTS]
    results = {name: row["result"] for name, row in figures["parts"].items()}
    assert {row["status"] for name, row in figures["parts"].items() if name != "torch 0.5b"} == {"done"}
    assert results["determinism"]["bit_exact"] and results["determinism"]["states_alike"]
    assert max(results["attention"]["errors"]["float32"].values()) < 1e-5
    assert max(results["attention"]["errors"]["bfloat16"].values()) < 2e-2
    for name in ("step 0.5b", "step 7b lora", "pairs 0.5b", "pairs 7b lora"):
        assert results[name]["pairs_per_second"] > 0 and results[name]["flops"] > 0
    # The same pairs with the same weights, in both layouts.
    assert results["pairs 0.5b"]["loss"] == pytest.approx(results["step 0.5b"]["loss"], rel=1e-2)
    assert results["pairs 7b lora"]["loss"] == pytest.approx(results["step 7b lora"]["loss"], rel=1e-2)
    assert results["decode 7b"]["tokens_per_second"] > 0
    for name in results:
        assert f"{name}: " in done.stdout
