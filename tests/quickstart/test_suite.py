"""The quickstart's answers as a suite of benchmarks: every kind of question is a dimension, summed up like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmrlhf_jax import config, sections
from mmrlhf_jax.commands.report import report
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.built_examples import BuiltExamples
from mmrlhf_jax.quickstart.dataset import write_dataset
from mmrlhf_jax.quickstart.page import EVALUATION, write_evaluation
from mmrlhf_jax.quickstart.questions import KINDS, is_correct, question_from_record
from mmrlhf_jax.quickstart.suite import SUITE, TITLES, answered, write_run
from mmrlhf_jax.suite.figures import figures, read_run
from tests.pages.html import parsed, rows, text

EXPERIMENTS = Path(config.__file__).parents[2] / "configs" / "quickstart"
SETTINGS = {"max_new_tokens": 48}


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> BuiltExamples:
    root = tmp_path_factory.mktemp("quickstart")
    source = write_dataset(root / "sources", seed=0, scenes={"held_out": 30}, questions_per_scene=3)["held_out"]
    return build(source, root / "data" / "held_out")


@pytest.fixture
def root(tmp_path, examples) -> Path:
    """A quickstart whose policy gives the worst answers before, and the best ones after MM-DPO."""
    chosen = {"before": max, "after_mmdpo": min, "after_dpo": min}
    for policy, choose in chosen.items():
        answers = [choose(record.responses, key=lambda response: response.rank).text for record in examples.records]
        results = answered(examples, answers, SETTINGS)
        write_run(tmp_path / EVALUATION / policy, examples, results, f"models/{policy}", {})
    for run in ("mmdpo", "dpo"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        experiment = config.load_experiment(EXPERIMENTS / f"{run}.yaml")
        (tmp_path / "runs" / run / "config.yaml").write_text(sections.resolved(experiment))
        (tmp_path / "runs" / run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    return tmp_path


def test_every_kind_of_question_is_a_dimension():
    assert tuple(SUITE.dimensions) == tuple(KINDS) == tuple(TITLES) == tuple(axis.name for axis in SUITE.axes)
    assert all(len(SUITE.rows(axis)) == 1 for axis in SUITE.axes)


def test_figures_are_the_shares_of_answers_that_the_checker_finds_right(root, examples):
    found = figures(SUITE, read_run(root / EVALUATION / "after_mmdpo", SUITE))
    for kind in KINDS:
        of_kind = [record for record in examples.records if question_from_record(record).kind == kind]
        best = [min(record.responses, key=lambda response: response.rank).text for record in of_kind]
        right = [is_correct(question_from_record(record), answer) for record, answer in zip(of_kind, best, strict=True)]
        assert found.axes[kind].model.value == pytest.approx(100 * sum(right) / len(right))
        assert found.rows[f"{kind}_right"].model.coverage.scored == len(of_kind)


def test_the_page_shows_mm_dpo_against_the_policy_before_it(root):
    write_evaluation(root)
    tree = parsed((root / EVALUATION / "report.html").read_text())
    heads = [text(head) for head in tree.findall(".//section[@id='dimensions']//thead//th")]
    assert heads == ["MM-DPO the model", "before the base", "difference model minus base", "plain DPO another run"]
    shown = rows(tree.find(".//section[@id='dimensions']//table"))
    assert list(shown) == list(TITLES.values()) and all("better" in cells[2] for cells in shown.values())
    cases = tree.findall(".//article")
    assert cases and all(case.find(".//img") is not None and "▲ better" in text(case) for case in cases)
    training = [text(head) for head in tree.findall(".//section[@id='training']/h3")]
    assert training == ["mmdpo", "dpo"]
    assert "arXiv" not in text(tree.find(".//section[@id='dimensions']"))


def test_its_directories_are_read_by_the_command(root, tmp_path):
    folders = [str(root / EVALUATION / policy) for policy in ("after_mmdpo", "before")]
    report(folders, str(tmp_path / "out.html"), None)
    tree = parsed((tmp_path / "out.html").read_text())
    assert text(tree.find(".//h1")) == "The quickstart's questions: after_mmdpo"
    assert list(rows(tree.find(".//section[@id='dimensions']//table"))) == list(TITLES.values())


def test_a_policy_without_pictures_of_its_own_is_shown_those_of_the_other(root):
    shutil.rmtree(root / EVALUATION / "after_mmdpo" / "media")
    write_evaluation(root)
    assert all(
        case.find(".//img") is not None for case in parsed((root / EVALUATION / "report.html").read_text()).iter("article")
    )
