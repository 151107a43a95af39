"""The section on work without the hub is followed as it is written, on stand-ins for the model, the media and the judge."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.own.documents import CONVERTED
from tests import tiny
from tests.suite.support import harness, made_up
from tests.suite.support.judged import judge

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
SECTION = PAGE.read_text().split("\n## Without the hub\n")[1].split("\n## ")[0]
LINES = [line.strip() for line in re.findall(r"^ {4,}(\S.*)$", SECTION, re.MULTILINE)]
FILES = dict(re.findall(r"`(local/\w+\.jsonl)`\n\n    (\{.*\})\n", SECTION))
MEDIA = [line for line in LINES if re.fullmatch(r"local/\S+", line)]
COMMANDS = [line for line in LINES if line.startswith(("export ", "mmrlhf "))]
ANSWERED = ("ai2d", "mmhal_bench", "videomme", "videomme_w_subtitle")


def test_the_lines_have_the_columns_of_their_tasks():
    assert [Path(name).stem for name in FILES] == ["ai2d", "mmhal_bench", "videomme"]
    for name, line in FILES.items():
        assert json.loads(line).keys() == TASKS[Path(name).stem].columns.keys()


def test_what_is_named_for_the_cache_is_what_tasks_read():
    (name, revision) = re.search(r"hf download (\S+) --repo-type dataset --revision (\S+)", SECTION).groups()
    assert revision == CONVERTED and name in {task.data.hub for task in TASKS.values() if task.own_metrics}
    loaded = re.findall(r"load_dataset\('([^']+)'(?:, '([^']+)')?\)", SECTION)
    known = {(task.data.hub, task.data.config or "") for task in TASKS.values() if not task.own_metrics}
    assert len(loaded) == 2 and set(loaded) <= known


def make(folder: Path) -> None:
    """The files of the section, with a video and pictures that are made up."""
    for place in MEDIA:
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".mp4":
            made_up.write_video(path, 0)
        elif path.suffix == ".srt":
            path.write_text("1\n00:00:00,000 --> 00:00:02,000\nA cup.\n")
        else:
            made_up.picture(1).save(path)
    for name, line in FILES.items():
        (folder / name).write_text(line + "\n")
    tiny.checkpoint(folder / "models/aligned", tiny.config(text={"tie_word_embeddings": False}))


@harness.needed
@pytest.mark.slow
def test_its_commands_work_as_they_are_written(tmp_path):
    make(tmp_path)
    program = tmp_path / "bin" / "mmrlhf"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from mmrlhf_jax.cli import main; main()' \"$@\"\n")
    program.chmod(0o755)
    with judge(lambda _: "Rating: 6, very informative, no hallucination") as fake:
        environment = os.environ | {
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(PAGE.parents[1]),
            "HF_HOME": str(tmp_path / "empty"),
            "JUDGE": fake.url,
        }
        script = ["bash", "-e", "-c", "\n".join(COMMANDS)]
        done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for task in ANSWERED:
        found = results.read(tmp_path / "runs/local", task)
        assert (found.coverage.expected, found.coverage.scored, found.coverage.missing) == (1, 1, {}), task
    assert results.read(tmp_path / "runs/local", "mmhal_bench").figures["mmhal_score"].value == 6.0
    assert "AI2D" in (tmp_path / "local.html").read_text()
