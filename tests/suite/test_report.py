"""`mmrlhf report`: what it takes, what it refuses, and runs of training on the page."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from mmrlhf_jax import cli, commands, config, sections
from mmrlhf_jax.commands.report import report
from mmrlhf_jax.errors import UserError
from tests.pages.html import parsed, text
from tests.suite.support.reports import BASE, page, section, write

EXPERIMENT = Path(config.__file__).parents[2] / "configs" / "quickstart" / "mmdpo.yaml"


def test_a_run_of_training_shows_its_curves_and_its_configuration(tmp_path, model, base):
    run = tmp_path / "mmdpo"
    run.mkdir()
    experiment = config.load_experiment(EXPERIMENT)
    (run / "config.yaml").write_text(sections.resolved(experiment))
    lines = [{"step": step, "loss": 1.0 / step, "rewards/accuracies": 0.5} for step in range(1, 9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    part = section(page(tmp_path, run, model, base), "training")
    assert text(part.find("h3")) == "mmdpo" and [text(head) for head in part.findall("h4")][:2] == ["Loss", "Preferences"]
    assert len(part.findall(".//svg[@role='img']")) == 2 and "learning_rate" in part.find(".//pre").text
    (run / "metrics.jsonl").unlink()
    assert "It has logged no metrics." in text(section(page(tmp_path, model, base, run), "training"))


def test_wrong_directories_are_refused_in_one_line(tmp_path, model, papers):
    def refused(*directories, published=None) -> str:
        with pytest.raises(UserError) as error:
            report([str(each) for each in directories], str(tmp_path / "out.html"), published)
        assert not (tmp_path / "out.html").exists() and "\n" not in str(error.value)
        return str(error.value)

    assert "none: no such directory" in refused(model, tmp_path / "none")
    assert "neither an evaluation" in refused(tmp_path)
    assert "is of other benchmarks than" in refused(model, papers)
    assert "--published GPT: choose InternVL2-1B, LLaVA-OV-0.5B, LLaVA-OV-7B or none" in refused(papers, published="GPT")
    assert "--published : choose InternVL2-1B" in refused(papers, published="")
    assert "has no figures of the small suite" in refused(model, published="InternVL2-1B")
    for name, file, message in (("begun", "run.json", "without results yet"), ("rewards", "figures.json", "a reward model")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        assert message in refused(tmp_path / name)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    assert "a training run, whose page is the report.html in it" in refused(run)
    (model / "suite.json").unlink()
    assert "none of its results are of MM-RLHF's benchmarks" in refused(model)


@pytest.mark.parametrize("out", ["folder", "file/x.html", "file/new/x.html", "/proc/x.html"])
def test_a_page_that_cannot_be_written_is_refused_before_it_is_built(tmp_path, model, out, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(commands.report, "page_of", lambda *_: pytest.fail("it is built"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"^--out {re.escape(str(tmp_path / out))}: (is a folder|cannot be written)") as error:
        report([str(model)], str(tmp_path / out), None)
    assert "\n" not in str(error.value) and sorted(tmp_path.rglob("*")) == before


def test_a_file_is_no_run(tmp_path, model):
    (tmp_path / "file").write_text("")
    for directories in ((tmp_path / "file",), (model, model / "run.json")):
        with pytest.raises(
            UserError, match=f"^{re.escape(str(directories[-1]))}: is a file; give the directory of an evaluation"
        ):
            report([str(each) for each in directories], str(tmp_path / "out.html"), None)


def test_a_run_is_not_compared_with_itself(tmp_path, model, base):
    (tmp_path / "link").symlink_to(model)
    for again in (f"{model}", f"{model}/", f"{base}/../{model.name}", f"{tmp_path / 'link'}"):
        with pytest.raises(
            UserError, match=f"^{re.escape(again)}: is the same directory as {re.escape(str(model))}; give every"
        ):
            report([str(model), str(base), again], str(tmp_path / "out.html"), None)


def test_the_verb_takes_several_directories(tmp_path, model, base, monkeypatch):
    out = tmp_path / "new" / "report.html"
    monkeypatch.setattr(sys, "argv", ["mmrlhf", "report", str(model), f"{base}/", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and text(parsed(out.read_text()).find(".//h1")) == "the small suite: aligned"


@pytest.mark.long
def test_the_command_says_what_it_wrote_and_who_is_compared(tmp_path, model, base, capsys):
    other = write(tmp_path / "other", BASE, {"model": "models/other"})
    for directories, says in (((model,), "aligned."), ((model, base), "aligned against base.")):
        page(tmp_path, *directories)
        assert capsys.readouterr().err.splitlines()[-1] == f"Wrote {tmp_path / 'report.html'}: {says}"
    page(tmp_path, model, base, other)
    assert capsys.readouterr().err.endswith(": aligned against base, beside other.\n")
