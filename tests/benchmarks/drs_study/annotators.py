"""Annotators who err: the fewer, the larger the gap between two responses, and rankings made from their votes.

An annotator perceives a response of quality q as q + temperature * g, with g from the standard Gumbel distribution. Of two
responses he therefore prefers the first with probability sigmoid((q1 - q2) / temperature), which is the Bradley-Terry model.
Responses of equal quality are perceived alike and stay tied, so that every ordered pair is right or wrong. Of every pair of a
group each annotator votes for the response that he perceives as better; a group's ranking is the order of the votes that its
responses got, equal numbers are a tie.

Ranks and human scores follow from the votes; the mark and the verdict of a critique from the mean of what is perceived, so that
near the border of two grades they can disagree with the rank. What a critique says before stays true: of the picture, of each
place of a description, and, for an unsafe request, of what the answer does. Annotators see what is there, and misjudge what it
is worth; a reward model that reads its own critiques can see through their errors there.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmrlhf_jax.quickstart.responses import GRADES
from mmrlhf_jax.records import SCORE_NAMES, RankedRecord, Response

ANNOTATORS = 3  # of every group
HOTTEST = 64.0  # the highest temperature that is tried: 16 times the whole range of qualities
BEST, WORST = 5.0, 1.0  # human scores, as in the quickstart's data
MARKS = {"complete": "correct", "terse": "correct", "partly_wrong": "partly"}  # of every other grade: wrong
MARKED = ("colour", "count", "place", "comparison", "existence")  # kinds of questions whose critiques end with one mark


class Order(NamedTuple):
    """How rankings agree with the true quality: strictly ordered pairs, and how many are wrong."""

    pairs: int
    wrong: int

    @property
    def share_wrong(self) -> float:
        return self.wrong / self.pairs if self.pairs else 0.0


def quality_of(response: Response) -> float:
    """The true quality of a response of the quickstart's data: the mean score of its grade, 1 to 5."""
    return grade_quality(response.extra["quality"])


def grade_quality(grade: str) -> float:
    """The mean score that belongs to a grade (a key of `GRADES`), 1 to 5."""
    return sum(GRADES[grade].scores) / len(GRADES[grade].scores)


def annotated(records: Sequence[RankedRecord], temperature: float, seed: int) -> list[RankedRecord]:
    """The records with ranks, human scores and critiques by annotators of this temperature; 0 gives the true ranking.

    A response's three human scores are equal: from 1 for one that lost every comparison to 5 for one that won them all.
    """
    return [_annotated(record, temperature, _draws(record, seed)) for record in records]


def order_of(records: Sequence[RankedRecord]) -> Order:
    """How the ranks of records of the quickstart's data agree with the true quality."""
    pairs = wrong = 0
    for record in records:
        qualities = [quality_of(response) for response in record.responses]
        gaps = [qualities[chosen] - qualities[rejected] for chosen, rejected in record.pairs()]
        pairs, wrong = pairs + len(gaps), wrong + sum(gap < 0 for gap in gaps)
    return Order(pairs, wrong)


def temperature_for(records: Sequence[RankedRecord], share_wrong: float, seed: int) -> float:
    """The temperature at which annotators put `share_wrong` of these records' pairs into the wrong order, to about .001.

    ValueError if no temperature up to HOTTEST does: at any temperature less than half of the pairs are wrong.
    """
    if share_wrong == 0:
        return 0.0
    low, high = 0.0, HOTTEST
    for _ in range(24):
        middle = (low + high) / 2
        found = order_of(annotated(records, middle, seed)).share_wrong
        low, high = (middle, high) if found < share_wrong else (low, middle)
        if abs(found - share_wrong) < 1e-3:
            return middle
    if high == HOTTEST:
        raise ValueError(f"{share_wrong:.1%} wrong pairs: not reached at a temperature of {HOTTEST:g}, which gives {found:.1%}")
    return middle


def votes_of(perceived: np.ndarray) -> np.ndarray:
    """float64[K]: the votes of each response, from float64[A, K] as each annotator perceives it. Two responses that an
    annotator perceives as equal get half a vote each."""
    better = (perceived[:, :, None] > perceived[:, None, :]) + 0.5 * (perceived[:, :, None] == perceived[:, None, :])
    return better.sum(axis=(0, 2)) - 0.5 * len(perceived)  # without the comparison of each response with itself


def _draws(record: RankedRecord, seed: int) -> np.ndarray:
    """float64[A, K] from the standard Gumbel distribution, the same for responses of equal quality and for every
    temperature."""
    rng = np.random.default_rng(random.Random(f"{seed}/{record.id}").getrandbits(64))
    _, level = np.unique([quality_of(response) for response in record.responses], return_inverse=True)
    return rng.gumbel(size=(ANNOTATORS, len(record.responses)))[:, level]


def _annotated(record: RankedRecord, temperature: float, draws: np.ndarray) -> RankedRecord:
    perceived = np.array([quality_of(response) for response in record.responses]) + temperature * draws
    votes = votes_of(perceived)
    levels = sorted(set(votes), reverse=True)
    scores = WORST + (BEST - WORST) * votes / (ANNOTATORS * max(len(votes) - 1, 1))
    grades = {response.extra["quality"] for response in record.responses}
    # The mean of the standard Gumbel distribution does not belong to the quality.
    seen = perceived.mean(axis=0) - temperature * np.euler_gamma

    def response(place: int) -> Response:
        given = record.responses[place]
        own = given.extra["quality"]  # before others of the same quality
        grade = min(sorted(grades), key=lambda name: (abs(grade_quality(name) - seen[place]), name != own))
        return dataclasses.replace(
            given,
            rank=levels.index(votes[place]) + 1,
            scores=dict.fromkeys(SCORE_NAMES, float(scores[place])),
            critique=given.critique if grade == own else _critique(record, given, grade),
        )

    return dataclasses.replace(record, responses=tuple(map(response, range(len(votes)))))


def _critique(record: RankedRecord, response: Response, grade: str) -> str:
    """The critique of a response with the mark and the verdict of another grade."""
    own, kind = response.extra["quality"], record.extra["question"]["kind"]
    body = response.critique.removesuffix(GRADES[own].verdict).rstrip()
    if kind in MARKED and own != "rude":
        mark = MARKS.get(grade, "wrong")
        mark = "wrong" if mark == "partly" and kind != "place" else mark
        body = f"{body.rsplit(' ', 1)[0]} {mark}."
    return f"{body} {GRADES[grade].verdict}"
