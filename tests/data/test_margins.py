"""What is said of margins equals a count by hand: sizes, reliability by |δ|, β(δ) at the ends of its range, and the warning."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree

import numpy as np
import pytest

from mmrlhf_jax import cli, config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.margin_summary import GATE, NEAR, margins_of, reliability, scale_of, summarise
from mmrlhf_jax.data.margin_text import ends, formula, gate, left_out, lines
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.dynamic_scaling import Scale
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry
from mmrlhf_jax.objectives import reward_scaling
from mmrlhf_jax.pages import margins_page
from mmrlhf_jax.records import RankedRecord, Response
from tests import tiny

PAPER = Scale(0.1, 0.5, 0.5)


def unbounded(count=600):
    """As a reward model without bounds gives them: about ±15, a fifth in the wrong order."""
    draw = np.random.default_rng(0)
    return np.where(draw.random(count) < 0.2, -1.0, 1.0) * draw.normal(15.0, 3.0, count)


def calibrated(count=600):
    """The median |δ| is about 1.4, and σ(|δ|) of the pairs are in the right order."""
    draw = np.random.default_rng(1)
    sizes = np.abs(draw.normal(0.0, 2.0, count))
    return np.where(draw.random(count) < 1 / (1 + np.exp(-sizes)), sizes, -sizes)


# Reliability ---------------------------------------------------------------------------------------------------------


def test_bins_of_the_size_of_margins_equal_a_count_by_hand():
    margins = np.asarray([0.0, 3.0, -1.0, 1.0, 2.0, -2.0, 0.0, 2.0])
    # Of the sizes 0 0 1 1 2 2 2 3, halves begin at 0 and 2; equal sizes are not parted.
    low, high = reliability(margins, bins=2)
    assert (low["low"], low["high"], low["pairs"], low["right"], low["ties"]) == (0.0, 1.0, 4, 1, 2)
    assert low["share_right"] == (1 + 2 / 2) / 4 and low["mean"] == 0.5
    np.testing.assert_allclose(low["calibrated"], (0.5 + 0.5 + 2 / (1 + np.exp(-1))) / 4)
    assert (high["low"], high["high"], high["pairs"], high["right"], high["ties"]) == (2.0, 3.0, 4, 3, 0)
    assert high["share_right"] == 0.75
    np.testing.assert_allclose(high["calibrated"], (3 / (1 + np.exp(-2)) + 1 / (1 + np.exp(-3))) / 4)
    assert [row["pairs"] for row in reliability(np.full(7, -2.0))] == [7]


@pytest.mark.parametrize("margins", [unbounded(), calibrated(601), np.random.default_rng(2).integers(-3, 4, 500) / 2.0])
def test_every_pair_is_in_one_bin_and_the_bins_do_not_depend_on_their_order(margins):
    found = reliability(margins)
    sizes = np.abs(margins)
    for row in found:
        inside = margins[(sizes >= row["low"]) & (sizes <= row["high"])]
        assert (row["pairs"], row["right"], row["ties"]) == (len(inside), (inside > 0).sum(), (inside == 0).sum())
    assert sum(row["pairs"] for row in found) == len(margins) and len(found) <= 10
    if len(np.unique(sizes)) == len(sizes):
        assert {row["pairs"] for row in found} <= {len(margins) // 10, len(margins) // 10 + 1}
    exact = [(row["low"], row["high"], row["pairs"], row["right"], row["ties"]) for row in found]
    assert exact == [(row["low"], row["high"], row["pairs"], row["right"], row["ties"]) for row in reliability(margins[::-1])]


def test_an_interval_takes_records_as_trials_because_their_pairs_are_right_or_wrong_together():
    draw = np.random.default_rng(3)
    right = np.where(draw.random(200) < 0.7, 1.0, -1.0)
    (alone,) = reliability([np.asarray([sign]) for sign in right])
    (flat,) = reliability(right)
    (six,) = reliability([np.full(6, sign) for sign in right])
    (torn,) = reliability([np.asarray([sign]) for sign in np.repeat(right, 6)])
    assert flat == alone and six["interval"] == pytest.approx(alone["interval"]) and six["pairs"] == 1200
    error = 1.96 * np.sqrt(alone["share_right"] * (1 - alone["share_right"]) / 200)
    assert alone["interval"] == pytest.approx((alone["share_right"] - error, alone["share_right"] + error), abs=0.02)
    width = np.diff(torn["interval"]) / np.diff(six["interval"])
    assert width == pytest.approx(1 / np.sqrt(6), rel=0.15)
    with_ties = reliability([np.asarray([0.0, 0.0])] * 10 + [np.asarray([np.nan, np.inf]), np.zeros(0)])
    (low, high) = with_ties[0]["interval"]
    assert len(with_ties) == 1 and low == pytest.approx(1 - high) and 0.2 < low < 0.3  # Wilson's of 5 of 10


# β -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", ["clamp", "unclamped", "drop"])
def test_beta_is_the_objectives(negative):
    margins = np.float32([-30.0, -2.0, -0.1, 0.0, 0.01, 1.4, 9.0, 40.0])
    expected = reward_scaling.margin(margins, 0.2, 0.7, 0.3, clamp_negative=negative != "unclamped")
    np.testing.assert_allclose(Scale(0.2, 0.7, 0.3, negative).betas(margins), expected, rtol=1e-6)


@pytest.mark.parametrize("negative", ["clamp", "unclamped", "drop"])
@pytest.mark.parametrize("margins", [unbounded(), calibrated()])
def test_shares_at_floor_and_ceiling_are_those_of_the_formula(margins, negative):
    scale = PAPER._replace(negative_margins=negative)
    found = summarise(margins, scale)["beta"]
    counted = margins[margins >= 0] if negative == "drop" else margins
    assert found["pairs"] == len(counted) == sum(found["counts"])
    rise = 1 - np.exp(-scale.k * counted)  # of w·β, for δ ≥ 0
    at_ceiling = np.mean(rise >= 1 - NEAR)
    at_floor = np.mean(scale.betas(counted) <= 1e-3 + NEAR * 0.05) if negative == "unclamped" else np.mean(rise <= NEAR)
    assert (found["at_floor"], found["at_ceiling"]) == (at_floor, at_ceiling)
    assert found["is_gate"] == (at_floor + at_ceiling > GATE)


def test_margins_as_large_as_an_unbounded_reward_models_are_warned_of_and_calibrated_ones_are_not():
    said = gate(summarise(unbounded(), PAPER))
    assert said.startswith("β is a gate, not a scale: for ") and "set objective.scaling.k: median" in said
    assert f"the median |δ| is {np.median(np.abs(unbounded())):.3g};" in said and "objective.centring" in said
    assert 1.2 < summarise(calibrated(), PAPER)["quantiles"]["50"] < 1.6
    assert gate(summarise(calibrated(), PAPER)) is None


MEDIAN = config.Preference(scaling=config.Scaling(k="median"))


def test_with_the_k_of_their_median_unbounded_margins_make_no_gate():
    scale = scale_of(MEDIAN, unbounded(), "here")
    positive = unbounded()[unbounded() > 0]
    assert scale.k == pytest.approx(np.log(2) / np.median(positive))
    assert gate(summarise(unbounded(), scale)) is None
    at_ends = np.mean((unbounded() <= 0) | (np.exp(-scale.k * unbounded()) <= NEAR))
    assert f"(it is {scale.k:.4g} for these pairs, and leaves {100 * at_ends:.1f} % at the ends)" in gate(
        summarise(unbounded(), PAPER)
    )


@pytest.mark.parametrize(
    ("margins", "scale", "share"),
    [
        (np.concatenate([np.full(95, -1.0), np.linspace(1, 2, 5)]), PAPER, 95),  # in the wrong order
        (np.concatenate([np.full(95, -9.0), np.linspace(1, 2, 5)]), PAPER._replace(negative_margins="unclamped"), 95),
        (np.concatenate([np.full(95, -1.0), np.linspace(1, 2, 5)]), PAPER._replace(k=0.46), 95),  # about that of the median
        (np.zeros(20), PAPER, 100),  # not told apart
        (np.concatenate([np.full(85, -1.0), np.full(7, 1e-3), np.linspace(1, 2, 8)]), PAPER, 85),
    ],
)
def test_pairs_that_are_not_ordered_as_their_ranks_are_blamed_for_a_beta_at_its_floor_and_not_k(margins, scale, share):
    said = gate(summarise(margins, scale))
    assert f"because δ is not above 0 for {share:.1f} %; look whether ranks or rewards are the wrong way round" in said
    assert "k: median" not in said and "centring" not in said and "rises only" not in said


def test_margins_that_are_small_for_k_are_said_to_make_plain_dpo():
    margins = np.random.default_rng(0).normal(0.0, 0.02, 400)  # of a reward model that has hardly learnt
    said = gate(summarise(margins, PAPER))
    assert said.startswith("β is nearly the same for all pairs, as in plain DPO: ") and "gate" not in said
    assert "rises only from δ = 0.04 to 7.8" in said and "set objective.scaling.k: median" in said and "centring" not in said
    assert gate(summarise(margins, scale_of(MEDIAN, margins, "here"))) is None


@pytest.mark.parametrize("scale", [Scale(0.1, 0.5, 0.5), Scale(0.2, 3.0, 0.1), Scale(0.1, 0.5, 0.5, "unclamped")])
def test_beta_rises_over_the_margins_that_are_said(scale):
    margins = np.linspace(-60, 60, 240_001)
    betas, low = scale.betas(margins), 1e-3 if scale.negative_margins == "unclamped" else scale.beta
    rise = 0.02 * scale.w * scale.beta
    expected = margins[np.searchsorted(betas, [low + rise, scale.beta * (1 + scale.w) - rise])]
    np.testing.assert_allclose(summarise(unbounded(), scale)["beta"]["rises_over"], expected, atol=1e-3)


def test_no_other_k_is_advised_to_a_run_that_has_the_one_of_the_median():
    margins = np.concatenate([np.full(60, 1e-9), np.full(3, 1.0), np.full(60, 1e9)])  # that no k suits
    scale = scale_of(MEDIAN, margins, "here")
    for said in (gate(summarise(margins, scale)), gate(summarise(margins, Scale(0.1, 0.5, float(f"{scale.k!r}"))))):
        assert said.startswith("β is a gate, not a scale: ") and "k: median" not in said and "centring" in said
    asked = [scale, scale._replace(k=float(f"{scale.k!r}")), scale._replace(k=2 * scale.k), PAPER]
    assert [summarise(margins, each)["scale"]["by_median"] for each in asked] == [True, True, False, False]


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (PAPER._replace(w=0.0), "because w is 0"),
        (PAPER._replace(k=0.0), "because k is 0"),
        (PAPER._replace(w=0.0, negative_margins="drop"), "because w is 0"),
        (PAPER._replace(w=1e-17), "because w is 1e-17, which is lost in rounding"),
        (PAPER._replace(w=5e-8), "because w is 5e-08, which is lost in rounding"),
    ],
)
def test_a_beta_that_no_margin_changes_is_no_gate(scale, said):
    found = summarise(unbounded(), scale)
    assert found["beta"] is None and gate(found) is None and said in ends(found)
    betas = reward_scaling.margin(np.float32(unbounded()), scale.beta, scale.w, scale.k)
    assert len(np.unique(betas)) == 1


def test_no_pair_is_at_both_ends_of_a_range_that_only_negative_margins_make():
    found = summarise(unbounded(), Scale(0.1, 1e-17, 5.0, "unclamped"))["beta"]
    assert found["at_floor"] + found["at_ceiling"] <= 1 and found["at_ceiling"] == np.mean(unbounded() > 0)


# What is left out ------------------------------------------------------------------------------------------------------


def test_numbers_that_are_missing_or_not_finite_are_counted_and_left_out():
    found = summarise(np.asarray([1.0, np.nan, np.inf, -np.inf, -1.0]), PAPER, unrewarded=2)
    assert (found["pairs"], found["missing"], found["not_finite"], found["share_right"]) == (2, 1, 2, 0.5)
    assert left_out(found) == "left out: 1 pair lacks a margin, 2 margins are not finite, 2 responses have no reward"
    assert "left out: 1 pair lacks" in "\n".join(lines(found))
    nothing = summarise(np.asarray([np.nan]), PAPER)
    assert list(lines(nothing)) == ["no strictly ordered pair has a margin, so that there is nothing to say about margins",
                                    "left out: 1 pair lacks a margin"]  # fmt: skip


def test_margins_are_those_of_strictly_ordered_pairs():
    responses = [(1, 4.0), (1, 9.0), (2, 5.5), (None, 7.0), (3, None)]
    record = RankedRecord(
        id="a", prompt="?", responses=tuple(Response(f"{i}", rank=k, reward=r) for i, (k, r) in enumerate(responses))
    )
    found = margins_of([record, RankedRecord(id="b", prompt="?", responses=(Response("a"), Response("b")))])
    assert [len(each) for each in found] == [5, 0]
    np.testing.assert_array_equal(np.sort(found[0]), [-1.5, 3.5, np.nan, np.nan, np.nan])


def test_margins_of_the_largest_rewards_are_finite_and_the_same_for_training(recwarn):
    responses = tuple(Response(f"{rank}", rank=rank, reward=reward) for rank, reward in ((1, 3e38), (2, -3e38), (3, 1.0)))
    record = RankedRecord(id="a", prompt="?", responses=responses)
    geometry = VisionGeometry(tiny.SIDE, 7, pinpoints=((tiny.SIDE, tiny.SIDE),), max_patches=9)
    encoder = GroupEncoder(PieceTokenizer(tiny.tokenizer(), tiny.IMAGE_TOKEN), geometry, "qwen_1_5")
    for found in (margins_of([record])[0], encoder.margins(record, "rewards")):
        np.testing.assert_array_equal(found, [6e38, 3e38 - 1, -3e38 - 1])
    assert not recwarn


# `mmrlhf data margins` -----------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """A data set of two responses a record, and score files for it."""
    count = 300

    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    ranked = [{"text": "a", "rank": 1, "scores": {"help": 4}}, {"text": "b", "rank": 2, "scores": {"help": 1}}]
    rows = [{"id": f"{i}", "prompt": f"{i}?", "responses": ranked} for i in range(count)]
    found = {"data": write("data.jsonl", rows)}
    for name, margins in (("gate", unbounded(count)), ("calibrated", calibrated(count))):
        lines = [{"id": f"{i}", "responses": [{"reward": margin}, {"reward": 0.0}]} for i, margin in enumerate(margins)]
        found[name] = write(f"{name}.jsonl", reversed(lines))  # lines are found by id, not by place
    return found


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mmrlhf", "data", "margins", *arguments, "--out", str(tmp_path / "margins.html")])
        code = _exit_code(cli.main)
        out, err = capsys.readouterr()
        page = tmp_path / "margins.html"
        return code, out, err, page.read_text() if page.exists() else ""

    return run


def _exit_code(main):
    try:
        main()
    except SystemExit as ended:
        return ended.code or 0
    return 0


def test_the_page_has_the_figures_of_the_json(files, command):
    code, out, _, page = command(files["data"], "--rewards", files["gate"], "--json")
    assert not code and not page
    found = json.loads(out)
    expected = summarise(unbounded(300), PAPER)
    assert found["beta"] == expected["beta"] and found["reliability"] == expected["reliability"]
    code, _, err, page = command(files["data"], "--rewards", files["gate"])
    assert not code and "β is a gate, not a scale" in err and "β is a gate, not a scale" in page
    for share in (found["share_right"], found["beta"]["at_floor"], found["beta"]["at_ceiling"]):
        assert f"{100 * share:.1f} %" in page
    for row in found["reliability"]:
        assert f"<td>{row['pairs']}</td><td>{row['right']}</td>" in page and f"{100 * row['calibrated']:.1f} %" in page
    for value in found["quantiles"].values():
        assert f"<td>{value:.3g}</td>" in page
    assert formula(found["scale"]) in page
    xml.etree.ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))


def test_calibrated_margins_and_the_median_k_bring_no_warning(files, command):
    for arguments in (["--rewards", files["calibrated"]], ["--rewards", files["gate"], "--k", "median"]):
        code, _, err, page = command(files["data"], *arguments)
        assert not code and "β is a gate" not in err and "Warning" not in page
    assert f"exp(−{np.log(2) / np.median(unbounded(300)[unbounded(300) > 0]):.4g} ·" in page


def test_margins_of_human_scores_and_of_rewards_in_the_data(files, command):
    code, out, _, _ = command(files["data"], "--margins", "human_scores", "--json")
    assert not code and json.loads(out)["quantiles"]["50"] == 3.0
    code, _, err, _ = command(files["data"], "--margins", "human_scores", "--beta", "0.2", "--w", "1", "--k", "2")
    assert not code and "the floor 0.2, and of 100.0 % from the ceiling 0.4" in err
    code, _, err, _ = command(files["data"])
    assert code and "none of 300 strictly ordered pairs has a margin from rewards; `mmrlhf score` it" in err


def drawn(margins, scale=PAPER):
    """The page of these margins, the numbers of the bars of δ, and the δ of both ends of the curve, in pixels."""
    page = margins_page("data", summarise(margins, scale))
    figure = page.split("β(δ) over the margins</title>")[1].split("</svg>")[0] if "over the margins" in page else ""
    counts = [int(count) for count in re.findall(r"<title>[-\d.e+]+ to [-\d.e+]+: (\d+)</title>", figure)]
    (points,) = re.findall(r'points="([^"]*)"', figure) or [""]
    return page, counts, [float(point.split(",")[0]) for point in (points.split()[:1] + points.split()[-1:])]


def test_the_axis_says_only_what_the_bars_show():
    page, counts, _ = drawn(unbounded(999))
    assert sum(counts) == 999 and "outermost bars" not in page and "left out" not in page
    page, counts, _ = drawn(np.concatenate([unbounded(1000), [1e6]]))  # between the quantiles of .002 and .998: all but 2 + 2
    assert sum(counts) == 1001 and "the outermost bars hold 4 pairs beyond" in page
    assert "bins of about equally many pairs, equal |δ| together" in page and "take records as trials" in page


def test_pairs_that_are_dropped_have_neither_bars_nor_a_beta():
    dropped, kept = (unbounded() < 0).sum(), unbounded()[unbounded() > 0]
    page, counts, ends_of_curve = drawn(unbounded(), PAPER._replace(negative_margins="drop"))
    assert sum(counts) == len(kept) and f"; {dropped} pairs below 0 left out" in page
    assert ends_of_curve == drawn(kept)[2] and counts == drawn(kept)[1]
    page, counts, _ = drawn(-np.abs(unbounded()), PAPER._replace(negative_margins="drop"))
    assert not counts and "no pair has a β, because all margins are negative" in page and "Reliability" in page


def test_data_without_strict_pairs_is_told_so_whatever_the_source_of_margins(tmp_path, command):
    responses = [{"text": "a", "rank": 1, "scores": {"help": 4}}, {"text": "b", "rank": 1, "scores": {"help": 1}}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "0", "prompt": "?", "responses": responses}) + "\n")
    (tmp_path / "rewards.jsonl").write_text('{"id": "0", "responses": [{"reward": 1.0}, {"reward": 0.0}]}\n')
    for arguments in (["--rewards", str(tmp_path / "rewards.jsonl")], ["--margins", "human_scores"], []):
        code, _, err, _ = command(str(tmp_path / "data.jsonl"), *arguments)
        assert code and "no record has a strictly ordered pair (of different ranks)" in err and "give the file" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--k", "medium"], "error: --k: scaling.k: expected a number or median, found 'medium'\n"),
        (["--k", "-1"], "error: --k: scaling.k: Input should be greater than or equal to 0\n"),
        (["--w", "-1"], "error: --w: scaling.w: "),
        (["--beta", "0"], "error: --beta: beta: "),
        (["--margins", "ranks", "--k", "2"], "error: --margins: scaling.margins: "),
        (["--negative-margins", "cut", "--k", "2"], "error: --negative-margins: scaling.negative_margins: "),
        (["--margins", "human_scores", "--rewards", "gate"], "--margins human_scores takes no rewards"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_one_line(files, command, arguments, said):
    arguments = [files.get(argument, argument) for argument in arguments]
    code, _, err, _ = command(files["data"], *arguments)
    assert code and said in err and err.count("\n") == 1 and "more)" not in err


def test_a_scale_needs_a_positive_margin_for_the_median():
    with pytest.raises(UserError, match="here: k: median: none of 2 margins is positive"):
        scale_of(config.Preference(scaling=config.Scaling(k="median")), np.asarray([-1.0, 0.0]), "here")
