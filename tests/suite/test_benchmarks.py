"""`mmrlhf eval benchmarks` from the command line to the table, through the real harness, on made-up documents."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from mmrlhf_jax.cli import app
from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.reasons import BEYOND_LIMIT
from tests import tiny
from tests.serving import fakes
from tests.serving.fakes import Fake, chat
from tests.suite.support import harness, made_up
from tests.suite.support.harness import SCORED, verdict
from tests.suite.support.judged import judge

pytestmark = harness.needed
# Rows for which neither of the first two made-up documents counts, or that are over categories of which these are not all.
WITHOUT_FIGURE = {"llava_in_the_wild": {"llava_w_complex"}, "mme": {"mme"}, "mmstar": {"mmstar"}}
WITHOUT_FIGURE["llava_interleave_bench_in_domain"] = {"interleave"}
CLI = "from mmrlhf_jax.cli import main; main()"


def texts(body: dict) -> str:
    return "".join(part.get("text", "") for part in body["messages"][-1]["content"])


def policy(body: dict):
    """An answer that depends on the question, some of which are right."""
    return chat("Yes" if "line" in texts(body) else "No" if "sun" in texts(body) else "A")


def options(folder, *names: str) -> list[str]:
    """`--benchmark` and `--data` of tasks, whose documents are written."""
    found = []
    for name in names:
        data = made_up.write(TASKS[name].harness_task, folder / name)
        found += ["--benchmark", name, "--data", f"{name}={data}"]
    return found


def run(*arguments) -> None:
    app(["eval", "benchmarks", *map(str, arguments)], standalone_mode=False)


def figures(out, name: str) -> dict[str, float | None]:
    return {row: each.value for row, each in results.read(out, name).figures.items()}


def test_a_broken_task_a_missing_video_and_no_judge_end_nothing_else_and_the_table_says_so(tmp_path, capfd):
    arguments = options(tmp_path, "mme", "ai2d", "videomme", "mmbench_cn_dev", "wildvision_0617")
    (tmp_path / "ai2d" / "ai2d.jsonl").write_text('{"question": "?"}\n')
    (tmp_path / "videomme/videomme/data/clip1.mp4").unlink()
    out = tmp_path / "out"
    with fakes.running(Fake(policy)) as fake:
        arguments += ["--policy-endpoint", fake.url, "--out", out, "--video-frames", 2]
        run(*arguments)
        said = capfd.readouterr()
        assert len(fake.asked) == 6 + 2 + 6 + 3
        assert figures(out, "mme") == {"mme": 200.0 * 3} and figures(out, "videomme") == {"video_mme_wo": 50.0}
        missing = results.read(out, "videomme").coverage.missing
        assert sum(missing.values()) == 2 and all("clip1.mp4" in reason for reason in missing)
        assert "has no column 'image'" in results.read(out, "ai2d").figures["ai2d"].missing
        assert "no judge" in results.read(out, "wildvision_0617").figures["wildvision_elo"].missing
        assert "ai2d.jsonl: has no column 'image' (image); it has question; the other tasks go on" in said.err
        assert "MME" in said.out and "clip1.mp4" in said.out
        assert os.path.getsize(out / "report.html") > 10_000 and json.loads((out / "figures.json").read_text())["version"]
    with judge(verdict) as judging:  # later, when the policy's server is gone: nothing is answered again
        run(*arguments, "--judge", judging.url)
    assert figures(out, "wildvision_0617")["wildvision_win"] is not None
    assert results.read(out, "wildvision_0617").settings["judge"] == "m"
    assert results.read(out, "mmbench_cn_dev").coverage.missing == {}


@pytest.mark.slow
def test_every_task_runs_with_a_tiny_model(tmp_path):
    model = tiny.checkpoint(tmp_path / "model", tiny.config(text={"tie_word_embeddings": False}))
    names = [task.name for task in SCORED]
    arguments = [*options(tmp_path, *names), "--video-frames", 2, "--slots", 2048, "--limit", 2]
    with judge(verdict) as judging:
        run(*arguments, "--model", model, "--judge", judging.url, "--out", tmp_path / "out")
    for name in names:
        check_whole(name, tmp_path / "out")


def check_whole(name: str, out) -> None:
    """Two documents of a task are answered and scored, and every row has a figure but those that none of the two counts for."""
    found = results.read(out, name)
    assert (found.coverage.answered, found.coverage.scored, len(found.documents)) == (2, 2, 2), (name, found.coverage)
    assert {reason for reason in found.coverage.missing if reason != BEYOND_LIMIT} == set(), (name, found.coverage)
    without = {row for row, each in found.figures.items() if each.value is None}
    assert without == WITHOUT_FIGURE.get(name, set()), (name, found.figures)


@pytest.mark.slow
def test_ten_kills_at_random_change_no_figure_and_nothing_that_is_stored_is_asked_again(tmp_path):
    names = ("mme", "wildvision_0617", "ai2d", "mmbench_cn_dev", "mathvista_testmini_format")
    arguments = [*options(tmp_path, *names), "--concurrency", 1, "--judge-concurrency", 1]
    rng = random.Random(0)

    def slowly(reply):
        def replies(asked):
            time.sleep(rng.uniform(0.05, 0.3))
            return reply(asked)

        return replies

    def started(policy: Fake, judged: Fake, out) -> subprocess.Popen:
        command = [sys.executable, "-c", CLI, "eval", "benchmarks", *map(str, arguments), "--out", str(out)]
        command += ["--policy-endpoint", policy.url, "--judge", judged.url]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stored(out, folder: str) -> int:
        return sum(path.read_bytes().count(b"}\n") for path in (out / folder).glob("*.jsonl"))

    whole, out, killed = tmp_path / "whole", tmp_path / "out", 0
    with fakes.running(Fake(unclear)) as fake, judge(verdict) as judged:
        assert started(fake, judged, whole).wait() == 0
        once = len(fake.asked), len(judged.asked) - 1  # without the probe
    with fakes.running(Fake(slowly(unclear))) as fake, judge(slowly(verdict)) as judged:
        for number in range(10):
            before = len(fake.asked), len(judged.asked), stored(out, "answers"), stored(out, "verdicts")
            process = started(fake, judged, out)
            calls, until = rng.randint(1, 4), time.monotonic() + rng.uniform(1, 8)
            while process.poll() is None and (
                len(fake.asked) + len(judged.asked) - before[0] - before[1] <= calls if number % 3 else time.monotonic() < until
            ):
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.2))
            killed += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
            # The one that is under way is asked again, and the probe of the judge.
            assert len(fake.asked) - before[0] <= stored(out, "answers") - before[2] + 1
            assert len(judged.asked) - before[1] <= stored(out, "verdicts") - before[3] + 2
        assert killed >= 8
        assert started(fake, judged, out).wait() == 0
        total = len(fake.asked), len(judged.asked)
    for name in names:
        assert results.read(out, name) == results.read(whole, name)
    assert (out / "figures.json").read_text() == (whole / "figures.json").read_text()
    assert stored(out, "answers") == stored(whole, "answers") == once[0] <= total[0] <= once[0] + killed
    assert stored(out, "verdicts") == stored(whole, "verdicts") == once[1] > 3 and total[1] <= once[1] + 11 + killed


def unclear(body: dict):
    """An answer that depends on the question, some of which a rule cannot read."""
    return chat("I am not sure") if "什么" in texts(body) or "What is 1" in texts(body) else policy(body)


@pytest.mark.slow
def test_two_hosts_share_the_documents_and_the_first_one_scores(tmp_path):
    (tmp_path / "launch.yaml").write_text("distributed: {}\n")
    arguments = [*options(tmp_path, "mme", "ai2d"), "--launch", tmp_path / "launch.yaml", "--out", tmp_path / "out"]
    with fakes.running(Fake(policy)) as fake:
        command = [sys.executable, "-c", CLI, "eval", "benchmarks", *map(str, arguments), "--policy-endpoint", fake.url]
        place = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2"}
        hosts = [subprocess.Popen(command, env=os.environ | place | {"JAX_PROCESS_ID": str(n)}) for n in range(2)]
        assert [host.wait() for host in hosts] == [0, 0]
        assert len(fake.asked) == 6 + 3
    assert results.read(tmp_path / "out", "mme").coverage.missing == {}
    assert figures(tmp_path / "out", "mme") == {"mme": 600.0}
