"""The study's page: what differs from plain DPO, how sure that is, and what the reward models' margins mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from mmrlhf_jax.data.margin_summary import summarise
from mmrlhf_jax.data.margin_text import ends
from mmrlhf_jax.dynamic_scaling import Scale
from mmrlhf_jax.pages.charts import Dot, Line, binned, line_chart
from mmrlhf_jax.pages.margins import reliability_chart
from mmrlhf_jax.pages.parts import element, join, number, page, percent, signed, table, tiles
from tests.benchmarks.drs_study.analysis import FEWEST_SEEDS, METRICS, Difference, agreement
from tests.benchmarks.drs_study.cell import LEARNING_RATE
from tests.benchmarks.drs_study.forest import forest, level_name
from tests.benchmarks.drs_study.held_out import DRAWN, MAX_ANSWER
from tests.benchmarks.drs_study.variants import BASELINE, CEILING, VARIANTS

if TYPE_CHECKING:
    from tests.benchmarks.drs_study.report import Findings

ABOUT_CEILING = (
    "Dynamic Reward Scaling also makes β larger on average. If only that helped, DPO with its largest β for every pair would do"
    " as well."
)
REMARK = (
    "What is found here is found on pictures of a few shapes, answers of a few words and a model of a million parameters. It"
    " tells where scaling β can matter and how much data a claim about it needs, not what it does to a model of 7B."
)


def study_page(found: Findings) -> str:
    """The whole page, as one HTML document."""
    of_baseline, of_ceiling = found.differences["right"], found.to_ceiling
    sections = {
        "Share right, against plain DPO": join(*[forest(found, BASELINE, of_baseline, level) for level in found.sizes.levels]),
        "Against DPO with β .15": join(
            element("p", ABOUT_CEILING), *[forest(found, CEILING, of_ceiling, level) for level in found.sizes.levels]
        ),
        "Kinds of questions": by_kind(found),
        "All figures": join(*[all_figures(found, metric) for metric in METRICS]),
        "What the policies gave up": divergence(found),
        "The reward models": reward_models(found),
        "β": betas(found),
        "How it was made": how(found),
    }
    return page("Does Dynamic Reward Scaling help?", opening(found), sections, STYLE)


def opening(found: Findings) -> Markup:
    cells = [
        (
            level_name(level),
            percent(found.mean("right", level, BASELINE)),
            f"right after plain DPO, {percent(found.start['right'])} before",
        )
        for level in found.sizes.levels
    ]
    return join(element("p", conclusion(found), class_="lead"), element("p", scope(found)), element("p", REMARK), tiles(cells))


def scope(found: Findings) -> str:
    prompts, seeds = found.sizes.scenes["held_out"], len(found.seeds)
    return (
        f"{prompts} held-out prompts, {seeds} seed{'' if seeds == 1 else 's'}. Every seed has its own annotators, reward model"
        " and order of rows; the pictures, the questions and the supervised start are the same for all seeds. Intervals are"
        " 95 %, by resampling seeds and prompts together. A difference “holds” if it differs from 0 among all comparisons of a"
        f" figure (seeds and prompts as crossed random effects, Holm’s procedure at 5 %)."
    )


def conclusion(found: Findings) -> str:
    """What follows from the differences, in words."""
    if len(found.seeds) < FEWEST_SEEDS:
        return "There are too few seeds to say which differences hold; the intervals show how large they may be."
    holding = {key: d for key, d in found.differences["right"].items() if d.holds}
    if not holding:
        widest = max((high - low) / 2 for low, high in (d.interval for d in found.differences["right"].values()))
        return (
            "No objective differs from plain DPO in its share of right answers by more than chance allows. Differences of less"
            f" than about {100 * widest:.0f} points cannot be told from none here."
        )
    said = [
        f"{VARIANTS[name].title} at {level_name(level)}: {signed(100 * d.value, 1)} points"
        for (level, name), d in holding.items()
    ]
    return "Of all differences to plain DPO (β .1) in the share of right answers these hold: " + "; ".join(said) + "."


def by_kind(found: Findings) -> Markup:
    """The share right by kind of question: where the objectives can differ at all."""
    kinds = np.asarray(found.kinds)
    rows = []
    for kind in dict.fromkeys(found.kinds):
        here = kinds == kind
        row: list[str] = [kind, str(here.sum()), percent(found.start_right[here].mean())]
        for level in found.sizes.levels:
            shares = {name: values[:, here].mean() for name, values in found.figures["right"][level].items()}
            row += [percent(shares[BASELINE]), f"{100 * min(shares.values()):.0f} to {100 * max(shares.values()):.0f} %"]
        rows.append(row)
    head = ["", "prompts", "start", *[part for level in found.sizes.levels for part in (level_name(level), "all objectives")]]
    text = (
        "Plain DPO’s share right by kind of question, and the range over all objectives. Where the range is narrow, preference"
        " training cannot teach this small model the kind, or has taught all of it."
    )
    return join(element("p", text), table(head, rows, label="kinds of questions", row_heads=True, class_="numbers"))


def all_figures(found: Findings, metric: str) -> Markup:
    """A table of one metric: means, and differences with intervals."""
    title, factor, unit = METRICS[metric]
    rows = []
    for name in found.sizes.variants:
        row = [VARIANTS[name].title]
        for level in found.sizes.levels:
            row.append(f"{factor * found.mean(metric, level, name):.2f}")
            difference = None if name == BASELINE else found.differences[metric][level, name]
            row.append("" if difference is None else told(difference, factor))
        rows.append(row)
    head = ["", *[part for level in found.sizes.levels for part in (level_name(level), "difference")]]
    start = f"The start: {f'{factor * found.start[metric]:.2f} {unit}'.strip()}." if metric in found.start else ""
    shown = table(head, rows, label=title, row_heads=True, class_="numbers")
    return join(element("h3", f"{title}{f', {unit}' if unit else ''}"), element("p", start, class_="muted"), shown)


def told(difference: Difference, factor: float) -> Markup:
    low, high = (signed(factor * end) for end in difference.interval)
    value = signed(factor * difference.value)
    return join(element("b", value) if difference.holds else value, element("small", f" ({low} to {high})"))


def divergence(found: Findings) -> Markup:
    """Share right against KL from the start, one chart per level."""
    charts = []
    for level in found.sizes.levels:
        right, kl = ({name: found.mean(metric, level, name) for name in found.sizes.variants} for metric in ("right", "kl"))
        dots = [
            Dot(
                kl[name], right[name], 7 if name == BASELINE else 5, "bad" if name == BASELINE else "good", VARIANTS[name].title
            )
            for name in found.sizes.variants
        ]
        line = Line("the start", [(0.0, found.start["right"]), (max(kl.values()), found.start["right"])], 0, smooth=False)
        charts.append(line_chart(level_name(level), [line], dots=dots, x_label="KL from the start, nats"))
    text = (
        "A dot is an objective (its name shows when the pointer is over it; the other colour is plain DPO): the share of right"
        " answers against the distance from the start."
    )
    return join(element("p", text), element("div", *charts, class_="charts"))


def reward_models(found: Findings) -> Markup:
    """How right the reward models are, and how large their margins."""
    rows, charts, reliability = [], [], []
    for level in found.sizes.levels:
        cells = [found.cells[level, seed]["reward_model"] for seed in found.seeds]
        learnt = [cell["preference"] for cell in cells]
        prompts = zip(*[pairs["margins"] for pairs in learnt], strict=True)  # of each those of all seeds
        summary = summarise([np.concatenate(margins) for margins in prompts], Scale(beta=0.1, w=0.5, k=0.5))
        agreed, true = np.mean([agreement(p["margins"], p["truly"]) for p in learnt], axis=0)
        _, held_out = np.mean([agreement(c["held_out"]["margins"], c["held_out"]["truly"]) for c in cells], axis=0)
        wrong = np.mean([found.cells[level, seed]["data"]["preference"]["share_wrong"] for seed in found.seeds])
        quantiles = [summary["quantiles"][name] for name in ("25", "50", "75")]
        rows.append(
            [level_name(level), percent(wrong), percent(agreed), percent(true), percent(held_out), *map(number, quantiles)]
        )
        drawn = summary["histogram"]
        charts.append(binned(f"margins δ, {level_name(level)}", drawn["edges"], drawn["counts"], x_label="margin δ"))
        at = element("p", "At k = .5 and w = .5: ", ends(summary), ".")
        reliability += [element("h3", level_name(level)), at, reliability_chart(summary)]
    head = (
        "",
        "pairs annotated wrong",
        "ordered as annotated",
        "ordered truly",
        "ordered truly, held out",
        "|δ| at 25 %",
        "50 %",
        "75 %",
    )
    text = "Pairs that the policies learn from; the reward models learnt from other prompts, ranked by the same annotators."
    return join(
        element("p", text),
        table(head, rows, label="reward models", row_heads=True, class_="numbers"),
        element("div", *charts, class_="charts"),
        element("p", "How often a margin agrees with the annotators:"),
        *reliability,
    )


def betas(found: Findings) -> Markup:
    """The mean β of every objective, and its histogram in the last step of the first seed's runs."""
    rows = []
    for name in found.sizes.variants:
        means = [np.mean([found.cells[level, seed][name]["mean_beta"] for seed in found.seeds]) for level in found.sizes.levels]
        rows.append([VARIANTS[name].title, *[f"{mean:.3f}" for mean in means]])
    charts = []
    for level in found.sizes.levels:
        for name in found.sizes.variants:
            training = found.cells[level, found.seeds[0]][name]["training"]
            shares, edges = training.get("beta/histogram"), training.get("beta/histogram_edges")
            if shares and edges and training["beta/min"] != training["beta/max"]:
                charts.append(binned(f"{VARIANTS[name].title}, {level_name(level)}", edges, shares, x_label="β"))
    head = ("mean of all steps and seeds", *map(level_name, found.sizes.levels))
    return join(
        table(head, rows, label="mean β", row_heads=True, class_="numbers"),
        element("p", f"β of the last step’s pairs, seed {found.seeds[0]}; objectives with one β for all are left out:"),
        element("div", *charts, class_="charts"),
    )


