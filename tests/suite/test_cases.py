"""The chosen cases are those that differ most, and of every benchmark some."""

from __future__ import annotations

import dataclasses

from mmrlhf_jax.suite.report.cases import Both, choose
from mmrlhf_jax.suite.results import Document, Figure, Results
from mmrlhf_jax.suite.task import Row

ACCURACY = Row("accuracy", "Accuracy", ("accuracy",), "general")
SCORE = Row("score", "Score", ("score",), "general", unit="of 5", full=5.0)
RATE = Row("rate", "Rate", ("rate",), "safety", higher_is_better=False)


def document(name, values, **more) -> Document:
    made = dict(id=name, cluster=name, prompt=f"ask {name}", media=(), answer="a", reference=None, values=values)
    return Document(**made | more)


def results(documents) -> Results:
    rows = {row for each in documents for row in each.values}
    return Results("task", "mmrlhf_jax", {}, {row: Figure(0.0) for row in rows}, tuple(documents))


def both(new: dict[str, dict], old: dict[str, dict], rows=(ACCURACY,), benchmark="Bench") -> Both:
    of = lambda values: results([document(name, each) for name, each in values.items()])
    return Both(benchmark, rows, of(new), of(old))


def names(chosen, direction=None) -> list[str]:
    return [case.model.id for case in chosen.cases if direction in (None, case.direction)]


def test_directions_are_those_of_the_row():
    new = {"a": {"rate": 100.0}, "b": {"rate": 0.0}, "c": {"rate": 100.0}}
    old = {"a": {"rate": 0.0}, "b": {"rate": 100.0}, "c": {"rate": 100.0}}
    found = choose([both(new, old, (RATE,))])
    assert names(found, "better") == ["b"] and names(found, "worse") == ["a"]
    assert found.counts == {"Bench": {"better": 1, "worse": 1}} and found.compared == 3


def test_the_widest_difference_is_measured_on_the_rows_own_scale():
    new = {"a": {"accuracy": 100.0, "score": 2.0}, "b": {"accuracy": 0.0, "score": 5.0}, "c": {"score": 3.0}}
    old = {"a": {"accuracy": 75.0, "score": 1.0}, "b": {"accuracy": 0.0, "score": 1.0}, "c": {"score": 3.5}}
    found = choose([both(new, old, (ACCURACY, SCORE))])
    assert [(case.model.id, case.row.name, case.share) for case in found.cases] == [
        ("b", "score", 1.0),
        ("a", "accuracy", 0.25),
        ("c", "score", -0.125),
    ]


def test_values_that_are_missing_and_documents_that_are_missing_are_not_compared():
    new = results(
        [
            document("a", {"accuracy": 100.0}),
            document("b", {"accuracy": None}),
            document("c", {}, answer=None, missing="no picture"),
            document("d", {"accuracy": 100.0}),
        ]
    )
    old = results(
        [
            document("b", {"accuracy": 0.0}),
            document("c", {"accuracy": 0.0}),
            document("d", {"accuracy": 0.0}),
            document("only here", {"accuracy": 0.0}),
        ]
    )
    found = choose([Both("Bench", (ACCURACY,), new, old)])
    assert names(found) == ["d"] and found.compared == 2


def test_benchmarks_and_directions_take_turns():
    def many(count: int, better: bool, benchmark: str) -> Both:
        values = {f"{benchmark}-{i:03}": {"accuracy": 100.0 * better} for i in range(count)}
        return both(values, {name: {"accuracy": 100.0 * (not better)} for name in values}, benchmark=benchmark)

    pairs = [many(500, True, "large"), many(3, False, "small"), many(50, False, "middle")]
    found = choose(pairs, most=12, most_each=6)
    assert [case.benchmark for case in found.cases] == ["large"] * 5 + ["small"] * 3 + ["middle"] * 4
    assert found.counts["large"] == {"better": 500, "worse": 0}
    capped = choose(pairs, most=100, most_each=6)
    assert [case.benchmark for case in capped.cases] == ["large"] * 6 + ["small"] * 3 + ["middle"] * 6
    equal = [int(name.rpartition("-")[2]) for name in names(capped)[:6]]
    assert equal != list(range(6)) and max(equal) > 100  # not the first ones
    backwards = dataclasses.replace(
        pairs[0], **{side: results(getattr(pairs[0], side).documents[::-1]) for side in ("model", "base")}
    )
    assert names(choose([backwards], most=6)) == names(choose(pairs[:1], most=6))


def test_tasks_of_one_benchmark_are_counted_together():
    pairs = [both({"a": {"accuracy": 1.0}}, {"a": {"accuracy": 0.0}}), both({"a": {"accuracy": 0.0}}, {"a": {"accuracy": 1.0}})]
    found = choose(pairs)
    assert found.counts == {"Bench": {"better": 1, "worse": 1}} and [case.share for case in found.cases] == [1.0, -1.0]


def test_without_differences_there_are_no_cases():
    found = choose([both({"a": {"accuracy": 1.0}}, {"a": {"accuracy": 1.0}})])
    assert found.cases == [] and found.compared == 1 and choose([]).cases == []
