"""Writes the quickstart's pages from the results in its directory: `report.html`, and that of the policies' evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from etils import epath

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.data.margin_summary import margins_of, settled_scale, summarise
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.pages.quickstart import CURVES, POLICIES, Answer, Findings, quickstart_page
from mmrlhf_jax.quickstart.questions import by_kind, is_correct, question_from_record
from mmrlhf_jax.quickstart.suite import SUITE
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.suite.figures import read_run
from mmrlhf_jax.suite.report.page import Shown, page_of
from mmrlhf_jax.training.metrics import read_metrics
from mmrlhf_jax.training.page import MARGINS
from mmrlhf_jax.training.shown import shown_run

EVALUATION = "evaluation"  # the folder of the policies' results, one folder each
PAGE = "report.html"  # in that folder, and in the quickstart's
NOTES = (
    "A figure is the share of right answers in percent, by a checker that knows what was drawn. Every dimension is one kind of"
    " question, of which there are few: the intervals are wide.",
)


def write_page(root: Path, figures: Mapping, held_out: Sequence[RankedRecord], answers: Mapping[str, Sequence[str]]) -> None:
    """Write `report.html` into the quickstart's directory. `answers` maps a policy to one text per record of `held_out`."""
    root = Path(root)
    examples = open_examples(root / "data" / "held_out")
    questions = [question_from_record(record) for record in examples.records]
    marked = {
        policy: [Answer(text, is_correct(question, text)) for question, text in zip(questions, texts, strict=True)]
        for policy, texts in answers.items()
    }
    objective = config.load_experiment(root / "runs" / "mmdpo" / "config.yaml").objective
    found = Findings(
        family="LLaVA-OneVision",
        figures=figures,
        examples=examples,
        scored=held_out,
        kinds=by_kind(examples.records),
        margins=strict_json.loads((root / "runs" / "mmdpo" / MARGINS).read_bytes()),
        held_out_margins=summarise(margins_of(held_out), settled_scale(objective)),
        answers=marked,
        objective=objective,
        metrics={run: read_metrics(root / "runs" / run) for _, runs, _ in CURVES for run, _, _ in runs},
    )
    write_atomically(root / PAGE, quickstart_page(found).encode("utf-8", "replace"))


def write_evaluation(root: Path) -> None:
    """Write the page of the stored answers: the policy after MM-DPO against the one before, with plain DPO beside it."""
    folder, names = Path(root) / EVALUATION, {key: name for key, name, _ in POLICIES}
    runs = []
    for policy in ("after_mmdpo", "before", "after_dpo"):
        run = read_run(folder / policy, SUITE)
        runs.append(Shown(epath.Path(folder / policy), dataclasses.replace(run, name=names[policy])))
    trainings = [shown_run(Path(root) / "runs" / name) for name in ("mmdpo", "dpo")]
    write_atomically(folder / PAGE, page_of(SUITE, runs, trainings, notes=NOTES).encode("utf-8", "replace"))
