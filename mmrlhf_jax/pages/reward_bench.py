"""The page of a reward model's evaluation: its figures, published ones beside them, and every prompt with its verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from markupsafe import Markup

from mmrlhf_jax.pages.filters import Filter, filtered, rules
from mmrlhf_jax.pages.parts import chip, element, join, page, percent, signed, table, tiles
from mmrlhf_jax.records import Pair, RankedRecord

Verdict = Literal["right", "wrong", "tie", "not scored"]
VERDICTS: tuple[Verdict, ...] = ("right", "wrong", "tie", "not scored")
_GOOD: Mapping[Verdict, bool | None] = {"right": True, "wrong": False, "tie": None, "not scored": None}


@dataclasses.dataclass(frozen=True)
class Case:
    """One record with its rewards.

    Attributes:
        verdicts: of each of its pairs.
        group: the group that it counts in.
        pictures: figures of its media.
        reason: why it is not scored; None: it is.
        truncated: the responses of which a critique was cut off.
        samples: (critique, reward) of the several critiques of each response; (): there are not several.
    """

    record: RankedRecord
    verdicts: Mapping[Pair, Verdict]
    group: str
    pictures: Sequence[Markup] = ()
    reason: str | None = None
    truncated: Sequence[int] = ()
    samples: Sequence[Sequence[tuple[str, float]]] = ()


@dataclasses.dataclass(frozen=True)
class Beside:
    """A published table: its head, its rows, and the row of figures to stand above them."""

    title: str
    source: str
    note: str
    columns: Sequence[str]
    ours: Sequence[float | None]
    rows: Sequence[tuple[str, Sequence[float | None]]]


def reward_bench_page(
    title: str, model: str, figures: Mapping[str, Any], tables: Sequence[Beside], cases: Iterable[Case]
) -> str:
    """The document. `figures` are those that `mmrlhf eval reward-bench --json` prints, `model` is the model's name."""
    cases = list(cases)
    groups = list(dict.fromkeys(case.group for case in cases))
    ordered = [name for name in figures["groups"] if name in groups] + [
        name for name in groups if name not in figures["groups"]
    ]
    numbers = {name: f"g-{number}" for number, name in enumerate(ordered)}
    filters = _filters(cases, numbers)
    sections = {
        "Figures": join(_figures(figures), _how(figures["run"])),
        **({"Published figures": join(*[_beside(each, model) for each in tables])} if tables else {}),
        "Cases": _cases(cases, numbers, filters),
    }
    style = STYLE + rules(filters, [_classes(case, numbers) for case in cases])
    return page(f"{title}: {model}", _opening(figures), sections, style)


# Figures ----------------------------------------------------------------------------------------------------------------


def _opening(figures: Mapping[str, Any]) -> Markup:
    overall, macro = figures["overall"], figures["macro"]
    cells = [
        ("ACC", percent(overall["acc"]), f"{overall['right']:,} of {overall['scored']:,} pairs; {_likely(overall, 'acc')}"),
        ("ACC+", percent(overall["acc_plus"]), f"prompts with all pairs right; {_likely(overall, 'acc_plus')}"),
        ("Mean of groups", percent(macro["acc"]), f"{_groups(macro)}; {_likely(macro, 'acc')}"),
        ("Ties", f"{overall['ties']:,}", "equal rewards, which are not right"),
        ("Scored", _coverage(overall), f"{overall['scored']:,} of {overall['pairs']:,} pairs; others are not in the figures"),
        ("Longer wins", percent(overall["longer_wins"]), "right if the longer answer always won"),
    ]
    parts = [tiles(cells)]
    if figures["run"].get("blind"):
        parts.append(element("p", "The model was shown the media of other prompts (--blind).", class_="bad"))
    if remarks := [element("li", text) for text in figures["run"]["differences"]]:
        parts += [element("p", "Before these figures are compared with others:", class_="bad"), element("ul", *remarks)]
    return join(*parts)


def _coverage(row: Mapping[str, Any]) -> str:
    """The share of pairs that are scored; 100 % only if all are."""
    if not row["pairs"]:
        return "–"
    share = 100 * row["scored"] / row["pairs"]
    return f"{share if share == 100 else min(share, 99.9):.{0 if share == 100 else 1}f} %"


