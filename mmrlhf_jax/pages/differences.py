"""The cases in which two models differ most: what was asked, the pictures, both answers, the reference, and the values."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from markupsafe import Markup

from mmrlhf_jax.pages.compared import signed_text, value_text, verdict_chip
from mmrlhf_jax.pages.filters import Filter, filtered, rules
from mmrlhf_jax.pages.parts import chip, element, join, picture

Direction = Literal["better", "worse"]
# Most characters of a text that are shown; from how many on it has a height to scroll in.
MOST_CHARACTERS, LONG = 4000, 900
PRINTED = 2  # cases of a benchmark that are printed


@dataclasses.dataclass(frozen=True)
class ShownAnswer:
    """An answer, and the values that it was given: (name of the row, value)."""

    by: str
    text: str
    values: Sequence[tuple[str, float | None]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A document to which two models gave answers of different value.

    Attributes:
        benchmark: the title of its benchmark.
        document: its id.
        row: the row in which the answers differ, and by how much.
        direction: whether the first answer is better or worse than the second one.
        pictures: (encoded picture, what is said of it).
        more: how many other pictures it has.
    """

    benchmark: str
    document: str
    prompt: str
    reference: str | None
    row: str
    by: float
    direction: Direction
    answers: Sequence[ShownAnswer]
    pictures: Sequence[tuple[bytes, str]] = ()
    more: int = 0


@dataclasses.dataclass(frozen=True)
class Differences:
    """The chosen cases, and of every benchmark how many documents there are of each direction.

    `compared` counts the documents that both models have a value for.
    """

    cases: Sequence[Difference]
    counts: Mapping[str, Mapping[Direction, int]]
    compared: int
    remarks: Sequence[str] = ()


def differences(found: Differences, names: tuple[str, str]) -> tuple[Markup, str]:
    """(the section, its style sheet). `names` are those of the two models."""
    total = {direction: sum(counts[direction] for counts in found.counts.values()) for direction in ("better", "worse")}
    shown = {direction: sum(case.direction == direction for case in found.cases) for direction in total}
    text = (
        f"Of {found.compared:,} documents that both models have values for, {names[0]} is better on {total['better']:,} and"
        f" worse on {total['worse']:,}. Below are the {shown['better']:,} and {shown['worse']:,} of these that differ most in"
        " their benchmark."
    )
    remarks = [element("p", remark, class_="muted") for remark in found.remarks]
    if not found.cases:
        return join(element("p", text), *remarks), STYLE
    numbers = {name: f"of-{i}" for i, name in enumerate(dict.fromkeys(case.benchmark for case in found.cases))}
    labels = {"better": f"better ({shown['better']:,})", "worse": f"worse ({shown['worse']:,})"}
    filters = [
        Filter("direction", f"{names[0]} is", f"better or worse ({len(found.cases):,})", list(labels.items())),
        Filter("benchmark", "Benchmark", "all benchmarks", [(_id, _counted(name, found)) for name, _id in numbers.items()]),
    ]
    classes = [(case.direction, numbers[case.benchmark]) for case in found.cases]
    cases = [_case(case, each) for case, each in zip(found.cases, _printed(found.cases, classes), strict=True)]
    in_print = element("p", f"The printed page has the first {PRINTED} of every benchmark.", class_="muted in-print")
    return join(element("p", text), *remarks, in_print, filtered(filters, cases)), STYLE + rules(filters, classes)


def _printed(cases: Sequence[Difference], classes: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The classes of cases, with one more for those that are not printed."""
    seen: Counter[str] = Counter()
    for case, each in zip(cases, classes, strict=True):
        seen[case.benchmark] += 1
        yield each if seen[case.benchmark] <= PRINTED else (*each, "beyond")


def _counted(name: str, found: Differences) -> str:
    of = found.counts.get(name, {"better": 0, "worse": 0})
    shown = sum(case.benchmark == name for case in found.cases)
    return f"{name} ({shown:,} of {of['better'] + of['worse']:,})"


def _case(case: Difference, classes: Sequence[str]) -> Markup:
    mark = verdict_chip(case.direction)
    head = element("h3", element("bdi", case.benchmark), ", document ", element("bdi", case.document, class_="id"))
    title = element("header", head, chip(f"{case.row} {signed_text(case.by)}"), mark)
    media = [element("figure", picture(*each)) for each in case.pictures]
    media += [element("p", f"and {case.more} more", class_="muted")] if case.more else []
    said = [_text("p", case.prompt, "text prompt")]
    said += [_answer(answer) for answer in case.answers]
    if case.reference is not None:
        said.append(element("div", element("h4", "Reference"), _text("p", case.reference, "text"), class_="answer reference"))
    parts = [title, *([element("div", *media, class_="media")] if media else []), element("div", *said, class_="said")]
    return element("article", *parts, class_=" ".join(("case", *classes)))


def _answer(answer: ShownAnswer) -> Markup:
    values = [chip(f"{row} {'–' if value is None else value_text(value)}") for row, value in answer.values]
    head = element("header", element("h4", element("bdi", answer.by)), *values)
    text = _text("p", answer.text, "text") if answer.text.strip() else element("p", "(an empty answer)", class_="muted")
    return element("div", head, text, class_="answer")


def _text(name: str, text: str, class_: str) -> Markup:
    """A text from outside, in its own direction of writing; a long one can be scrolled, a very long one is cut off."""
    text = text.strip("\n")
    more = len(text) - MOST_CHARACTERS
    rest = element("small", f" … ({more:,} more characters)") if more > 0 else ""
    if len(text) <= LONG:
        return element(name, text, class_=class_, dir="auto")
    return element(name, text[:MOST_CHARACTERS], rest, class_=f"{class_} long", dir="auto", tabindex=0)


STYLE = """
.case{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 16px;margin:14px 0;display:grid;
grid-template-columns:minmax(140px,280px) minmax(0,1fr);gap:10px 18px}
.case>header{grid-column:1/-1}.case>.said:nth-child(2){grid-column:1/-1}
.case header{display:flex;flex-wrap:wrap;gap:4px 6px;align-items:center}.case .chip{white-space:normal;overflow-wrap:anywhere}
.case h3{margin:0 auto 0 0;overflow-wrap:anywhere}.case h3 .id{font-weight:400;color:var(--muted)}
.case h4{margin:0 auto 0 0;font-size:.84rem;overflow-wrap:anywhere}
.media{display:grid;gap:8px;align-content:start}.media figure{padding:6px}
.text{white-space:pre-wrap;overflow-wrap:anywhere;max-width:none;margin:.3rem 0;unicode-bidi:plaintext}
.prompt{font-weight:600}
.long{max-height:18rem;overflow-y:auto}.answer{border-top:1px solid var(--rule);padding:8px 0}.reference{color:var(--muted)}
.reference h4{margin:0}
@media (max-width:640px){.case{grid-template-columns:minmax(0,1fr);padding:12px}.media img{max-height:60vh;object-fit:contain}
}
.in-print{display:none}
@media print{.long{max-height:none;overflow:visible}.case{grid-template-columns:26% 1fr;font-size:.85rem}
.case.beyond{display:none}
.media img{max-height:42mm;object-fit:contain}.case header{break-after:avoid}.in-print{display:block}}
"""