def how(found: Findings) -> Markup:
    sizes, first = found.sizes, found.seeds[0]
    made = {level: found.cells[level, first]["data"] for level in sizes.levels}
    policies = [found.cells[level, first][name] for level in sizes.levels for name in sizes.variants]
    left_out = float(np.mean([np.mean(policy["left_out"]) for policy in policies])) / DRAWN
    items = (
        f"Data: {sizes.scenes['train']} scenes for the reward models, {sizes.scenes['preference']} others for the policies,"
        f" {sizes.scenes['held_out']} for the measurement; one question each.",
        "Three annotators perceive the quality of each response with Gumbel noise (Bradley–Terry) and vote on every pair;"
        " ranks, human scores, and the marks and verdicts of the critiques follow from what they perceive. What a critique says"
        " of the picture itself is true. Responses of equal quality stay tied. Temperatures: "
        + ", ".join(f"{level_name(level)} {data['temperature']:.2f}" for level, data in made.items())
        + ".",
        "Pairs that the policies of the first seed learn from: "
        + ", ".join(
            f"{data['preference']['pairs']} ({percent(data['preference']['share_wrong'])} wrong) at {level_name(level)}"
            for level, data in made.items()
        )
        + ".",
        f"Reward models: the quickstart’s experiment, {sizes.reward_steps} steps. Policies: {sizes.policy_steps} steps of 8"
        f" rows from one supervised start, learning rate {LEARNING_RATE:g}, weight .25 of the SFT term on chosen responses; the"
        " same rows in the same order for all objectives of a seed. Where negative margins are dropped, their pairs are also"
        " left out of the SFT term.",
        f"Measured: greedy answers of at most {MAX_ANSWER} tokens, marked and graded by the rule that knows what was drawn;"
        f" KL by {DRAWN} drawn answers per prompt, without those of tokens that the tokenizer would not write for the text"
        f" ({percent(left_out)}).",
    )
    return element("ul", *[element("li", item) for item in items])


STYLE = """
.interval{stroke:var(--muted);stroke-width:2}.dot.plain{fill:var(--muted);stroke:var(--muted)}
"""
