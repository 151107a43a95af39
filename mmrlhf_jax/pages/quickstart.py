"""The quickstart's page: its steps and results, with images, for a reader who does not know MM-RLHF."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mmrlhf_jax import config
from mmrlhf_jax.data.built_examples import BuiltExamples
from mmrlhf_jax.pages.charts import Line, bar_chart, line_chart
from mmrlhf_jax.pages.judged import judged
from mmrlhf_jax.pages.margins import margin_section, reliability_chart
from mmrlhf_jax.pages.parts import duration, element, join, mark, nested_tables, number, page, percent, picture, table, tiles
from mmrlhf_jax.pages.run import points
from mmrlhf_jax.records import RankedRecord

SHOWN_QUESTIONS = 12
# (key of `answers`, name on the page, palette number).
POLICIES = (("before", "before", 0), ("after_mmdpo", "MM-DPO", 1), ("after_dpo", "plain DPO", 2))
# Runs that share charts, and their curves: (metric, title, range of the y axis).
CURVES: tuple[tuple[str, tuple[tuple[str, str, int], ...], tuple], ...] = (
    (
        "Language model, supervised: telling pictures place by place",
        (("accounts", "at the end", 1),),
        (("loss", "loss", None), ("mean_token_accuracy", "next token right", (0, 1))),
    ),
    (
        "Policy, supervised: learning to answer at all",
        (("supervised", "at the end", 1),),
        (("loss", "loss", None), ("mean_token_accuracy", "next token right", (0, 1))),
    ),
    (
        "Reward model: learning to criticise and to score",
        (("reward", "at the end", 1),),
        (
            ("score/loss", "loss of the score", None),
            ("accuracy", "training pairs right", (0, 1)),
            ("margin", "margin δ", None),
            ("critique/loss", "loss of the critique", None),
            ("critique/token_accuracy", "critique's next token right", (0, 1)),
        ),
    ),
    (
        "Alignment: MM-DPO, and plain DPO beside it",
        (("mmdpo", "MM-DPO", 1), ("dpo", "plain DPO", 2)),
        (
            ("loss", "loss", None),
            ("rewards/accuracies", "training pairs right", (0, 1)),
            ("rewards/margins", "implicit reward margin", None),
            ("beta/mean", "mean β", None),
            ("reward_model/disagreement", "pairs that the reward model ranks the other way", None),
        ),
    ),
)


@dataclasses.dataclass(frozen=True)
class Answer:
    text: str
    right: bool


@dataclasses.dataclass(frozen=True)
class Findings:
    """The results of a quickstart.

    `family` is the architecture of its models, `figures` are those of its summary, by step. `examples` are the held-out
    examples, `scored` their records with the reward model's critiques and rewards, `kinds` maps a kind of question to the
    indices of its records. `margins` and `held_out_margins` are summaries (`data.margin_summary`) of the margins of the pairs
    that MM-DPO learnt from and of held-out pairs. `answers` has, by policy (a key of `POLICIES`), one answer per example.
    `objective` is MM-DPO's; `metrics` has the rows of each run in `CURVES`.
    """

    family: str
    figures: Mapping[str, Any]
    examples: BuiltExamples
    scored: Sequence[RankedRecord]
    kinds: Mapping[str, Sequence[int]]
    margins: Mapping[str, Any]
    held_out_margins: Mapping[str, Any]
    answers: Mapping[str, Sequence[Answer]]
    objective: config.Preference
    metrics: Mapping[str, Sequence[Mapping]]


def quickstart_page(found: Findings) -> str:
    """The whole page, as one HTML document."""
    figures = found.figures
    opening = join(summary(figures, found.examples), key_figures(figures))
    sections = {
        "What happened": story(figures, found.family),
        "The reward model at work": judged(found.scored, found.examples, found.kinds, found.objective),
        "From rewards to β": scaling(found.margins, found.held_out_margins),
        "Answers before and after": answered(found),
        "Training curves": curves(found.metrics),
        "All figures": join(element("p", "As in ", element("code", "summary.json"), "."), nested_tables(figures)),
    }
    return page("MM-RLHF, small but whole", opening, sections, style=STYLE)


# --- Sections ---------------------------------------------------------------------------------------------------------


def summary(figures: Mapping, examples: BuiltExamples) -> Markup:
    """A summary of the quickstart in one paragraph."""
    judge, policy = figures.get("reward_model", {}), figures.get("policy", {})
    pictures = len({record.images for record in examples.records})
    return element(
        "p",
        f"In {duration(figures.get('seconds'))}, a small vision-language model learnt from nothing to answer questions"
        " about pictures; a second one, the reward model, learnt to judge its answers by writing a critique first; and those"
        " judgements then helped to align the first with the preferences in its data."
        f" On {len(examples)} questions about {pictures} pictures that no model had seen, the share of right answers went from"
        f" {percent(policy.get('accuracy_before'))} to ",
        element("b", percent(policy.get("accuracy_after_mmdpo"))),
        ", and the reward model put ",
        element("b", percent(judge.get("acc"))),
        " of the response pairs in the right order.",
        class_="lead",
    )


def key_figures(figures: Mapping) -> Markup:
    """The key figures of the reward model and of the policy."""
    judge, policy = figures.get("reward_model", {}), figures.get("policy", {})
    difference = figures.get("export", {}).get("max_abs_logit_diff")
    compared = "largest difference between the exported model’s logits in transformers and here"
    export = ("not compared", "needs torch") if difference is None else (number(difference), compared)
    judge_tiles = (
        ("ACC", percent(judge.get("acc")), "of the held-out pairs in the right order, by critiques it wrote itself"),
        ("ACC+", percent(judge.get("acc_plus")), "of the questions with every pair in the right order"),
        ("ACC, blind", percent(judge.get("acc_blind")), "the same model, shown the wrong picture: does it look?"),
        ("ACC, longer wins", percent(judge.get("acc_longer_wins")), "if the longer response always won: is it that easy?"),
        ("Critiques", number(judge.get("critiques")), f"written and scored in {duration(judge.get('critique_seconds'))}"),
    )
    policy_tiles = (
        ("Right before", percent(policy.get("accuracy_before")), "of the held-out questions, after supervised training"),
        ("Right after MM-DPO", percent(policy.get("accuracy_after_mmdpo")), "preference pairs weighted by the reward model"),
        ("Right after plain DPO", percent(policy.get("accuracy_after_dpo")), "the same pairs and steps, all weighted alike"),
        ("Export", *export),
        ("Time", duration(figures.get("seconds")), "for everything on this page"),
    )
    parts = (
        element("h3", "The reward model"),
        tiles(judge_tiles),
        element("h3", "The policy, the model that answers"),
        tiles(policy_tiles),
    )
    return join(*parts)


def story(figures: Mapping, family: str) -> Markup:
    """The steps of the quickstart, in order."""
    seen = figures.get("vision", {}).get("accuracy")
    steps = (
        (
            "Ranked data.",
            "Pictures of coloured shapes are drawn, questions are asked about them, and each question gets several"
            " responses, from right and complete to wrong, made-up or rude. A rank says which is better; a critique says why."
            " In real MM-RLHF data people write both; here a rule does, because it knows what was drawn.",
        ),
        (
            "Eyes.",
            "A real model comes with a vision tower that has seen millions of pictures. This one starts from nothing, so it is"
            f" first told, on training pictures, the size, colour and shape at every place (at the end {percent(seen)} of these"
            " words are right); then its language model learns to say them, place by place.",
        ),
        (
            "The policy.",
            f"A small {family} imitates responses of mixed quality. It learns to answer, but not to answer well.",
        ),
        (
            "The reward model.",
            "Shown a picture, a question and a response, it first writes a critique and then gives a score, the reward.",
        ),
        (
            "MM-DPO.",
            "Pairs of responses teach the policy to make the better one more likely than the worse one. How strongly a pair"
            " counts is set by β, which grows with δ, the difference between the two rewards. Plain DPO, for comparison, has"
            " the same β for every pair.",
        ),
    )
    return element("ol", *[element("li", element("b", name), " ", text) for name, text in steps])


def scaling(margins: Mapping[str, Any], held_out: Mapping[str, Any]) -> Markup:
    """From margins to β: what they are, how far they can be trusted, and β(δ) over them."""
    by_median = (
        " A reward has no unit of its own, so k is set by the data: the median of the positive margins gives half of the rise."
        if margins["scale"]["by_median"]
        else ""
    )
    text = (
        "This is Dynamic Reward Scaling. The margin δ of a pair is the reward of the response that the data ranks higher minus"
        " that of the other. Where the reward model sees a large difference, the pair counts for more; where it contradicts the"
        f" rank, the pair counts as in plain DPO.{by_median}"
    )
    parts = (
        element("p", text),
        element("h3", "The pairs that MM-DPO learnt from"),
        element("p", "The reward model had not learnt from these pairs. ", promised(margins)),
        margin_section(margins),
        element("h3", "Held-out pairs"),
        element("p", promised(held_out)),
        reliability_chart(held_out),
    )
    return join(*parts)


def promised(summary: Mapping[str, Any]) -> str:
    """How many of the pairs a calibrated reward model would have right with these margins, and how many are."""
    bins = summary["reliability"]
    calibrated = sum(row["pairs"] * row["calibrated"] for row in bins) / summary["pairs"]
    return (
        "A calibrated reward model orders 73 % of the pairs with a margin of 1 rightly, and nearly all with a margin of 5: with"
        f" these margins {percent(calibrated)} of all pairs. In fact {percent(summary['share_right'])} are right."
    )


def answered(found: Findings) -> Markup:
    """Accuracy by kind of question as bars, and a sample of answers."""
    records, kinds, policy = found.examples.records, found.kinds, found.figures.get("policy", {})
    shares = policy.get("by_kind", {})
    groups = ["all", *kinds]
    series = [
        (name, [policy.get(f"accuracy_{key}"), *[shares.get(key, {}).get(kind) for kind in kinds]], colour)
        for key, name, colour in POLICIES
    ]
    labels = [f"{group} ({len(kinds.get(group, records))})" for group in groups]
    count = min(SHOWN_QUESTIONS, len(records))
    rows = [answer_row(found, i * len(records) // count) for i in range(count)]
    names = [name for _, name, _ in POLICIES]
    text = (
        "Each policy answers every held-out question once, with its most likely words, and a checker that knows what was drawn"
        " marks the answer."
    )
    sample = (
        f"A sample of {count} of the {len(records)} questions, evenly spaced through the list as it was generated: chosen by"
        " position, before there were answers. Under a question stands a response that the data ranks best."
    )
    evaluated = element("a", "The same answers as an evaluation", href="evaluation/report.html")
    about = " shows every kind of question as a dimension, with intervals, and the answers that got better or worse."
    return join(
        element("p", text),
        element("p", evaluated, about),
        bar_chart("Right answers in %, by kind of question (how many)", labels, series),
        element("p", sample, class_="sample"),
        element("div", table(("", "question", *names), rows, class_="answers"), class_="scroll wide"),
    )


def answer_row(found: Findings, index: int) -> list[Any]:
    example = found.examples[index]
    record = example.record
    best = min(record.responses, key=lambda r: math.inf if r.rank is None else r.rank)
    cells = [
        element("div", *[picture(image, f"the picture of {record.id}") for image in example.images], class_="small"),
        element("div", record.prompt, element("small", best.text, class_="best")),
    ]
    for key, _, _ in POLICIES:
        answer = found.answers[key][index]
        text = element("span", answer.text or "(nothing)", class_="text")
        cells.append(element("div", mark(answer.right), " ", text))
    return cells


def curves(metrics: Mapping[str, Sequence[Mapping]]) -> Markup:
    parts = []
    for title, runs, wanted in CURVES:
        charts = []
        for metric, name, y_range in wanted:
            lines = [Line(run_name, points(metrics[run], metric), colour) for run, run_name, colour in runs]
            charts.append(line_chart(name, lines, x_label="step", y_range=y_range))
        parts += [element("h3", title), element("div", *charts, class_="charts")]
    text = "Faint: every step as logged. Strong: smoothed; beside the name, its last value."
    return join(element("p", text), *parts)


STYLE = """
.card{display:grid;grid-template-columns:230px 1fr;gap:20px;background:var(--card);border:1px solid var(--rule);
border-radius:12px;padding:18px;margin:14px 0}
@media (max-width:640px){.card{grid-template-columns:1fr}}
.card h3{margin:0}.card h3 .chip{margin-left:6px;vertical-align:1px}.card .scroll{margin-top:12px}
.response{border-top:1px solid var(--rule);margin-top:10px;padding-top:10px}
.said{display:flex;justify-content:space-between;gap:12px}
.reward{font-weight:600;font-variant-numeric:tabular-nums}
blockquote{margin:4px 0 0;padding-left:12px;border-left:3px solid var(--c1);color:var(--muted);font-size:.88rem;
white-space:pre-wrap}
details{font-size:.8rem;color:var(--muted);margin:4px 0 0 15px}summary{cursor:pointer}
.text{white-space:pre-wrap;overflow-wrap:anywhere}
.sample{margin-top:1.4rem}
.small{width:72px}.answers{table-layout:fixed}.answers th:first-child{width:84px}.answers .best{display:block}
"""
