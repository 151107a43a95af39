"""The quickstart's page: one self-contained, well-formed file that shows what was measured, and escapes what was written."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from mmrlhf_jax import config, sections
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.built_examples import BuiltExamples
from mmrlhf_jax.data.margin_summary import scale_of, summarise
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.objectives import reward_scaling
from mmrlhf_jax.pages import charts
from mmrlhf_jax.pages.judged import judged_pairs, signed
from mmrlhf_jax.pages.quickstart import SHOWN_QUESTIONS
from mmrlhf_jax.quickstart.dataset import write_dataset
from mmrlhf_jax.quickstart.page import write_page
from mmrlhf_jax.quickstart.questions import KINDS, is_correct, question_from_record
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.training.page import MARGINS

HOSTILE = '<script>alert("1")</script>&amp;'
EXPERIMENT = Path(__file__).parents[2] / "configs" / "quickstart" / "mmdpo.yaml"
SETTLED = ["objective.scaling.k=0.25"]  # a run's own configuration has a number
FIGURES = {
    "reward_model": {
        "acc": 0.8765,
        "acc_plus": 0.6543,
        "acc_blind": 0.4321,
        "acc_longer_wins": 0.5012,
        "pairs": 271,
        "critiques": 4464,
        "critique_seconds": 65.4,
        "by_kind": {"colour": {"pairs": 19, "acc": 0.7391}},
    },
    "policy": {
        "accuracy_before": 0.3141,
        "accuracy_after_mmdpo": 0.7182,
        "accuracy_after_dpo": 0.6022,
        "by_kind": {name: {"colour": 0.25, "count": 0.5} for name in ("before", "after_mmdpo", "after_dpo")},
    },
    "export": {"max_abs_logit_diff": 3.25e-06},
    "seconds": 432.0,
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> BuiltExamples:
    root = tmp_path_factory.mktemp("quickstart")
    source = write_dataset(root / "sources", seed=0, scenes={"held_out": 20}, questions_per_scene=3)["held_out"]
    return build(source, root / "data" / "held_out")


@pytest.fixture
def root(examples) -> Path:
    """A quickstart's directory, with the runs' configuration and metrics as the train loop writes them."""
    root = Path(examples.directory).parents[1]
    rows = {
        "accounts": {"loss": 1.5, "mean_token_accuracy": 0.6},
        "supervised": {"loss": 2.5, "mean_token_accuracy": 0.5},
        "reward": {"score/loss": 0.6, "accuracy": 0.7, "margin": 1.2, "critique/loss": 0.4, "critique/token_accuracy": 0.9},
        "mmdpo": {
            "loss": 0.5,
            "rewards/accuracies": 0.8,
            "rewards/margins": 1.1,
            "beta/mean": 0.12,
            "reward_model/disagreement": 0.1,
        },
        "dpo": {"loss": 0.6, "rewards/accuracies": 0.7, "rewards/margins": 0.9, "beta/mean": 0.1},
    }
    for run, figures in rows.items():
        (root / "runs" / run).mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"step": step} | {name: value / step for name, value in figures.items()}) for step in range(1, 20)]
        (root / "runs" / run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    settled = config.load_experiment(EXPERIMENT, SETTLED)
    (root / "runs" / "mmdpo" / "config.yaml").write_text(sections.resolved(settled))
    margins = np.random.default_rng(1).normal(1, 2, 300)
    summary = summarise(margins, scale_of(settled.objective, margins, "test"))
    (root / "runs" / "mmdpo" / MARGINS).write_text(json.dumps(summary))
    return root


@pytest.fixture
def held_out(examples) -> list[RankedRecord]:
    """Scored records: mostly rank by rank, with noise, and with critiques of the model's own."""
    rng = np.random.default_rng(0)

    def score(response):
        reward = float(2 - response.rank + rng.normal() / 2)
        return dataclasses.replace(response, reward=reward, critique=f"I find: {response.text}")

    return [record.replace_responses([score(response) for response in record.responses]) for record in examples.records]


@pytest.fixture
def answers(examples) -> dict[str, list[str]]:
    best = [min(record.responses, key=lambda r: r.rank).text for record in examples.records]
    worst = [max(record.responses, key=lambda r: r.rank).text for record in examples.records]
    return {"before": worst, "after_mmdpo": best, "after_dpo": best}


def written(root: Path, *inputs) -> str:
    write_page(root, *inputs)
    return (root / "report.html").read_text(encoding="utf-8")


