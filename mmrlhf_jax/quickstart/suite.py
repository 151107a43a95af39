"""The quickstart's suite of benchmarks: every kind of question is one, and a dimension of its own.

Its answers are stored and summed up like those to the benchmarks of `mmrlhf eval benchmarks`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax.data.built_examples import BuiltExamples
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.pages.small_pictures import SmallPicture, small_pictures
from mmrlhf_jax.quickstart.questions import KINDS, by_kind, is_correct, question_from_record
from mmrlhf_jax.suite import run_directory
from mmrlhf_jax.suite.dimensions import Axis, Suite
from mmrlhf_jax.suite.pictures import FOLDER
from mmrlhf_jax.suite.resampling import figure
from mmrlhf_jax.suite.results import Document, Results, write
from mmrlhf_jax.suite.stored_suite import write_suite
from mmrlhf_jax.suite.task import Benchmark, Data, Row, Task, single

TITLES = {
    "colour": "Colour",
    "count": "Count",
    "place": "Place",
    "comparison": "Comparison",
    "existence": "Existence",
    "description": "Description",
    "unsafe": "Refusal",
}


def _benchmark(kind: str) -> Benchmark:
    row = Row(f"{kind}_right", TITLES[kind], ("right",), kind)
    data = Data("quickstart", None, "held_out")
    columns = {"image": "image", "prompt": "text", "question": "object: kind, truth"}
    return single(TITLES[kind], Task(kind, None, data, (row,), "image", "none", None, columns, own_metrics=True))


SUITE = Suite(
    "The quickstart's questions",
    tuple(_benchmark(kind) for kind in KINDS),
    TITLES,
    tuple(Axis(kind, TITLES[kind], kind) for kind in KINDS),
)


def answered(examples: BuiltExamples, answers: Sequence[str], settings: Mapping[str, Any]) -> list[Results]:
    """The results of a policy's answers, one per example, by kind of question. `settings` is what the figures depend on besides
    the policy."""
    found = []
    for kind, indices in by_kind(examples.records).items():
        documents = tuple(_document(kind, examples[i], answers[i]) for i in indices)
        (row,) = SUITE.tasks[kind].rows
        share = sum(document.values[row.name] for document in documents) / len(documents)
        found.append(Results(kind, "mmrlhf_jax", settings, {row.name: figure(row, documents, share)}, documents))
    return found


def _document(kind: str, example: Example, answer: str) -> Document:
    """Questions about one picture are drawn together. The reference is a response that the data ranks best."""
    record = example.record
    best = min(record.responses, key=lambda response: response.rank or len(record.responses) + 1)
    values = {f"{kind}_right": 100.0 * is_correct(question_from_record(record), answer)}
    names = tuple(_name(shown) for shown in small_pictures(example))
    return Document(record.id, ", ".join(record.images), record.prompt, names, answer, best.text, values)


def _name(shown: SmallPicture) -> str:
    return f"{hashlib.sha256(shown.jpeg).hexdigest()}.jpg"


def write_run(
    directory: epath.PathLike,
    examples: BuiltExamples,
    results: Sequence[Results],
    model: str,
    settings: Mapping[str, Any],
) -> None:
    """Write results as the directory of a run, which `mmrlhf report` reads. `model` is the policy's name, and `settings` are
    what its answers were made with."""
    directory = epath.Path(directory)
    for example in examples:
        for shown in small_pictures(example):
            write_atomically(directory / FOLDER / _name(shown), shown.jpeg)
    for each in results:
        write(directory, each)
    write_suite(directory, SUITE)
    run_directory.begin(directory, model, settings)