def _groups(macro: Mapping[str, Any]) -> str:
    return f"{macro['groups']} group{'' if macro['groups'] == 1 else 's'}"


def _likely(row: Mapping[str, Any], name: str) -> str:
    return "no interval" if row[f"{name}_interval"] is None else f"95 % interval {_interval(row, name)}"


def _interval(row: Mapping[str, Any], name: str) -> str:
    interval = row[f"{name}_interval"]
    return "no interval" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def _figures(figures: Mapping[str, Any]) -> Markup:
    head = ("group", "pairs", "prompts", "scored", "right", "ties", "ACC", "95 %", "ACC+", "95 %", "longer wins")
    rows = [(*_name(name, row["part"]), *_row(row)) for name, row in figures["groups"].items()]
    rows.append((element("b", "all pairs"), *_row(figures["overall"])))
    macro = figures["macro"]
    means = ("", "", "", "", "", *_shares(macro), "")
    rows.append((element("b", f"mean of {_groups(macro)}"), *means))
    text = "Intervals are of 95 %, by drawing prompts (not pairs) with repetition. A tie is not right."
    if figures["overall"]["ties"]:
        text += f" Of the pairs that are not tied {percent(figures['overall']['acc_without_ties'])} are right."
    return join(element("p", text, class_="muted"), table(head, rows, class_="numbers"))


def _name(name: str, part: bool) -> tuple[Markup]:
    return (element("span", name, class_="part" if part else None),)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    counts = tuple(f"{row[name]:,}" for name in ("pairs", "groups", "scored", "right", "ties"))
    return (*counts, *_shares(row), percent(row["longer_wins"]))


def _shares(row: Mapping[str, Any]) -> tuple[str, ...]:
    return percent(row["acc"]), _interval(row, "acc"), percent(row["acc_plus"]), _interval(row, "acc_plus")


def _how(run: Mapping[str, Any]) -> Markup:
    rows = [
        (name.replace("_", " "), "–" if value is None else str(value)) for name, value in run.items() if name != "differences"
    ]
    return join(element("h3", "How they were made"), table((), rows))


def _beside(each: Beside, model: str) -> Markup:
    ours = (element("b", model), *[element("b", percent(value)) for value in each.ours])
    whole = all(value is None or round(100 * value, 6).is_integer() for _, values in each.rows for value in values)
    rows = [ours, *[(name, *[_as_printed(value, whole) for value in values]) for name, values in each.rows]]
    parts = [element("h3", each.title), table(("model", *each.columns), rows, class_="numbers ours")]
    return join(*parts, element("p", element("small", " ".join(filter(None, [f"Source: {each.source}.", each.note])))))


def _as_printed(value: float | None, whole: bool) -> str:
    """A published figure in percent. Its table has whole percents (`whole`), or one digit behind the point, and some two."""
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" if whole else f"{100 * value:.2f}".removesuffix("0") + " %"


# Cases ------------------------------------------------------------------------------------------------------------------


def _cases(cases: Sequence[Case], numbers: Mapping[str, str], filters: Sequence[Filter]) -> Markup:
    text = (
        "Every record with its answers from best to worst, their rewards, and the critiques that these were computed with. One"
        " with several pairs is found under each of their verdicts."
    )
    return join(element("p", text, class_="muted"), filtered(filters, [_case(case, numbers) for case in cases]))


def _filters(cases: Sequence[Case], numbers: Mapping[str, str]) -> list[Filter]:
    """By verdict, and by group if there are several."""
    counts = {verdict: sum(verdict in case.verdicts.values() for case in cases) for verdict in VERDICTS}
    options = [(_class(verdict), f"{verdict} ({count:,})") for verdict, count in counts.items() if count]
    groups = [(number, name) for name, number in numbers.items()]
    by_group = [Filter("group", "Group", "all groups", groups)] if len(groups) > 1 else []
    return [Filter("show", "Pairs", f"all ({len(cases):,})", options), *by_group]


def _classes(case: Case, numbers: Mapping[str, str]) -> list[str]:
    """Those that the filters choose by."""
    return [numbers[case.group], *dict.fromkeys(map(_class, case.verdicts.values()))]


