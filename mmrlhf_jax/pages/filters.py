"""Controls that choose which cases of a page are shown. The style sheet hides the others, so that no script is needed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Sequence

from markupsafe import Markup

from mmrlhf_jax.pages.parts import element

ALL = "all"
_MOST_BUTTONS = 8  # with more options there is a list to choose from, which takes one line


@dataclasses.dataclass(frozen=True)
class Filter:
    """One choice.

    Attributes:
        name: of the control.
        title: what is chosen, in words.
        everything: the label of the option that shows all cases, which is chosen at first.
        options: (class of the cases to show, label).
    """

    name: str
    title: str
    everything: str
    options: Sequence[tuple[str, str]]

    @property
    def _all_options(self) -> list[tuple[str, str]]:
        return [(ALL, self.everything), *self.options]

    @property
    def is_list(self) -> bool:
        return len(self.options) > _MOST_BUTTONS

    def chosen(self, value: str) -> str:
        """The selector of the chosen option `value`."""
        return f"#{self.name}-{value}:checked"

    def control(self) -> Markup:
        if self.is_list:
            options = [element("option", label, id=f"{self.name}-{value}") for value, label in self._all_options]
            return element("label", element("span", self.title), " ", element("select", *options), class_="list")
        buttons = [part for value, label in self._all_options for part in self._button(value, label)]
        return element("fieldset", element("legend", self.title), *buttons)

    def _button(self, value: str, label: str) -> tuple[Markup, Markup]:
        name, checked = f"{self.name}-{value}", "checked" if value == ALL else None
        button = element("input", type="radio", name=self.name, id=name, class_="choice", checked=checked)
        return button, element("label", label, **{"for": name}, class_="chip")


def filtered(filters: Sequence[Filter], cases: Sequence[Markup]) -> Markup:
    """The controls, and the cases that they choose from: elements of the class "case" and of the classes of options."""
    none = element("p", "There is no such case.", class_="none")
    controls = element("div", *[each.control() for each in filters], class_="filters")
    return element("div", controls, element("div", *cases, class_="cases"), none, class_="filtered")


def rules(filters: Sequence[Filter], found: Sequence[Collection[str]]) -> str:
    """The style sheet of `filtered`. `found` are the classes of every case."""
    hidden = [f".filtered:has({each.chosen(value)}) .case:not(.{value})" for each in filters for value, _ in each.options]
    choices = itertools.product(*[[ALL, *[value for value, _ in each.options]] for each in filters])
    shown = {choice for classes in map(set, found) for choice in itertools.product(*[_of(each, classes) for each in filters])}
    empty = [
        ".filtered" + "".join(f":has({each.chosen(value)})" for each, value in zip(filters, choice, strict=True)) + " .none"
        for choice in choices
        if choice not in shown
    ]
    style = STYLE + (f"{','.join(hidden)}{{display:none}}" if hidden else "")
    return style + (f"{','.join(empty)}{{display:block}}" if empty else "")


def _of(each: Filter, classes: set[str]) -> list[str]:
    """The options of a filter that show a case with these classes."""
    return [ALL, *[value for value, _ in each.options if value in classes]]


STYLE = """
.filters{display:flex;flex-wrap:wrap;gap:10px 24px;align-items:center;margin:12px 0}
fieldset{border:0;margin:0;padding:0;min-width:0;display:flex;flex-wrap:wrap;gap:6px;align-items:center}
legend,.list span{font-size:.82rem;color:var(--muted);padding:0;margin-right:8px}legend{float:left}
.list{max-width:100%;display:flex;align-items:center}
select{font:inherit;font-size:.88rem;max-width:100%;min-width:0;color:var(--ink);background:var(--card);
border:1px solid var(--muted);
border-radius:8px;padding:6px 8px}
.choice{position:absolute;opacity:0}.choice+label{cursor:pointer;padding:3px 12px;border-color:var(--muted)}
.choice:checked+label{background:var(--ink);color:var(--bg);border-color:var(--ink)}
.choice:focus-visible+label{outline:2px solid var(--c1);outline-offset:2px}.none{display:none}
@media print{.filters{display:none}}
"""