def parsed(page: str) -> ElementTree.Element:
    """An XML parser is the judge: every tag is closed, every character escaped, and so is every drawing within."""
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))


def text_of(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def tiles(tree: ElementTree.Element) -> dict[str, str]:
    return {tile.find("b").text: tile.find("strong").text for tile in tree.iter("div") if tile.get("class") == "tile"}


def test_page_is_well_formed_and_asks_nothing_of_the_network_or_of_scripts(root, held_out, answers):
    page = written(root, FIGURES, held_out, answers)
    tree = parsed(page)
    assert (
        len(tree.findall(".//svg[@role='img']")) == 19
    )  # 14 curves, three of the margins learnt from, one of held-out margins, and the bars
    assert "://" not in page and "@import" not in page and "url(" not in page and "<script" not in page
    sources = [image.get("src") for image in tree.iter("img")]
    assert len(sources) >= SHOWN_QUESTIONS and all(source.startswith("data:image/png;base64,") for source in sources)
    names = {section.get("id") for section in tree.iter("section")}
    links = {link.get("href") for link in tree.iter("a")}
    assert links == {f"#{name}" for name in names} | {"evaluation/report.html"}  # every link leads somewhere


def test_page_states_the_key_figures_in_tiles_and_all_of_them_in_tables(root, held_out, answers):
    tree = parsed(written(root, FIGURES, held_out, answers))
    assert tiles(tree) == {
        "ACC": "87.6 %",
        "ACC+": "65.4 %",
        "ACC, blind": "43.2 %",
        "ACC, longer wins": "50.1 %",
        "Critiques": "4464",
        "Right before": "31.4 %",
        "Right after MM-DPO": "71.8 %",
        "Right after plain DPO": "60.2 %",
        "Export": "3.25e-06",
        "Time": "7 min 12 s",
    }
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in tree.iter("tr") if row[0].tag == "td"}
    assert rows["reward_model.acc_longer_wins"] == ["0.5012"] and rows["export.max_abs_logit_diff"] == ["3.25e-06"]
    assert rows["colour"] == ["19", "0.7391"] and rows["after_mmdpo"] == ["0.25", "0.5"]


def test_whatever_a_model_writes_is_shown_as_text(root, held_out, answers):
    hostile = [
        r.replace_responses([dataclasses.replace(x, text=HOSTILE, critique=HOSTILE) for x in r.responses]) for r in held_out
    ]
    tree = parsed(written(root, FIGURES, hostile, {name: [HOSTILE] * len(texts) for name, texts in answers.items()}))
    assert not list(tree.iter("script"))
    quotes = [quote.text for quote in tree.iter("blockquote")]
    assert quotes and set(quotes) == {HOSTILE}
    assert text_of(tree).count(HOSTILE) >= 2 * len(quotes) + 3 * SHOWN_QUESTIONS


def test_beta_of_every_pair_is_what_the_objective_computes(held_out):
    objective = config.load_experiment(EXPERIMENT, [*SETTLED, "objective.beta=0.2", "objective.scaling.w=0.7"]).objective
    pairs = [pair for record in held_out for pair in judged_pairs(record, objective)]
    margins = np.array([pair.margin for pair in pairs], np.float32)
    assert (margins < 0).any() and (margins > 0).any()
    expected = reward_scaling.margin(margins, objective.beta, objective.scaling.w, objective.scaling.k)
    np.testing.assert_allclose([pair.beta for pair in pairs], expected, rtol=1e-6)


def test_pairs_are_not_judged_by_a_k_that_each_record_sets_for_itself(held_out):
    unsettled = config.load_experiment(EXPERIMENT).objective
    assert unsettled.scaling.k == "median"
    with pytest.raises(UserError, match=r"objective\.scaling\.k: median is no number yet"):
        judged_pairs(held_out[0], unsettled)


def test_the_page_draws_the_margins_that_were_learnt_from_and_how_far_they_can_be_trusted(root, held_out, answers):
    text = text_of(parsed(written(root, FIGURES, held_out, answers)))
    summary = json.loads((root / "runs" / "mmdpo" / MARGINS).read_text())
    assert f"β of {summary['beta']['pairs']} pairs" in text and text.count("pairs right, by |δ|") == 4  # two titles, read twice
    assert "exp(−0.25 · " in text
    assert f"In fact {100 * summary['share_right']:.1f} % are right" in text
    assert "k is set by the data" not in text  # this configuration has a number


