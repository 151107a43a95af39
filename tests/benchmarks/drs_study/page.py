"""The study's page: what differs from plain DPO, how sure that is, and what the reward models' margins mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from mmrlhf_jax.pages.charts import Dot, Line, binned, line_chart
from mmrlhf_jax.pages.parts import element, join, page, percent, signed, table, tiles
from tests.benchmarks.drs_study.analysis import METRICS, Difference
from tests.benchmarks.drs_study.cell import LEARNING_RATE
from tests.benchmarks.drs_study.conclusion import conclusion
from tests.benchmarks.drs_study.forest import LEGEND, forest, level_name
from tests.benchmarks.drs_study.held_out import DRAWN, MAX_ANSWER
from tests.benchmarks.drs_study.reward_models import reward_models
from tests.benchmarks.drs_study.variants import BASELINE, VARIANTS

if TYPE_CHECKING:
    from tests.benchmarks.drs_study.report import Findings

ABOUT_LARGEST = (
    "Dynamic Reward Scaling also makes β larger on average. If only that helped, DPO with its largest β for all pairs would do"
    " as well: .15 with w = .5, .2 with w = 1."
)
REMARK = (
    "What is found here is found on pictures of a few shapes, answers of a few words and a model of a million parameters. It"
    " does not tell what scaling β does to a model of 7B."
)


def study_page(found: Findings) -> str:
    """The whole page, as one HTML document."""
    sections = {
        "Share right, against plain DPO": join(
            element("p", LEGEND), *[forest(found, found.differences["right"], level) for level in found.sizes.levels]
        ),
        "Against DPO with the largest β": join(
            element("p", ABOUT_LARGEST), *[forest(found, found.to_largest, level) for level in found.sizes.levels]
        ),
        "Kinds of questions": by_kind(found),
        "All figures": join(*[all_figures(found, metric) for metric in found.figures]),
        **({"What the policies gave up": divergence(found)} if "kl" in found.figures else {}),
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
    first, *rest = conclusion(found)
    return join(
        element("p", first, class_="lead"), *[element("p", text) for text in [*rest, scope(found), REMARK]], tiles(cells)
    )


def scope(found: Findings) -> str:
    prompts, seeds, compared = found.sizes.scenes["held_out"], len(found.seeds), len(found.differences["right"])
    return (
        f"{prompts} held-out prompts, {seeds} of {found.sizes.seeds} seeds. Every seed has its own annotators, reward model and"
        " order of rows; the pictures, the questions and the supervised start are the same for all seeds. Intervals are of one"
        " comparison alone, of about 95 %, by resampling seeds and prompts together. A difference “holds” if it differs from 0"
        f" among all {compared} comparisons of a figure with plain DPO (a t-test with seeds and prompts as crossed random"
        " effects, Holm’s procedure at 5 %). The share of right answers is what the study asks for; the other figures are"
        " tested apart, each by itself, and so are the comparisons with the largest β."
    )


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
        "Plain DPO’s share right by kind of question, and the range over all objectives, which is partly chance: few prompts"
        " are of one kind. A kind that all objectives answer alike cannot tell them apart."
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
    units = [np.nanmean(np.array(cell[name]["unit"], float)) for cell in found.cells.values() for name in found.sizes.variants]
    check = (
        "A check of the estimate: by the drawn answers, the mean of π_start(y)/π(y) is 1 on average, but for the answers that"
        f" are left out, and rarely much larger. In {len(units)} runs it is {np.median(units):.2f} in the median, from"
        f" {min(units):.2f} to {max(units):.2f}."
    )
    return join(element("p", text), element("div", *charts, class_="charts"), element("p", check, class_="muted"))


def betas(found: Findings) -> Markup:
    """The mean β of every objective, and its histogram in the last step of the first seed's runs."""
    rows = []
    for name in found.sizes.variants:
        rows.append([VARIANTS[name].title, *[f"{found.mean_beta(level, name):.3f}" for level in found.sizes.levels]])
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
    sizes, first, shared = found.sizes, found.seeds[0], found.cells.values()
    made = {level: found.cells[level, first]["data"] for level in sizes.levels}
    left_out = float(np.mean([np.mean(cell[name]["left_out"]) for cell in shared for name in sizes.variants])) / DRAWN
    items = (
        f"Data: {sizes.scenes['train']} scenes for the reward models, {sizes.scenes['preference']} others for the policies,"
        f" {sizes.scenes['held_out']} for the measurement; one question each.",
        "Three annotators perceive the quality of each response with Gumbel noise (Bradley–Terry) and vote on every pair."
        " Ranks and human scores follow from the votes, marks and verdicts of critiques from the mean of what they perceive, so"
        " that a verdict can disagree with a rank where two grades are near. What a critique says before is true, also of each"
        " place of a description and of an answer to an unsafe request, so that reward models can see through errors there."
        " Responses of equal quality stay tied. The noise of a seed is the same at all levels but for its size. Temperatures: "
        + ", ".join(f"{level_name(level)} {data['temperature']:.2f}" for level, data in made.items())
        + ".",
        "Pairs that the policies of the first seed learn from: "
        + ", ".join(
            f"{data['preference']['pairs']} ({percent(data['preference']['share_wrong'])} wrong) at {level_name(level)}"
            for level, data in made.items()
        )
        + ".",
        f"Reward models: the quickstart’s experiment, {sizes.reward_steps} steps. Policies: {sizes.policy_steps} steps of 8"
        " rows from one supervised start, weight .25 of the SFT term on chosen responses, learning rate"
        f" {LEARNING_RATE:g} and the same rows in the same order for all objectives of a seed. Where negative margins are"
        " dropped, their pairs are also left out of the SFT term.",
        f"Measured: greedy answers of at most {MAX_ANSWER} tokens, marked and graded by the rule that knows what was drawn;"
        f" KL by {DRAWN} drawn answers per prompt, without those that were cut off at their longest and those of tokens that"
        f" the tokenizer would not write for the text ({percent(left_out)})"
        + (
            f", and without the {found.without_kl} prompts for which some run has no answer that counts."
            if found.without_kl
            else "."
        ),
        f"The parts of these seeds took {found.seconds / 60:.0f} minutes on one core each, beside the supervised start.",
    )
    return element("ul", *[element("li", item) for item in items])


STYLE = """
.interval{stroke:var(--muted);stroke-width:2}.dot.plain{fill:var(--muted);stroke:var(--muted)}
"""
