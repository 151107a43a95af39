"""The reward model's scores of held-out responses, as cards, and the resulting β(δ), as a curve, for the quickstart's page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mmrlhf_jax import config
from mmrlhf_jax.data.built_examples import BuiltExamples
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.pages.charts import Dot, Line, line_chart
from mmrlhf_jax.pages.parts import chip, element, join, mark, percent, picture, table
from mmrlhf_jax.records import RankedRecord, Response


@dataclasses.dataclass(frozen=True)
class JudgedPair:
    """A strictly ordered pair of responses (by index), with the reward model's margin and the resulting β."""

    chosen: int
    rejected: int
    margin: float
    beta: float

    @property
    def right(self) -> bool:
        return self.margin > 0


def pair_beta(margin: float, objective: config.Preference) -> float:
    """The paper's β(δ) = β·(1 + w·(1 − exp(−k·max(δ, 0)))), as in `objectives.reward_scaling.margin`."""
    return objective.beta * (1 - objective.scaling.w * math.expm1(-objective.scaling.k * max(margin, 0.0)))


def judged_pairs(record: RankedRecord, objective: config.Preference) -> list[JudgedPair]:
    margins = [(c, r, record.responses[c].reward - record.responses[r].reward) for c, r in record.pairs()]
    return [JudgedPair(c, r, margin, pair_beta(margin, objective)) for c, r, margin in margins]


def judged(
    held_out: Sequence[RankedRecord], examples: BuiltExamples, kinds: Mapping[str, Sequence[int]], objective: config.Preference
) -> Markup:
    """One card per kind of question, and the reward model's worst mistake. `kinds` maps a kind to the indices of its
    records."""
    right = [[pair.right for pair in judged_pairs(record, objective)] for record in held_out]
    cards, shown = [], []
    for kind, found in kinds.items():
        pictures = [held_out[i].images for i in shown]
        first = next((i for i in found if held_out[i].images not in pictures), found[0])
        pairs = [pair for i in found for pair in right[i]]
        note = f"{kind} · in all of this kind: {percent(sum(pairs) / max(len(pairs), 1))} of {len(pairs)} pairs right"
        cards.append(judged_card(held_out[first], examples[first], objective, note))
        shown.append(first)
    text = (
        "These are questions about pictures that it has never seen. The responses stand in the order of its rewards, each"
        " with the critique that it wrote before it scored. Shown is the first held-out question of each kind on a picture"
        " not yet shown, whatever came out. In the tables, “A over B” is a pair that the data ranks so; δ is the reward of A"
        " minus that of B, and the pair is right where δ is above zero. Ties make no pair."
    )
    mistakes = [pairs.count(False) for pairs in right]
    worst = max(range(len(held_out)), key=mistakes.__getitem__, default=0)
    if any(mistakes) and worst not in shown:
        note = "of all held-out questions, the one with the most pairs in the wrong order"
        cards += [element("h3", "Its worst mistake"), judged_card(held_out[worst], examples[worst], objective, note)]
    return join(element("p", text), *cards)


def judged_card(record: RankedRecord, example: Example, objective: config.Preference, note: str) -> Markup:
    """A card with image and pairs on the left and the responses of the scored `record` on the right. `example` is the unscored
    one, with the data's critiques."""
    order = sorted(range(len(record.responses)), key=lambda i: -record.responses[i].reward)
    letters = {i: chr(ord("A") + place) for place, i in enumerate(order)}
    pairs = sorted(judged_pairs(record, objective), key=lambda pair: (letters[pair.chosen], letters[pair.rejected]))
    right = sum(pair.right for pair in pairs)
    verdict = chip("order agrees" if right == len(pairs) else f"{right} of {len(pairs)} pairs right", right == len(pairs))
    rows = [
        (f"{letters[p.chosen]} over {letters[p.rejected]}", signed(p.margin), f"{p.beta:.4f}", mark(p.right)) for p in pairs
    ]
    left = (
        *[picture(image, f"the picture of {record.id}") for image in example.images],
        table(("pair", "δ", "β(δ)", ""), rows, class_="numbers") if rows else "",
    )
    responses = [judged_response(letters[i], record.responses[i], example.record.responses[i].critique or "") for i in order]
    title = element("h3", record.prompt, " ", verdict if pairs else chip("no pair"))
    return element("article", element("div", *left), element("div", title, element("small", note), *responses), class_="card")


def judged_response(letter: str, response: Response, taught: str) -> Markup:
    """A response with its rank, reward and critique, and the data's critique `taught` if it differs."""
    rank = chip("no rank" if response.rank is None else f"rank {response.rank}", True if response.rank == 1 else None)
    said = element("div", element("b", letter), " ", element("span", response.text, class_="text"), " ", rank)
    reward = element("span", signed(response.reward), class_="reward", title="reward")
    parts = [element("div", said, reward, class_="said"), element("blockquote", response.critique or "(wrote nothing)")]
    if taught.strip() != (response.critique or "").strip():
        parts.append(element("details", element("summary", "the data’s own critique differs"), taught))
    return element("div", *parts, class_="response")


def scaling(held_out: Sequence[RankedRecord], objective: config.Preference) -> Markup:
    """The curve β(δ), with the held-out pairs as dots."""
    pairs = [pair for record in held_out for pair in judged_pairs(record, objective)]
    scale, wrong = objective.scaling, sum(not pair.right for pair in pairs)
    text = (
        "This is Dynamic Reward Scaling. Where the reward model sees a large difference, the pair counts for more; where it"
        f" contradicts the data’s rank (δ not above zero: {wrong} of {len(pairs)} pairs), the pair counts as in plain DPO. The"
        " bigger a dot, the more pairs it stands for. MM-DPO used the same curve, on its own training pairs."
    )
    formula = element("code", f"β(δ) = {objective.beta:g} · (1 + {scale.w:g} · (1 − exp(−{scale.k:g} · max(δ, 0))))")
    margins = [pair.margin for pair in pairs]
    low, high = min([*margins, -1.0]), max([*margins, 1.0])
    curve = [(low + i * (high - low) / 100, pair_beta(low + i * (high - low) / 100, objective)) for i in range(101)]
    chart = line_chart(
        f"β of the {len(pairs)} held-out pairs",
        [Line("β(δ)", curve, smooth=False)],
        dots=pair_dots(pairs, objective),
        x_label="margin δ",
        y_range=(0.95 * objective.beta, 1.05 * (1 + scale.w) * objective.beta),
        size=(960, 260),
    )
    return join(element("p", text), element("p", formula), element("div", chart, class_="scroll wide"))


def pair_dots(pairs: Sequence[JudgedPair], objective: config.Preference) -> list[Dot]:
    """Dots for the pairs on the curve. Pairs in the same sixtieth of the range share a dot, whose area grows with their
    number."""
    if not pairs:
        return []
    low, high = min(pair.margin for pair in pairs), max(pair.margin for pair in pairs)
    bins: dict[tuple[int, bool], list[float]] = {}
    for pair in pairs:
        bins.setdefault((int(60 * (pair.margin - low) / (high - low or 1)), pair.right), []).append(pair.margin)
    fullest, dots = max(map(len, bins.values())), []
    for (_, right), found in sorted(bins.items()):
        mean, radius = sum(found) / len(found), 2 + 10 * math.sqrt(len(found) / fullest)
        label = f"{len(found)} pairs around δ = {signed(mean)}"
        dots.append(Dot(mean, pair_beta(mean, objective), radius, "good" if right else "bad", label))
    return dots


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