def _class(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _case(case: Case, numbers: Mapping[str, str]) -> Markup:
    record = case.record
    verdicts = list(case.verdicts.values())
    marks = [chip(_counted(v, verdicts.count(v), len(verdicts)), _GOOD[v]) for v in VERDICTS if v in verdicts]
    head = element("header", element("b", record.id), *(marks or [chip("no pair")]), chip(case.group))
    order = sorted(
        range(len(record.responses)), key=lambda index: (record.responses[index].rank or len(record.responses), index)
    )
    letters = {index: _letter(place) for place, index in enumerate(order)}
    body = [element("p", record.prompt, class_="text prompt")]
    body += [element("p", case.reason, class_="bad")] if case.reason else []
    body += [_response(case, index, letters[index]) for index in order]
    body += [_pairs(case, letters)] if len(verdicts) > 1 else []
    media = element("div", *case.pictures, class_="media") if case.pictures else ""
    return element(
        "article", head, media, element("div", *body, class_="said"), class_=" ".join(["case", *_classes(case, numbers)])
    )


def _counted(verdict: Verdict, count: int, of: int) -> str:
    return verdict if of == 1 else f"{count} of {of} {verdict}"


def _letter(place: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    found = chr(ord("A") + place % 26)
    return found if place < 26 else _letter(place // 26 - 1) + found


def _response(case: Case, index: int, letter: str) -> Markup:
    response, samples = case.record.responses[index], case.samples[index] if case.samples else ()
    rank = chip("not ranked" if response.rank is None else f"rank {response.rank}", True if response.rank == 1 else None)
    reward = element("span", "–" if response.reward is None else _signed(response.reward), class_="reward", title="reward")
    chips = [chip(response.model)] if response.model else []
    chips += [chip("critique cut off", False)] if index in case.truncated else []
    parts = [element("header", element("b", letter), rank, *chips, reward)]
    parts.append(element("p", response.text, class_="text"))
    if samples:
        parts += [element("blockquote", element("b", _signed(value)), " ", text, class_="text") for text, value in samples]
    elif response.critique is not None:
        parts.append(element("blockquote", response.critique, class_="text"))
    return element("div", *parts, class_="answer")


def _signed(reward: float) -> str:
    """With three digits behind the point, so that rewards that hardly differ do not look like a tie."""
    return signed(reward, 3)


def _pairs(case: Case, letters: Mapping[int, str]) -> Markup:
    rows = []
    for (chosen, rejected), verdict in case.verdicts.items():
        better, worse = (case.record.responses[index].reward for index in (chosen, rejected))
        margin = "–" if better is None or worse is None else _signed(better - worse)
        rows.append((f"{letters[chosen]} over {letters[rejected]}", margin, chip(verdict, _GOOD[verdict])))
    return table(("pair", "margin", ""), rows, class_="numbers pairs")


STYLE = """
h1{overflow-wrap:anywhere}.numbers td,.numbers th{white-space:nowrap}.ours td:first-child{white-space:normal;min-width:9rem}
.pairs{max-width:24rem}.part{padding-left:1.2em;color:var(--muted)}
.ours tbody tr:first-child td{background:var(--good-bg)}
.case{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 16px;margin:14px 0;display:grid;
grid-template-columns:minmax(160px,300px) minmax(0,1fr);gap:10px 18px;content-visibility:auto;contain-intrinsic-size:auto 500px}
.case>header{grid-column:1/-1}.case>.said:nth-child(2){grid-column:1/-1}
header{display:flex;flex-wrap:wrap;gap:6px;align-items:center}.case>header b{overflow-wrap:anywhere;margin-right:auto}
.media{display:grid;gap:8px;align-content:start}.media figure{padding:6px}.media figcaption{overflow-wrap:anywhere}
.text{white-space:pre-wrap;overflow-wrap:anywhere;max-width:none;margin:.3rem 0}.prompt{font-weight:600}
.answer{border-top:1px solid var(--rule);padding:8px 0}
.reward{margin-left:auto;font-variant-numeric:tabular-nums;font-weight:600}
blockquote{border-left:3px solid var(--rule);padding-left:12px;margin:.4rem 0;color:var(--muted);font-size:.9rem}
@media (max-width:640px){main{padding:20px 12px 40px}.case{grid-template-columns:minmax(0,1fr);padding:12px}}
@media print{nav{display:none}body{background:#fff}main{max-width:none;padding:0}
.case{content-visibility:visible;break-inside:avoid;grid-template-columns:30% 1fr}.scroll{overflow:visible}}
"""
