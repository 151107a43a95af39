"""A command that is given again with other options or documents: which figures are replaced, and which are not."""

from __future__ import annotations

import json
import pathlib

import pytest

from mmrlhf_jax import cli
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.own import documents
from tests.serving.fakes import chat
from tests.suite.support import made_up_own
from tests.suite.support.going_on import PLAIN, policy, value


@pytest.mark.long
def test_a_limit_replaces_no_figures_of_more_documents_and_can_grow(run):
    with policy() as server:
        assert run(server, "--limit", "1")["rows"]
        assert len(server.asked) == 2
        run(server, "--limit", "2")
        run(server)
        assert len(server.asked) == 6
        run(server, "--limit", "2", fails="has figures of 3 documents of nsfw_text, which --limit 2 would replace; leave")
        run(server, "--limit", "3")
        assert len(server.asked) == 6


@pytest.mark.long
def test_documents_of_another_source_replace_no_figures(run, tmp_path, monkeypatch):
    hub = made_up_own.write(tmp_path / "hub", "nsfw_text")
    monkeypatch.setattr(documents, "hub_files", lambda task: [hub])
    with policy() as server:
        run(server, only=("nsfw_text",))
        arguments = ["eval", "safety-bench", "--policy-endpoint", server.url, "--benchmark", "nsfw_text", "--out"]
        with pytest.raises(UserError, match="the documents of a file, and now they would be those of the hub; give the file"):
            cli.app([*arguments, str(tmp_path / "out")], standalone_mode=False)
        assert not cli.app([*arguments, str(tmp_path / "other")], standalone_mode=False)
        with pytest.raises(UserError, match="documents of the hub, and now they would be those of a file; leave --data out"):
            cli.app([*arguments, str(tmp_path / "other"), f"--data=nsfw_text={hub}"], standalone_mode=False)
        assert len(server.asked) == 6


def test_figures_stay_when_the_documents_are_broken(run, tmp_path, data, capsys):
    with policy() as server:
        run(server)
        whole = pathlib.Path(data["nsfw_text"]).read_text()
        pathlib.Path(data["nsfw_text"]).write_text('{"question": 1}\n')
        assert value(run(server), "nsfw_text_asr") == 100
        pathlib.Path(data["nsfw_text"]).write_text(whole)
        assert value(run(server), "nsfw_text_asr") == 100 and len(server.asked) == 6


def test_figures_stay_when_the_documents_are_fewer(run, tmp_path, data):
    """Because pictures are gone, or because the file is another one."""
    folder = tmp_path / "data"
    with policy() as server:
        run(server)
        pictures = {path: path.read_bytes() for path in (folder / "nsfw_text-0.png", folder / "nsfw_text-1.png")}
        for path in pictures:
            path.unlink()
        other = made_up_own.write(tmp_path / "other", "nsfw_image", "jsonl")
        other.write_text(other.read_text().splitlines()[0].replace("cats", "rats"))
        data["nsfw_image"] = str(other)
        server.reply = lambda body: chat("I'm sorry, I cannot.")
        found = run(server)
        for name in PLAIN:
            (row,) = [row["model"] for row in found["rows"] if row["name"] == f"{name}_asr"]
            assert (row["value"], row["documents"]["scored"], row["documents"]["missing"]) == (100, 3, {})
        for path, content in pictures.items():
            path.write_bytes(content)
        asked = len(server.asked)
        data["nsfw_image"] = str(folder / "nsfw_image.jsonl")
        assert run(server) == found and len(server.asked) == asked


def test_options_of_single_tasks_are_none_of_the_run(run, tmp_path):
    with policy() as server:
        run(server, "--video-frames", "16", verb="benchmarks")
        run(server)
        assert len(server.asked) == 6
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings == {"model": "m", "metrics": "corrected"}  # and no harness, which has none of these tasks


def test_figures_of_answers_that_were_made_otherwise_are_not_replaced(run, tmp_path):
    with policy() as server:
        run(server)
        found = results.read(tmp_path / "out", "nsfw_text")
        results.write(tmp_path / "out", type(found)(**vars(found) | {"settings": found.settings | {"max_new_tokens": 16}}))
        run(server, fails="nsfw_text was answered with max_new_tokens 16, not 2048")
