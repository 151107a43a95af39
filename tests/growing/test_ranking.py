"""Rankings with ties, and the margin below which the critic ties."""

from __future__ import annotations

import numpy as np
import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.growing.answers import distinct, flags_of, repeats
from mmrlhf_jax.growing.ranking import LEAST_PAIRS, calibrated_tie, ranks


@pytest.mark.parametrize(
    ("rewards", "spreads", "tie", "wanted"),
    [
        ([1.0, 0.0, 2.0], [None] * 3, 0.3, [2, 3, 1]),
        ([1.0, 0.8, 0.6, 0.0], [None] * 4, 0.3, [1, 1, 1, 2]),  # ties are passed on
        ([1.0, 0.7], [None] * 2, 0.3, [1, 2]),  # a margin of the tie itself counts
        ([1.0, 0.2], [0.6, 0.6], 0.3, [1, 1]),  # within one standard error
        ([1.0, 0.2], [0.1, 0.1], 0.3, [1, 2]),
        ([1.0, 0.2], [5.0, None], 0.3, [1, 2]),
        ([0.5], [None], 0.3, [1]),
        ([], [], 0.3, []),
        ([0.1, 0.1, 0.2], [None] * 3, 0.0, [2, 2, 1]),  # equal ones tie, whatever the tie is
    ],
)
def test_neighbours_that_are_near_tie(rewards, spreads, tie, wanted):
    assert ranks(rewards, spreads, tie) == wanted


def test_the_tie_is_the_smallest_margin_from_which_on_people_agree():
    rng = np.random.default_rng(0)
    margins = rng.uniform(0, 2, 4000)
    agrees = rng.random(4000) < 0.5 + 0.45 * np.clip(margins, 0, 1)  # 95 % from 1 on
    tie, share, count = calibrated_tie(margins, agrees)
    assert share >= 0.9 and count == (margins >= tie).sum()
    assert agrees[margins >= tie].mean() == pytest.approx(share)
    below = np.sort(margins)[np.searchsorted(np.sort(margins), tie) - 1]
    assert agrees[margins >= below].mean() < 0.9 or below < tie


def test_pairs_of_one_margin_are_not_torn_apart():
    margins = [1.0] * 100 + [0.5] * 100
    tie, share, count = calibrated_tie(margins, [True] * 195 + [False] * 5)
    assert (tie, count) == (0.5, 200) and share == pytest.approx(0.975)
    assert calibrated_tie(margins, [True] * 100 + [False] * 100)[0] == 1.0


@pytest.mark.parametrize("agrees", [[True, False] * 100, [True] * (LEAST_PAIRS - 1), []])
def test_a_critic_that_nobody_agrees_with_has_no_tie(agrees):
    with pytest.raises(UserError, match="give --tie, more pairs, or a better critic"):
        calibrated_tie([1.0] * len(agrees), agrees)


def test_equal_answers_are_one_with_its_copies():
    found = distinct(["A kite.", "A bird.", "A  kite. ", "", "A kite."], ["stop"] * 5)
    assert [(each.text, each.copies, each.index) for each in found] == [("A kite.", 3, 0), ("A bird.", 1, 1), ("", 1, 3)]
    assert found[2].flags == ("empty",)


def test_an_answer_that_was_cut_off_once_and_came_whole_once_is_whole():
    (found,) = distinct(["A  kite", "A kite", "A kite "], ["length", "stop", "length"])
    assert (found.index, found.finish_reason, found.copies, found.flags) == (1, "stop", 3, ())


@pytest.mark.parametrize("text", ["", " \n", "\u200b\u2060", "\ufeff "])
def test_an_answer_without_anything_to_see_is_empty(text):
    assert flags_of(text, "stop") == ("empty",)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A kite over the sea.", False),
        ("no no no no no no no no no no no no", True),
        ("It is a kite. It is a kite. It is a kite. It is a kite.", True),
        ("Well......................", True),
        ("Ha ha ha", False),
        ("1000000", False),
        ("It has 1000000000000", False),
        ("Name: ______________", False),
        ("0" * 30, True),
        ("That is the answer which the picture shows us, as far as one can see it at all. " * 4, True),
        ("That is the answer which the picture shows us, as far as one can see it at all. " * 4 + "That is", True),
        ("是" * 12, True),
        ("red, red, red", False),
        ("", False),
    ],
)
def test_texts_that_repeat_themselves_are_flagged(text, wanted):
    assert repeats(text) == wanted
    assert flags_of(text, "length")[-2 if wanted else -1 :] == (("truncated", "repeating") if wanted else ("truncated",))
