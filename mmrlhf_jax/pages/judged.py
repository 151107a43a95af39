"""The reward model's scores of held-out responses, as cards, for the quickstart's page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mmrlhf_jax import config
from mmrlhf_jax.data.built_examples import BuiltExamples
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.margin_summary import margins_of, settled_scale
from mmrlhf_jax.pages.parts import chip, element, join, mark, percent, picture, signed, table
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


def judged_pairs(record: RankedRecord, objective: config.Preference) -> list[JudgedPair]:
    """The strictly ordered pairs of a scored record. UserError if the objective has no number for k yet."""
    (margins,) = margins_of([record])
    found = zip(record.pairs(), margins.tolist(), settled_scale(objective).betas(margins).tolist(), strict=True)
    return [JudgedPair(*pair, margin, beta) for pair, margin, beta in found]


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
