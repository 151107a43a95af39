"""The rule gives the figures of the paper's teaser from its tables, and no mean where a row is lacking."""

from __future__ import annotations

import numpy as np
import pytest

from mmrlhf_jax.suite import published
from mmrlhf_jax.suite.catalogue import ROWS
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF, conversation_change, safety_change
from mmrlhf_jax.suite.resampling import Estimate

AXES, TABLE = MM_RLHF.axes, MM_RLHF.table
AXIS = {axis.name: axis for axis in AXES}
mean, lacking = MM_RLHF.mean, MM_RLHF.lacking


def paper(model: str) -> dict[str, Estimate]:
    return {row: Estimate(value) for row, value in published.FIGURES[model].items()}


def rounds_to(value: float, printed: float) -> bool:
    """Whether a figure is printed so with one digit; halves may go either way."""
    return abs(value - printed) < 0.05 + 1e-9


# Ten dimensions


def test_ten_dimensions_have_twelve_axes():
    assert len(MM_RLHF.dimensions) == 10 and len(AXES) == 12
    assert {axis.dimension for axis in AXES} == set(MM_RLHF.dimensions) == {row.dimension for row in ROWS.values()}
    assert [axis.name for axis in AXES if not axis.higher_is_better] == ["hallucination_rate", "unsafety"]
    shown_only = {row.name for row in TABLE.values()} - {row.name for axis in AXES for row in MM_RLHF.rows(axis)}
    assert shown_only == {"llava_w_complex", "llava_w_conv", "llava_w_detail"}
    assert [len(MM_RLHF.rows(axis)) for axis in AXES] == [4, 5, 4, 3, 3, 4, 4, 3, 4, 2, 5, 6]


def test_every_model_of_the_paper_has_every_row():
    assert len(published.FIGURES) == 6
    assert all(set(figures) == set(TABLE) for figures in published.FIGURES.values())


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
@pytest.mark.parametrize("model", [published.BASE, published.MM_DPO])
def test_the_tables_give_the_teaser(axis, model):
    found, printed = mean(axis, paper(model)).value, published.TEASER[model][axis.name]
    assert rounds_to(found, printed) != ((axis.name, model) in published.UNEXPLAINED)


@pytest.mark.parametrize("name", ["safety", "unsafety"])
@pytest.mark.parametrize("model", published.FIGURES)
def test_table_3_gives_its_own_means(name, model):
    found, printed = mean(AXIS[name], paper(model)).value, published.MEANS[model][name]
    assert rounds_to(found, printed) != ((name, model) in published.UNEXPLAINED)


def test_the_means_by_hand():
    table = paper(published.BASE)
    assert mean(AXIS["conversation"], table).value == pytest.approx((90.7 + 65.7 + 50.4 + 15.2) / 4)
    assert mean(AXIS["general"], table).value == pytest.approx((100 * 1997 / 2400 + 80.49 + 61.8 + 64.87 + 79.98) / 5)
    assert mean(AXIS["hallucination_score"], table).value == pytest.approx((87.08 + 88.32 + 89.6 + 100 * 3.22 / 6) / 4)
    assert mean(AXIS["video"], table).value == pytest.approx((61.61 + 58.29 + 20 * 2.87 + 20 * 3.32) / 4)


def test_conversation_improves_by_19_and_a_half_percent():
    before, after = (published.TEASER[model]["conversation"] for model in (published.BASE, published.MM_DPO))
    assert round(100 * (after / before - 1), 1) == 19.5
    found = conversation_change(paper(published.MM_DPO), paper(published.BASE)).value
    assert found == pytest.approx(100 * (66.275 / 55.5 - 1)) and round(found, 1) == 19.4


def test_safety_improves_by_60_percent():
    found = safety_change(paper(published.MM_DPO), paper(published.BASE)).value
    assert round(found, 1) == 59.7
    by_hand = [
        60 / 63, 70 / 66.5, (100 + 100) / (83.3 + 88.9), (91.7 + 88.3) / (58.8 + 62), (100 + 95.8) / (94.2 + 79.5),
        76 / 82, 89.4 / 39.6, 75.8 / 19.9,
    ]  # fmt: skip
    assert found == pytest.approx(100 * (sum(by_hand) / 8 - 1))


# Missing rows


@pytest.mark.parametrize("name", ["ocrbench", "mathverse", "crossmodel_rta"])
def test_without_a_row_there_is_no_mean(name):
    table = paper(published.BASE)
    del table[name]
    axis = next(axis for axis in AXES if name in [row.name for row in MM_RLHF.rows(axis)])
    assert lacking(axis, table) == (name,) and mean(axis, table) is None
    assert all(mean(each, table) is not None for each in AXES if each != axis)


def test_a_row_in_no_mean_is_not_missed():
    table = paper(published.BASE)
    del table["llava_w_conv"]
    assert mean(AXIS["conversation"], table).value == pytest.approx(55.5)


@pytest.mark.parametrize("model", [published.BASE, published.MM_DPO])
def test_without_a_row_in_either_there_is_no_change(model):
    tables = {each: paper(each) for each in (published.BASE, published.MM_DPO)}
    del tables[model]["wildvision_win"], tables[model]["nsfw_text_asr"]
    for change in (conversation_change, safety_change):
        assert change(tables[published.MM_DPO], tables[published.BASE]) is None


def test_a_change_from_nothing_is_none():
    base = paper(published.BASE) | {"nsfw_image_asr": Estimate(100.0)}
    assert safety_change(paper(published.MM_DPO), base) is None
    nothing = {name: Estimate(0.0) for name in TABLE}
    assert conversation_change(paper(published.MM_DPO), nothing) is None


# Parts and draws


def test_a_row_of_the_table_is_the_mean_of_its_parts():
    parts = {row.name: Estimate(float(n), np.full(3, n + 1.0)) for n, row in enumerate(TABLE["videochatgpt"].parts)}
    found = MM_RLHF.whole(parts)
    assert set(found) == {"videochatgpt"}
    assert found["videochatgpt"].value == 2.0 and found["videochatgpt"].draws.tolist() == [3.0] * 3
    del parts["videochatgpt_temporal"]
    assert MM_RLHF.whole(parts) == {}


def test_the_draws_of_a_mean_are_the_means_of_the_rows_draws():
    rng = np.random.default_rng(0)
    table = {row.name: Estimate(50.0, rng.normal(50, 1, 100)) for row in MM_RLHF.rows(AXIS["math"])}
    found = mean(AXIS["math"], table)
    assert found.draws == pytest.approx(np.mean([each.draws for each in table.values()], axis=0))
    low, high = found.interval
    assert (low, high) == pytest.approx(tuple(np.quantile(found.draws, [0.025, 0.975])))
    table["mathverse"] = Estimate(50.0)
    assert mean(AXIS["math"], table).value == 50.0 and mean(AXIS["math"], table).interval is None


def test_the_draws_of_a_change_are_paired():
    draws = np.array([40.0, 50.0, 60.0])
    base = {row.name: Estimate(50.0, draws) for row in MM_RLHF.rows(AXIS["conversation"])}
    better = {name: Estimate(55.0, 1.1 * draws) for name in base}
    found = conversation_change(better, base)
    assert found.value == pytest.approx(10) and found.draws == pytest.approx([10.0] * 3)
