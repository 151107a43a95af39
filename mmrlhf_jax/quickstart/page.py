"""Writes the quickstart's `report.html` from the results in its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrlhf_jax import config
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.pages.quickstart import CURVES, Answer, Findings, quickstart_page
from mmrlhf_jax.quickstart.questions import by_kind, is_correct, question_from_record
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.training.metrics import read_metrics


def write_page(root: Path, figures: Mapping, held_out: Sequence[RankedRecord], answers: Mapping[str, Sequence[str]]) -> None:
    """Write `report.html` into the quickstart's directory. `answers` maps a policy to one text per record of `held_out`."""
    root = Path(root)
    examples = open_examples(root / "data" / "held_out")
    questions = [question_from_record(record) for record in examples.records]
    marked = {
        policy: [Answer(text, is_correct(question, text)) for question, text in zip(questions, texts, strict=True)]
        for policy, texts in answers.items()
    }
    found = Findings(
        family="LLaVA-OneVision",
        figures=figures,
        examples=examples,
        scored=held_out,
        kinds=by_kind(examples.records),
        answers=marked,
        objective=config.load_experiment(root / "runs" / "mmdpo" / "config.yaml").objective,
        metrics={run: read_metrics(root / "runs" / run) for _, runs, _ in CURVES for run, _, _ in runs},
    )
    write_atomically(root / "report.html", quickstart_page(found).encode("utf-8", "replace"))
