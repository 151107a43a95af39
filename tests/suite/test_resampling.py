"""Draws are what NumPy gives for them, depend on ids and clusters alone, keep clusters together, and pair two models."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmrlhf_jax.suite import resampling
from mmrlhf_jax.suite.catalogue import ROWS
from mmrlhf_jax.suite.resampling import DRAWS, Estimate, combined, estimate, figure
from mmrlhf_jax.suite.results import Document
from mmrlhf_jax.suite.task import Row

MEAN = Row("r", "R", ("r",), "ocr")
BY_GROUP = Row("r", "R", ("r",), "ocr", pooling="mean of groups")
SUM_OF_GROUPS = Row("r", "R", ("r",), "ocr", pooling="sum of groups")


def document(name, value, cluster=None, weight=None, group=None, missing=None) -> Document:
    weights = {} if weight is None else {"r": weight}
    values = {} if missing else {"r": value}
    return Document(str(name), cluster or str(name), "Q", (), "A", None, values, missing, weights, group)


def some(count: int, seed: int = 0, **options) -> list[Document]:
    return [document(n, value, **options) for n, value in enumerate(np.random.default_rng(seed).normal(50, 10, count))]


def resamples(documents):
    """Yield the indices of the documents of each draw; those of a cluster stand together."""
    names, of = np.unique([each.cluster for each in documents], return_inverse=True)
    by_id = sorted(range(len(documents)), key=lambda index: documents[index].id)
    members = [[index for index in by_id if of[index] == cluster] for cluster in range(len(names))]
    for drawn in resampling._Clusters(documents).drawn():
        for each in drawn:
            yield np.concatenate([members[cluster] for cluster in each])


# Figures


def test_a_mean_and_its_draws_by_hand():
    documents = some(40)
    values = np.array([each.values["r"] for each in documents])
    found = estimate(MEAN, documents)
    assert found.value == pytest.approx(values.mean())
    assert found.draws == pytest.approx([values[drawn].mean() for drawn in resamples(documents)])
    assert len(found.draws) == DRAWS


def test_a_weighted_mean_is_a_ratio_of_sums():
    rng = np.random.default_rng(1)
    model, reference = rng.integers(1, 11, (2, 30)).astype(float)
    documents = [document(n, 100 * m / r, weight=r) for n, (m, r) in enumerate(zip(model, reference, strict=True))]
    found = estimate(MEAN, documents)
    assert found.value == pytest.approx(100 * model.mean() / reference.mean())
    by_hand = [100 * model[drawn].sum() / reference[drawn].sum() for drawn in resamples(documents)]
    assert found.draws == pytest.approx(by_hand)


@pytest.mark.parametrize("row, times", [(BY_GROUP, 1), (SUM_OF_GROUPS, 3)])
def test_in_draws_over_groups_those_that_are_drawn_stand_for_the_others(row, times):
    groups = np.array(["a", "b", "c", "a", "b", "a", "a"])
    values = np.arange(7.0)
    documents = [document(n, value, group=group) for n, (value, group) in enumerate(zip(values, groups, strict=True))]

    def by_hand(drawn):
        return times * np.mean([values[drawn][groups[drawn] == group].mean() for group in sorted(set(groups[drawn]))])

    found = estimate(row, documents)
    assert found.value == pytest.approx(by_hand(np.arange(7)))
    assert found.draws == pytest.approx([by_hand(drawn) for drawn in resamples(documents)])


@pytest.mark.parametrize("row", [BY_GROUP, SUM_OF_GROUPS])
@pytest.mark.parametrize("lost", [{"missing": "its picture is missing"}, {"weight": 0.0}])
def test_over_groups_there_is_no_figure_without_one_of_them(row, lost):
    documents = [document(n, 50.0, group="abc"[n % 3]) for n in range(9)]
    without = [document(n, 50.0, group="abc"[n % 3], **(lost if n % 3 == 1 else {})) for n in range(9)]
    assert estimate(row, documents) is not None and estimate(row, without) is None
    assert resampling.lacking(row, without, {"a", "b", "c"}) == "2 of 3 categories: b missing"
    assert estimate(row, documents, {"a", "b", "c", "d"}) is None  # of which there is no document
    assert resampling.lacking(row, documents, set("abcdefgh")) == "3 of 8 categories: d, e, f and others missing"
    assert estimate(row, without[::3]) is not None  # documents of one group alone are a set of their own
    assert estimate(MEAN, without).value == 50.0 and resampling.lacking(MEAN, without, {"d"}) is None


def test_documents_that_are_not_scored_are_not_in_it():
    documents = some(10)
    extra = [document("x", 1e6, missing="the judge failed"), document("y", None, missing="its picture is missing")]
    assert estimate(MEAN, [*documents, *extra]).draws.tolist() == estimate(MEAN, documents).draws.tolist()
    assert estimate(MEAN, extra) is None and estimate(MEAN, []) is None
    assert estimate(MEAN, [document(1, 2.0, weight=0.0)]) is None
    assert estimate(MEAN, [document(1, None)]) is None


def test_scored_documents_without_a_value_have_no_weight_but_are_drawn():
    """So that the draws of two rows, or of two models, are of the same clusters."""
    values = np.array([each.values["r"] for each in some(40)])
    there = np.arange(40) % 4 != 0
    documents = [document(n, value if has else None) for n, (value, has) in enumerate(zip(values, there, strict=True))]
    found = estimate(MEAN, documents)
    assert found.value == pytest.approx(values[there].mean())
    assert found.draws == pytest.approx([values[drawn[there[drawn]]].mean() for drawn in resamples(documents)])


def test_without_a_second_cluster_or_enough_weight_there_is_no_interval():
    assert estimate(MEAN, [document(1, 2.0, "a"), document(2, 4.0, "a")]).interval is None
    rare = [document(n, 50.0, weight=float(n == 0)) for n in range(5)]
    assert estimate(MEAN, rare).value == 50.0 and estimate(MEAN, rare).interval is None


# Draws


def test_the_order_of_documents_has_no_influence():
    documents = some(30)
    shuffled = [documents[n] for n in np.random.default_rng(3).permutation(30)]
    assert estimate(MEAN, shuffled).draws == pytest.approx(estimate(MEAN, documents).draws)
    drawn = [[documents[n].id for n in each] for each in resamples(documents)]
    assert [[shuffled[n].id for n in each] for each in resamples(shuffled)] == drawn


def test_clusters_are_drawn_as_a_whole():
    documents = [document(n, float(n), cluster=f"picture {n // 3}") for n in range(12)]
    for drawn in resamples(documents):
        assert len(drawn) == 12
        counts = np.bincount(drawn, minlength=12).reshape(4, 3)
        assert (counts == counts[:, :1]).all()
    torn = estimate(MEAN, [document(n, float(n)) for n in range(12)]).draws.std()
    assert estimate(MEAN, documents).draws.std() > 1.4 * torn


def test_clusters_of_different_sizes():
    documents = [document(n, float(n), cluster="big" if n < 5 else str(n)) for n in range(8)]
    values = np.arange(8.0)
    assert estimate(MEAN, documents).draws == pytest.approx([values[drawn].mean() for drawn in resamples(documents)])


def test_other_ids_or_clusters_give_other_draws():
    documents = some(30)
    renamed = [document(f"{each.id}'", each.values["r"]) for each in documents]
    clustered = [document(each.id, each.values["r"], cluster=f"c{each.id}") for each in documents]
    first = estimate(MEAN, documents).draws
    assert all((estimate(MEAN, other).draws != first).any() for other in (renamed, clustered))


def test_two_models_are_paired():
    documents = some(200)
    better = [document(each.id, each.values["r"] + 1.0) for each in documents]
    difference = combined(np.subtract, estimate(MEAN, better), estimate(MEAN, documents))
    assert difference.draws == pytest.approx(np.ones(DRAWS))
    alone = estimate(MEAN, documents).interval
    assert alone[1] - alone[0] > 2


def test_the_interval_is_that_of_a_binomial_share():
    rng = np.random.default_rng(0)
    right = 100.0 * (rng.random(800) < 0.7)
    low, high = estimate(MEAN, [document(n, value) for n, value in enumerate(right)]).interval
    share = right.mean() / 100
    error = 196 * math.sqrt(share * (1 - share) / 800)
    assert (low, high) == pytest.approx((100 * share - error, 100 * share + error), abs=0.8)


def test_it_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(5), 0
    for sample in range(200):
        sizes = rng.integers(1, 4, 60)
        documents = [
            document(f"{sample}-{cluster}-{n}", 100.0 * (rng.random() < chance), cluster=str(cluster))
            for cluster, (size, chance) in enumerate(zip(sizes, rng.beta(4, 2, 60), strict=True))
            for n in range(size)
        ]
        low, high = estimate(MEAN, documents).interval
        covered += low <= 100 * 4 / 6 <= high
    assert 0.9 <= covered / 200 <= 0.985


# A harness's figure


def test_a_figure_has_draws_if_the_documents_give_it(capsys):
    documents = some(50)
    value = estimate(MEAN, documents).value
    found = figure(MEAN, documents, value + 0.04)  # rounded by the harness
    assert found.value == value + 0.04 and len(found.draws) == DRAWS and capsys.readouterr().err == ""


def test_a_figure_that_the_documents_do_not_give_has_no_interval(capsys):
    found = figure(MEAN, some(50), 10.0)
    assert (found.value, found.draws) == (10.0, None)
    assert "r: the harness gives 10" in capsys.readouterr().err
    assert figure(MEAN, [], 10.0).draws is None
    assert "give none" in capsys.readouterr().err


def test_mme_is_the_sum_over_categories_of_accuracy_and_of_pairs_that_are_right():
    """As the harness's `mme_aggregate_results` computes it, from one value per document."""
    rng, documents, total = np.random.default_rng(2), [], 0.0
    for category in ("color", "count", "OCR"):
        right = rng.random((9, 2)) < 0.6
        total += 100 * right.mean() + 100 * right.all(1).mean()
        for pair, both in enumerate(right):
            for n, one in enumerate(both):
                value = {"mme": 100.0 * one + 100.0 * both.all()}
                documents.append(
                    Document(f"{category}{pair}{n}", f"{category}{pair}", "Q", (), "A", None, value, group=category)
                )
    assert figure(ROWS["mme"], documents, total).draws is not None


def test_a_combination_that_is_not_defined():
    one, none = Estimate(1.0, np.ones(3)), Estimate(0.0, np.zeros(3))
    with pytest.raises(ZeroDivisionError):
        combined(np.divide, one, none)
    assert combined(np.divide, one, Estimate(1.0, np.array([1.0, 0.0, 1.0]))).draws is None
    assert combined(np.add, one, Estimate(1.0)).draws is None
    assert combined(np.add, one, Estimate(1.0, np.ones(1))).draws is None
