"""What is written of a task is read again as it was, and what does not belong together, or is no number, is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mmrlhf_jax.data.digests import digest
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite.results import Document, Figure, Results, documents_path, figures_path, read, tasks_in, write

ANSWERED = Document(
    id="7", cluster="p1", prompt="Où ?", media=("ab.jpg",), answer="", reference="là", values={"score": 2.5, "rate": None}
)
LOST = Document(
    id="8", cluster="p1", prompt="Who?", media=(), answer="no one", reference=None, values={}, missing="the judge failed"
)
RESULTS = Results(
    task="mmhal_bench",
    harness="mmrlhf_jax",
    settings={"mode": "paper", "judge": "gpt-4o", "generation": {"max_new_tokens": 1024}},
    figures={"score": Figure(2.5, draws=(2.0, 3.0)), "rate": Figure(None, missing="no document has a rate")},
    documents=(ANSWERED, LOST),
    left_out={"beyond --limit 2": 94},
)


def changed(tmp_path, path, change):
    """Write the results, and change the JSON in one of their files, with the digest that belongs to it."""
    write(tmp_path, RESULTS)
    lines, figures = documents_path(tmp_path, RESULTS.task), figures_path(tmp_path, RESULTS.task)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    stored = json.loads(figures.read_text())
    change(rows if path == "documents" else stored)
    if path == "documents":
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        stored["documents"]["digest"] = digest(lines.read_bytes())
    figures.write_text(json.dumps(stored))


def test_what_is_written_is_read(tmp_path):
    write(tmp_path, RESULTS)
    assert read(tmp_path, "mmhal_bench") == RESULTS
    assert tasks_in(tmp_path) == ["mmhal_bench"]


def test_weights_and_groups_are_kept(tmp_path):
    weighed = dataclasses.replace(ANSWERED, weights={"score": 3.0}, group="Art")
    results = dataclasses.replace(RESULTS, documents=(weighed,))
    write(tmp_path, results)
    assert read(tmp_path, "mmhal_bench").documents == (weighed,)


def test_the_coverage_counts_every_document_once(tmp_path):
    coverage = RESULTS.coverage
    assert (coverage.expected, coverage.answered, coverage.scored) == (96, 2, 1)
    assert coverage.missing == {"the judge failed": 1, "beyond --limit 2": 94}
    write(tmp_path, RESULTS)
    stored = json.loads(figures_path(tmp_path, "mmhal_bench").read_text())
    assert stored["version"] == 1 and stored["documents"].items() >= dataclasses.asdict(coverage).items()


def test_the_lines_are_those_of_the_contract(tmp_path):
    write(tmp_path, RESULTS)
    first = json.loads(documents_path(tmp_path, "mmhal_bench").read_text().splitlines()[0])
    assert first == {
        "document": "7", "cluster": "p1", "prompt": "Où ?", "media": ["ab.jpg"], "answer": "", "reference": "là",
        "values": {"score": 2.5, "rate": None}, "missing": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"figures": {"score": Figure(float("nan")), "rate": Figure(1.0)}}, r"mmhal_bench\.json: rows\.score\.value is nan"),
        ({"figures": {"score": Figure(1e39), "rate": Figure(1.0)}}, r"rows\.score\.value: .*finite number"),
        ({"figures": {"score": Figure(1.0, draws=(1.0, float("inf"))), "rate": Figure(1.0)}}, r"rows\.score\.draws\.1 is inf"),
        ({"figures": {"score": Figure(None), "rate": Figure(1.0)}}, r"rows\.score must have either a value or the reason"),
        ({"figures": {"score": Figure(1.0, "why"), "rate": Figure(1.0)}}, r"rows\.score must have either"),
        ({"figures": {"score": Figure(None, "why", (1.0,)), "rate": Figure(1.0)}}, r"rows\.score\.draws must be null"),
        ({"figures": {"score": Figure(1.0)}}, r"document '7' has a value for 'rate', which is no row"),
        ({"documents": (ANSWERED, ANSWERED)}, "line 2: document '7' stands there twice"),
        ({"documents": (dataclasses.replace(LOST, values={"score": 1.0}),)}, "document '8' is missing .* but has values"),
        ({"documents": (dataclasses.replace(ANSWERED, answer=None),)}, "document '7' has no answer, and no reason"),
        ({"documents": (dataclasses.replace(ANSWERED, weights={"score": -1.0}),)}, r"line 1: weights\.score"),
        ({"documents": (dataclasses.replace(ANSWERED, values={"score": True}),)}, r"line 1: values\.score.*, found True"),
        ({"documents": (dataclasses.replace(ANSWERED, answer="\ud800"),)}, "document '7': holds half of a character"),
        ({"left_out": {"why": -1}}, r"documents\.missing\.why.*found -1"),
        ({"settings": {"temperature": float("inf")}}, r"settings\.temperature is inf"),
    ],
)
def test_what_contradicts_itself_or_is_not_finite_is_not_written(tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path, dataclasses.replace(RESULTS, **wrong))
    assert tasks_in(tmp_path) == []


@pytest.mark.parametrize(
    "path, change, message",
    [
        ("figures", lambda stored: stored.update(version=2), "version is 2, and 1 is read"),
        ("figures", lambda stored: stored.update(task="mme"), "task is 'mme'; the file has been renamed"),
        ("figures", lambda stored: stored.pop("harness"), "mmhal_bench.json: harness: Field required"),
        ("figures", lambda stored: stored["rows"]["score"].update(value="2.5"), r"rows\.score\.value.*found '2\.5'"),
        ("figures", lambda stored: stored["rows"]["score"].update(draws=3), r"rows\.score\.draws.*found 3"),
        ("figures", lambda stored: stored["rows"]["score"].update(extra=3), r"rows\.score\.extra"),
        ("figures", lambda stored: stored["documents"].update(scored=2), r"documents\.scored is 2, but .* gives 1"),
        ("documents", lambda rows: rows[0].pop("prompt"), r"documents\.jsonl: line 1: prompt: Field required"),
        ("documents", lambda rows: rows[1].update(document=8), "line 2: document: .*found 8"),
        ("documents", lambda rows: rows.pop(), r"documents\.expected is 96, but mmhal_bench.documents.jsonl gives 95"),
    ],
)
def test_what_others_have_changed_is_refused_by_file_and_key(tmp_path, path, change, message):
    changed(tmp_path, path, change)
    with pytest.raises(UserError, match=message):
        read(tmp_path, "mmhal_bench")


def test_files_that_were_not_written_together_are_refused(tmp_path):
    write(tmp_path, RESULTS)
    kept = figures_path(tmp_path, "mmhal_bench").read_bytes()
    write(tmp_path, dataclasses.replace(RESULTS, documents=(ANSWERED,)))
    figures_path(tmp_path, "mmhal_bench").write_bytes(kept)
    with pytest.raises(UserError, match=r"is not the file that mmhal_bench\.json was written with"):
        read(tmp_path, "mmhal_bench")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1, "version": 1}', '{"version": NaN}'])
def test_what_is_no_object_is_refused(tmp_path, content):
    write(tmp_path, RESULTS)
    figures_path(tmp_path, "mmhal_bench").write_text(content)
    with pytest.raises(UserError, match=r"mmhal_bench\.json: "):
        read(tmp_path, "mmhal_bench")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"mme\.json: is missing"):
        read(tmp_path, "mme")
    write(tmp_path, RESULTS)
    documents_path(tmp_path, "mmhal_bench").unlink()
    with pytest.raises(UserError, match=r"mmhal_bench\.documents\.jsonl: is missing"):
        read(tmp_path, "mmhal_bench")