def test_cards_show_each_kind_of_question_in_the_reward_models_order(root, held_out, answers):
    tree = parsed(written(root, FIGURES, held_out, answers))
    cards = [card for card in tree.iter("article")]
    notes = [text_of(card.find(".//small")) for card in cards]
    kinds = {question_from_record(record).kind for record in held_out}
    assert [kind for kind in KINDS if kind in kinds] == [note.split(" · ")[0] for note in notes if " · " in note]
    objective = config.load_experiment(EXPERIMENT, SETTLED).objective
    records = {f"the picture of {record.id}": record for record in held_out}
    for card in cards:
        rewards = [float(reward.text.replace("−", "-")) for reward in card.iter("span") if reward.get("class") == "reward"]
        assert rewards == sorted(rewards, reverse=True)
        record = records[card.find(".//img").get("alt")]
        assert record.prompt == card.find(".//h3").text.strip()
        texts = [text.text for text in card.iter("span") if text.get("class") == "text"]
        assert sorted(texts) == sorted(response.text for response in record.responses)
        shown = [[text_of(cell) for cell in row] for row in card.findall(".//tbody/tr")]
        pairs = judged_pairs(record, objective)
        expected = [[signed(pair.margin), f"{pair.beta:.4f}", "✓" if pair.right else "✗"] for pair in pairs]
        assert sorted(row[1:] for row in shown) == sorted(expected)


def test_sampled_answers_are_evenly_spaced_and_marked_by_the_checker(root, held_out, answers, examples):
    tree = parsed(written(root, FIGURES, held_out, answers))
    (table,) = [table for table in tree.iter("table") if table.get("class") == "answers"]
    rows = table.findall("./tbody/tr")
    assert len(rows) == SHOWN_QUESTIONS
    for place, row in enumerate(rows):
        index = place * len(examples) // SHOWN_QUESTIONS
        question = question_from_record(examples.records[index])
        assert text_of(row[1]).startswith(question.prompt)
        for cell, name in zip(row[2:], ("before", "after_mmdpo", "after_dpo"), strict=True):
            answer = answers[name][index]
            assert text_of(cell) == f"{'✓' if is_correct(question, answer) else '✗'} {answer}"


def test_missing_figures_and_metrics_leave_gaps_not_errors(root, held_out, answers):
    (root / "runs" / "dpo" / "metrics.jsonl").unlink()
    (root / "runs" / "reward" / "metrics.jsonl").write_text(json.dumps({"step": 1, "accuracy": None, "margin": 1.0}) + "\n")
    tree = parsed(written(root, FIGURES | {"export": {"max_abs_logit_diff": None}}, held_out, answers))
    assert tiles(tree)["Export"] == "not compared"
    assert text_of(tree).count("not logged") == 4  # of the reward model's five curves, the margin is left
    assert set(tiles(parsed(written(root, {}, held_out, answers))).values()) == {"–", "not compared"}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.1, 0.15), (-3.2, 7.9), (0, 250), (1e-7, 3e-7), (2, 40000)])
def test_axis_ticks_are_few_round_numbers_within_the_range(low, high):
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 6 and low <= found[0] and found[-1] <= high
    step = found[1] - found[0]
    assert np.allclose(np.diff(found), step) and np.allclose(np.array(found) / step, np.round(np.array(found) / step))
    assert round(step / 10.0 ** np.floor(np.log10(step) + 1e-6), 6) in (1, 2, 5)


def test_smoothing_keeps_constants_and_straight_lines_and_cuts_noise():
    smoothed = lambda values: charts.smoothed(values, range(len(values)))
    np.testing.assert_allclose(smoothed([0.3] * 50), 0.3)
    np.testing.assert_array_equal(smoothed([1e20] + [1.0] * 49)[-10:], 1)  # one huge value stays where it is
    line = np.arange(240.0)
    np.testing.assert_allclose(smoothed(list(line))[10:-10], line[10:-10])  # it does not lag
    noise = np.random.default_rng(0).normal(size=240)
    assert np.std(smoothed(list(noise))) < np.std(noise) / 3
    assert smoothed([]) == []


@pytest.mark.parametrize("count", [1, 2, 400, 401, 5000])
def test_what_is_drawn_of_a_long_line_has_both_its_ends(count):
    places = charts.drawn_places(count)
    assert places[0] == 0 and places[-1] == count - 1 and len(places) <= charts.MOST_POINTS + 1
    assert places == sorted(set(places))
