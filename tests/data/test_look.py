"""`mmrlhf data validate | stats | show`: what is wrong is listed, figures are right, and pages are whole."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mmrlhf_jax import cli
from mmrlhf_jax.data import stats
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.examples import Layout
from mmrlhf_jax.data.index import beyond_positions
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.validate import check_record, note_record, validate
from mmrlhf_jax.records import record_from_json
from tests.data import groups


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.argv", ["mmrlhf", "data", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    return 0


def record(*responses, prompt="Why?"):
    return record_from_json({"id": "r", "prompt": prompt, "responses": list(responses)}, "here")


def answer(text, rank=None, **fields):
    return {"text": text, "rank": rank} | fields


# validate ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        ([answer("a", 1), answer("b")], "1 of 2 responses have no rank"),
        ([answer("a", 2), answer("b", 3)], r"ranks are \[2, 3\]"),
        ([answer("a", 1), answer("b", 4)], r"ranks are \[1, 4\]"),
        ([answer("a", 1), answer("a", 2)], "the same text has the ranks 1 and 2"),
        ([answer("a", 1, scores={"ethics": 1}), answer("b", 2)], "responses have different scores: ethics, none"),
        ([answer("a", 1, scores={"ethics": 1}), answer("b", 2, scores={"ethics": 5})], "response 0 is ranked above response 1"),
        ([answer("a", 1), answer(" ", 2)], "response 1 is empty"),
        ([answer("a", 1), answer("\u200b", 2)], "response 1 is empty"),
        ([answer("a", 1), answer("b" * 101, 2)], "response 1 has 101 characters, more than 100"),
        ([answer("a", 1, critique="\ufffd"), answer("b", 2)], "the critique of response 0 holds U.FFFD"),
    ],
)
def test_what_is_wrong_with_a_record_is_found(responses, expected):
    found = [message for _, message in check_record(record(*responses), max_text=100)]
    assert len(found) == 1 and re.search(expected, found[0])


@pytest.mark.parametrize("ranks", [(1, 2, 3), (1, 1, 2), (1, 1, 3), (1, 2, 2, 4), (1, 1), (None, None), (2, 1)])
def test_ranks_as_levels_and_as_places_are_sound(ranks):
    """1, 1, 2 and, as in sports, 1, 1, 3."""
    responses = [answer(f"{i}", rank, scores={"a": 1, "b": 5 - (rank or 0)}) for i, rank in enumerate(ranks)]
    assert not list(check_record(record(*responses)))


def test_what_gives_no_pair_is_noted():
    assert [*note_record(record(answer("a", 1)))] == ["records of one response"]
    assert [*note_record(record(answer("a", 1), answer("b", 1)))] == ["records whose responses are all tied"]
    assert [*note_record(record(answer("a"), answer("b")))] == ["records without ranks"]
    assert not [*note_record(record(answer("a", 1), answer("b", 2)))]


@pytest.fixture
def source(tmp_path):
    return groups.write(tmp_path / "source", 8)


def test_a_sound_source_and_a_built_set_have_no_findings(monkeypatch, capsys, source, tmp_path):
    assert run(monkeypatch, "validate", source, "--video-frames", 3) == 0
    assert "records read: 8; findings: 0" in capsys.readouterr().out
    build(source, tmp_path / "built", video_frames=3)
    assert not validate(tmp_path / "built").findings


def test_everything_that_is_wrong_is_listed_not_the_first_only(monkeypatch, capsys, source):
    rows = source.read_text().splitlines()
    rows[0] = json.dumps(json.loads(rows[0]) | {"prompt": 3})
    rows[2] = rows[2][:-9]
    rows[4] = json.dumps(json.loads(rows[4]) | {"id": "group-5"})
    source.write_text("\n".join(rows))
    (source.parent / "1_0.png").write_bytes(b"GIF")
    assert run(monkeypatch, "validate", source, "--video-frames", 3, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["kinds"] == {"unreadable": 2, "id used twice": 1, "media": 1}
    messages = " ".join(finding["message"] for finding in report["findings"])
    for expected in ("records.jsonl:1", "records.jsonl:3", "'group-5' is used twice", "image '1_0.png'"):
        assert expected in messages
    assert run(monkeypatch, "validate", source, "--video-frames", 3) == 1
    assert "\nunreadable: 2\n" in capsys.readouterr().out


def test_contradicting_pairs_are_findings_by_group(tmp_path):
    pair = {"prompt": "Why?", "image": None}
    rows = [pair | {"id": g, "chosen": c, "rejected": r} for g in "ab" for c, r in ("xy", "yx")]
    (tmp_path / "pairs.jsonl").write_text(
        "\n".join(map(json.dumps, [*rows, pair | {"id": "c", "chosen": "x", "rejected": "y"}]))
    )
    report = validate(tmp_path / "pairs.jsonl")
    assert report.records == 1 and [finding.kind for finding in report.findings] == ["contradicting pairs"] * 2


def test_a_file_that_cannot_be_read_at_all_is_an_error(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "validate", tmp_path / "none.jsonl") == 2
    assert "no such file" in capsys.readouterr().err


# stats ---------------------------------------------------------------------------------------------------------------


def test_stats_as_json_count_what_is_there(monkeypatch, capsys, source, tmp_path):
    build(source, tmp_path / "built", video_frames=3)
    assert run(monkeypatch, "stats", tmp_path / "built", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    records = [json.loads(line) for line in source.read_text().splitlines()]
    ranks = [[response["rank"] for response in row["responses"]] for row in records]
    assert found["groups"] == 8 and found["responses"] == sum(map(len, ranks))
    assert found["pairs"] == sum(a < b for of_group in ranks for a in of_group for b in of_group)
    assert found["tied_pairs"] == sum(a == b for of_group in ranks for i, a in enumerate(of_group) for b in of_group[:i])
    assert (found["images"], found["videos"], found["text_only"], found["dropped"], found["frames"]) == (6, 2, 2, 0, 6)
    assert set(found["scores"]) == {"helpfulness", "faithfulness", "ethics"}
    assert found["scores"]["ethics"] == {"5": found["responses"]}
    assert 0 < found["packing"]["8192"]["fill"] <= 1 and found["packing"]["4096"]["dropped"] == 0


def test_too_large_groups_are_counted_as_dropped(monkeypatch, capsys, source):
    assert run(monkeypatch, "stats", source, "--video-frames", 3, "--json", "--slots", 1200) == 0
    found = json.loads(capsys.readouterr().out)
    sizes = stats.measure(open_examples(source, video_frames=3), stats.estimated_encoder())
    assert found["dropped"] == (sizes[:, 0] > 1200).sum() > 0


def test_groups_beyond_the_models_positions_are_counted_as_dropped(source):
    examples = open_examples(source, video_frames=3)
    sizes = stats.measure(examples, groups.encoder())
    encoder = groups.encoder(max_positions=int(sizes[:, 0].max()) // 2)
    too_long = beyond_positions(sizes, range(len(sizes)), examples, encoder) > 0
    layouts = [examples.layout(i) for i in range(len(examples))]
    found = stats.summarise(examples.records, layouts, sizes, 8192, too_long)
    assert found["dropped"] == too_long.sum() and 0 < too_long.sum() < len(sizes)


def test_the_number_of_pair_expanded_tokens_is_what_pairs_would_take():
    encoder = groups.encoder()
    texts = ["one answer", "another, longer answer", "third"]
    made = record(*[answer(text, rank) for rank, text in enumerate(texts, 1)])
    size = encoder.measure(made, Layout())
    lengths = [len(encoder.conversation(made, response, []).tokens) for response in made.responses]
    exact = sum(lengths[i] + lengths[j] for i, j in made.pairs())
    assert abs(stats.pair_expanded_tokens(size[None]) - exact) / exact < 0.02


def test_the_page_of_figures_is_whole(monkeypatch, source, tmp_path):
    assert run(monkeypatch, "stats", source, "--video-frames", 3, "--out", tmp_path / "stats.html") == 0
    page = (tmp_path / "stats.html").read_text()
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))  # well-formed
    assert page.count("<svg") >= 9 and "Packing" in page and "Tiles per group" in page


def test_histograms_count_every_value():
    from mmrlhf_jax.pages.charts import histogram

    for values, whole in (
        ([3.0] * 5, True),
        (np.random.default_rng(0).normal(0, 1, 500), False),
        ([1, 2, 2, 9], True),
        ([0.5], False),
    ):
        drawn = histogram("h", values, x_label="x", whole=whole)
        assert sum(int(count) for count in re.findall(r": (\d+)</title>", drawn)) == len(values)
    assert "none" in histogram("h", [], x_label="x")


# show ----------------------------------------------------------------------------------------------------------------


def test_a_card_shows_pictures_and_responses_best_first_and_text_cannot_break_it(monkeypatch, source, tmp_path):
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    rows[2]["responses"][0] |= {"text": "<script>alert(1)</script>", "rank": 1, "judge": "me"}
    source.write_text("\n".join(map(json.dumps, rows)))
    assert run(monkeypatch, "show", source, "group-2", "--out", tmp_path / "card.html", "--video-frames", 3) == 0
    page = (tmp_path / "card.html").read_text()
    tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert len(list(tree.iter("img"))) == 2 and not list(tree.iter("script"))
    shown = [header.text for header in tree.iterfind(".//article/header/b")]
    assert shown == sorted(shown) and shown[0] == "1." and "judge" in page
    assert run(monkeypatch, "show", source, "group-3", "--out", tmp_path / "video.html", "--video-frames", 3) == 0
    assert (tmp_path / "video.html").read_text().count("<img") == 3


def test_an_unknown_id_names_its_neighbours(monkeypatch, capsys, source, tmp_path):
    assert run(monkeypatch, "show", source, "group2", "--out", tmp_path / "card.html") == 2
    assert "no record 'group2'; there is 'group-2'" in capsys.readouterr().err
    assert not (tmp_path / "card.html").exists()
