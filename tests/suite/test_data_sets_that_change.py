"""The documents of a data set are others when they are scored than when they were asked, as after a new revision on the hub."""

from __future__ import annotations

import json

import pytest

from mmrlhf_jax.suite.answers import Answer, Answered
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.reasons import APART, NOT_ANSWERED, OTHER_DOCUMENT
from tests.suite.support import harness, made_up
from tests.suite.support.harness import asked, tasks_of, verdict
from tests.suite.support.judged import judge, judging

pytestmark = harness.needed


def scored(tasks, task, answers, contents, tmp_path):
    with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
        return tasks.score(task, Answered(answers, contents=contents), judged)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    "name",
    ["mmmu_pro_vision", pytest.param("pope_adv", marks=pytest.mark.slow), pytest.param("websrc_val", marks=pytest.mark.slow)],
)
def test_an_answer_is_scored_with_the_document_that_was_asked_alone(running, tmp_path, name, form):
    """MMMU-Pro asks every document the same, with another picture."""
    task = TASKS[name]
    tasks = tasks_of(running, task, tmp_path / "data", form)
    path = tmp_path / "data" / f"{name}.{form}"
    _, requests = asked(tasks, task)
    answers = {
        one.document: Answer.to(one.request, made_up.documents(name)[int(one.document)]["answer"], "stop") for one in requests
    }
    contents = {one.document: one.content for one in requests}
    assert len(set(contents.values())) == len(contents) and None not in contents.values()
    assert contents == {one.document: one.content for one in asked(tasks, task)[1]}
    whole = scored(tasks, task, answers, contents, tmp_path)
    assert whole.coverage.missing == {}
    _rotate(path, form)
    found = scored(tasks, task, answers, contents, tmp_path)
    assert found.coverage.missing == {OTHER_DOCUMENT: len(requests)}
    assert found.figures[task.rows[0].name].value is None
    _, requests = asked(tasks, task)  # the answers are those of the documents before
    assert sorted(one.content for one in requests) == sorted(contents.values())
    assert [one.content for one in requests] == [contents[str((n + 1) % len(contents))] for n in range(len(contents))]


def _rotate(path, form: str) -> None:
    """Put the first document behind the others."""
    if form == "jsonl":
        lines = path.read_text().splitlines(True)
        path.write_text("".join(lines[1:] + lines[:1]))
    else:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        pyarrow.parquet.write_table(pyarrow.concat_tables([table.slice(1), table.slice(0, 1)]), path)


def test_a_picture_that_is_another_one_and_documents_that_are_new(running, tmp_path):
    task = TASKS["mme"]
    tasks = tasks_of(running, task, tmp_path / "data")
    _, requests = asked(tasks, task)
    answers = {one.document: Answer.to(one.request, "Yes", "stop") for one in requests}
    contents = {one.document: one.content for one in requests}
    made_up.picture(7).save(tmp_path / "data" / "mme-2-image.png")
    path = tmp_path / "data" / "mme.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows += [row | {"question_id": "code_reasoning/9.png"} for row in rows[4:]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = scored(tasks, task, answers, contents, tmp_path)
    assert found.coverage.missing == {OTHER_DOCUMENT: 1, APART: 1, NOT_ANSWERED: 2}
    assert [each.missing for each in found.documents[2:4]] == [OTHER_DOCUMENT, APART]
