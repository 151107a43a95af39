"""A run's page: its settings, the curves of its metrics, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from mmrlhf_jax import config, sections
from mmrlhf_jax.pages.charts import Line, Point, binned, line_chart
from mmrlhf_jax.pages.margins import margin_section
from mmrlhf_jax.pages.parts import duration, element, join, number, page, percent, table, tiles

SHARES = (0.0, 1.0)
# Section -> charts: (title, range of the y axis, metrics by the names of their curves). Metrics that were not logged are
# omitted.
CHARTS: dict[str, tuple[tuple[str, tuple[float, float] | None, dict[str, str]], ...]] = {
    "Loss": (
        ("loss", None, {"training": "loss", "held out": "eval_loss"}),
        ("loss of the score", None, {"training": "score/loss", "held out": "eval_score/loss"}),
        ("loss of the critique", None, {"training": "critique/loss", "held out": "eval_critique/loss"}),
        ("gradient norm", None, {"of all parts": "grad_norm"}),
        ("learning rate", None, {"of the language model": "learning_rate"}),
    ),
    "Preferences": (
        ("pairs in the right order", SHARES, {"training": "rewards/accuracies", "held out": "eval_rewards/accuracies"}),
        ("implicit reward margin", None, {"training": "rewards/margins", "held out": "eval_rewards/margins"}),
        ("implicit rewards", None, {"chosen": "rewards/chosen", "rejected": "rewards/rejected"}),
        ("log-probs", None, {"chosen": "logps/chosen", "rejected": "logps/rejected"}),
        ("β", None, {"least": "beta/min", "mean": "beta/mean", "largest": "beta/max"}),
        ("running implicit margin, without β", None, {"mean": "beta_dpo/mean", "standard deviation": "beta_dpo/std"}),
        ("pairs that the reward model ranks the other way", SHARES, {"training": "reward_model/disagreement"}),
    ),
    "Rewards": (
        ("pairs in the right order", SHARES, {"training": "accuracy", "held out": "eval_accuracy"}),
        ("margin", None, {"training": "margin", "held out": "eval_margin"}),
        ("reward", None, {"least": "min_reward", "mean": "mean_reward", "largest": "max_reward"}),
        ("next token of the critique right", SHARES, {"training": "critique/token_accuracy"}),
    ),
    "Tokens": (("next token right", SHARES, {"training": "mean_token_accuracy", "held out": "eval_mean_token_accuracy"}),),
    "Speed": (
        ("tokens/s without padding", None, {"a step": "tokens_per_second"}),
        ("pairs/s", None, {"a step": "pairs_per_second"}),
        ("useful share of the peak", SHARES, {"a step": "flop_utilisation"}),
    ),
}
COLOURS = (1, 2, 0)
PARTS_IN_WORDS = {
    "steps": "steps that counted",
    "start": "before the first step: model, data, reference log-probs",
    "compile": "compiling (the first step included)",
    "data_wait": "waiting for data",
    "checkpoint": "writing checkpoints",
    "evaluation": "judging held-out data",
    "repeated": "steps done again after an interruption",
}


class TimeSpent(NamedTuple):
    """Seconds of all attempts of a run so far: the total, and by part (the keys of `PARTS_IN_WORDS`)."""

    attempts: int
    seconds: float
    parts: Mapping[str, float]


def run_page(
    name: str,
    experiment: config.Experiment,
    rows: Sequence[Mapping],
    *,
    method: str,
    source: str,
    done: int,
    steps: int,
    time: TimeSpent,
    margins: Mapping[str, Any] | None = None,
) -> str:
    """The page of the run `name`, after `done` of `steps` steps, as one HTML document.

    `rows` are its metrics: step, and figures by name (None for one that was not finite). `method` describes the trained model
    in words, `source` is a reference for the method. `margins` is the summary of the training pairs' margins
    (`data.margin_summary`), if β depends on them.
    """
    parts = {title: content for title, content in charts(rows).items() if content}
    parts |= {} if margins is None else {"Margins": margin_section(margins)}
    parts |= {"Time": time_spent(time), "Configuration": configuration(experiment)}
    lead = f"{experiment.model.path} becomes {method}, from {experiment.data.named}; {done} of {steps} steps are done."
    opening = element("p", lead, " ", element("span", source, class_="muted"), class_="lead")
    return page(name, join(opening, tiles(_key_figures(rows, time))), parts, STYLE)


def _key_figures(rows: Sequence[Mapping], time: TimeSpent) -> list[tuple[str, str, str]]:
    """(name, value, meaning) of the key figures."""
    shown = (
        ("Loss", "loss", "of the last step"),
        ("Held-out loss", "eval_loss", "the last time it was judged"),
        ("Pairs right", "rewards/accuracies", "of the last step's, by implicit rewards"),
        ("Held-out pairs right", "eval_rewards/accuracies", "by implicit rewards"),
        ("Pairs right", "accuracy", "of the last step's"),
        ("Held-out pairs right", "eval_accuracy", "of all"),
        ("Skipped steps", "skipped_steps", "bad ones, which changed nothing"),
    )
    cells = [(name, number(last(rows, metric)), meaning) for name, metric, meaning in shown if last(rows, metric) is not None]
    cells.append(("Time", duration(time.seconds), f"in {time.attempts} attempt{'s' if time.attempts > 1 else ''}"))
    cells.append(("Productive", percent(time.parts["steps"] / time.seconds), "of that time: steps that counted"))
    return cells


def charts(rows: Sequence[Mapping]) -> dict[str, Markup]:
    found = {}
    for section, charts in CHARTS.items():
        drawn = []
        for title, y_range, metrics in charts:
            lines = [
                Line(name, points(rows, metric), colour, smooth=not metric.startswith("eval_"))
                for (name, metric), colour in zip(metrics.items(), COLOURS, strict=False)
            ]
            if any(line.points for line in lines):
                drawn.append(line_chart(title, lines, x_label="step", y_range=y_range))
        shares, edges = last(rows, "beta/histogram"), last(rows, "beta/histogram_edges")
        if section == "Preferences" and shares and edges:
            drawn.append(binned("β of the last step's pairs", edges, shares, x_label="β"))
        found[section] = element("div", *drawn, class_="charts") if drawn else Markup("")
    return found


def time_spent(time: TimeSpent) -> Markup:
    """A section about the time of all attempts, by part."""
    cells = [
        (words, duration(time.parts[part]), percent(time.parts[part] / time.seconds)) for part, words in PARTS_IN_WORDS.items()
    ]
    return table(("part", "time", "share"), cells, class_="numbers")


def configuration(experiment: config.Experiment) -> Markup:
    return element("details", element("summary", "every setting"), element("pre", sections.resolved(experiment)))


def points(rows: Sequence[Mapping], metric: str) -> list[Point]:
    """(step, value) of every row in which the metric is present and finite."""
    return [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]


def last(rows: Sequence[Mapping], metric: str):
    """The last logged value of the metric; None if there is none."""
    return next((row[metric] for row in reversed(rows) if row.get(metric) is not None), None)


STYLE = """
h1,p{overflow-wrap:anywhere}summary{cursor:pointer}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.82rem;color:var(--muted)}
"""
