"""Readers: every input format gives the same ranked records, and every wrong input one clear line."""

import gzip
import importlib.util
import itertools
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf_jax.data.sources import FORMATS, drop_contradictions, read_records
from mmrlhf_jax.data.sources.folding import Contradiction, weak_order
from mmrlhf_jax.data.sources.rankings import read_rankings
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.evaluation.benchmarks.ranked import category
from mmrlhf_jax.records import record_from_json

GROUP = {
    "id": "g1",
    "images": ["a.png"],
    "prompt": "How many cups?",
    "source": "made up",
    "responses": [
        {"text": "Three.", "rank": 1, "scores": {"ethics": 5}},
        {"text": "Two.", "rank": 2, "colour": "blue"},
    ],
    "category": "short",
}


@pytest.fixture
def write(tmp_path):
    """Writes rows (objects or raw lines) to a file, JSON lines unless the name says otherwise; gives its path."""

    def write(*rows, name="rows.jsonl"):
        lines = [row if isinstance(row, (str, bytes)) else json.dumps(row) for row in rows]
        data = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def message(path) -> str:
    with pytest.raises(UserError) as error:
        read_records(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


# Files ---------------------------------------------------------------------------------------------------------------


def test_own_form_round_trips_with_its_unknown_fields(write):
    (record,) = read_records(write(GROUP))
    assert record.to_json() == GROUP
    assert record.pairs() == [(0, 1)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz"])
def test_json_and_gzip_hold_the_same_records(write, name):
    rows = [GROUP, GROUP | {"id": "g2", "prompt": "one\u2028line"}]
    path = write(json.dumps(rows), name=name) if ".json." in name or name.endswith(".json") else write(*rows, name=name)
    assert [record.to_json() for record in read_records(path)] == rows


def test_a_column_with_the_name_of_another_field_does_not_pass_for_it(write):
    """What the record is stored as must not be another record."""
    row = {"query": "Which?", "response": "A", "rejected_response": "B", "prompt": "Which? ", "responses": ["no"]}
    (record,) = read_records(write(row))
    assert record.extra == {"original_prompt": "Which? ", "original_responses": ["no"]}
    assert record_from_json(record.to_json(), "here") == record


def test_byte_order_mark_blank_lines_and_windows_line_ends_are_no_matter(write):
    path = write(b"\xef\xbb\xbf" + json.dumps(GROUP).encode() + b"\r", b"", json.dumps(GROUP | {"id": 7}))
    assert [record.id for record in read_records(path)] == ["g1", "7"]


def test_parquet_gives_the_records_that_json_gives(tmp_path, write):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    rows = [pair("x", "A", "B", image="i.png"), pair("x", "A", "C", image=None) | {"prompt": "Other"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_records(tmp_path / "rows.parquet") == read_records(write(*rows))


def test_images_inside_a_parquet_file_are_named_by_their_place(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    cell = {"bytes": b"\x89PNG", "path": None}
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "images": [cell, cell | {"path": "x.png"}]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (record,) = read_records(tmp_path / "rows.parquet")
    assert record.images == ("rows.parquet/0/images/0", "rows.parquet/0/images/1")


def test_parquet_without_pyarrow_says_what_to_install(write, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    assert "pip install pyarrow" in message(write(b"PAR1", name="rows.parquet"))


@pytest.mark.parametrize(
    ("lines", "name", "expected"),
    [
        ([GROUP, '{"id": "torn", "pro'], "rows.jsonl", "rows.jsonl:2: not valid JSON"),
        ([], "rows.jsonl", "holds no records"),
        (["", " "], "rows.jsonl", "holds no records"),
        (["[]"], "rows.json", "holds no records"),
        (['{"a": 1}'], "rows.json", "expected a JSON list"),
        (["{}", "{}"], "rows.json", "name it .jsonl"),
        (["[1]"], "rows.json", "rows.json[0]: expected a JSON object, found int"),
        (["3"], "rows.jsonl", "rows.jsonl:1: expected a JSON object, found int"),
        ([b'{"id": "\xff\xfe"}'], "rows.jsonl", "rows.jsonl:1: not valid UTF-8"),
        (['{"id": "\\ud800", "prompt": "p", "responses": ["a"]}'], "rows.jsonl", "rows.jsonl:1: not valid UTF-8"),
        (["[" * 100_000], "rows.jsonl", "rows.jsonl:1: JSON nested too deeply"),
        (["PAR1"], "rows.csv", "unknown kind of file"),
        ([{"text": "hello"}], "rows.jsonl", "unknown format, fields ['text']"),
        ([{"id": "a", "prompt": "p"}], "rows.jsonl", "needs at least one response"),
        ([{"id": "a", "prompt": "p", "responses": []}], "rows.jsonl", "needs at least one response"),
        ([GROUP, GROUP | {"id": "h"}, GROUP], "rows.jsonl", "id 'g1' is used twice, by records 1 and 3"),
    ],
)
def test_wrong_files_end_in_one_line_that_says_where(write, lines, name, expected):
    assert expected in message(write(*lines, name=name))


def test_missing_file_directory_and_torn_gzip_end_in_one_line(write, tmp_path):
    assert "no such file" in message(tmp_path / "nowhere.jsonl")
    assert "holds no rows" in message(tmp_path)
    whole = gzip.compress(b"\n".join(b'{"id": "%d"}' % random.getrandbits(64) for _ in range(99)))
    (tmp_path / "torn.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "not a complete gzip file" in message(tmp_path / "torn.jsonl.gz")


def test_unknown_format_lists_the_known_ones(write):
    text = message(write({"question": "?"}))
    assert all(known.name in text for known in FORMATS)


# Pairs ---------------------------------------------------------------------------------------------------------------


def pair(record_id, chosen, rejected, **fields):
    return {"id": record_id, "prompt": "Which?", "chosen": chosen, "rejected": rejected, "image": "a.png"} | fields


def preferences(records):
    """{(id, chosen text, rejected text)}: what a set of records says, however it is grouped."""
    return {(r.id.split("#")[0], r.responses[i].text, r.responses[j].text) for r in records for i, j in r.pairs()}


weak_orders = st.lists(st.integers(1, 5), min_size=2, max_size=8)


@given(weak_orders, st.randoms(use_true_random=False))
def test_the_pairs_of_a_weak_order_give_the_weak_order_back(ranks, rng):
    """For any weak order of two tiers or more, from its pairs in any order (some twice)."""
    pairs = [(i, j) for i, j in itertools.permutations(range(len(ranks)), 2) if ranks[i] < ranks[j]]
    if not pairs:
        return
    rng.shuffle(pairs)
    recovered = weak_order(len(ranks), pairs + pairs[:2])
    tiers = sorted(set(ranks))
    assert recovered == [tiers.index(rank) + 1 for rank in ranks]


@settings(deadline=None, max_examples=30)
@given(st.lists(weak_orders.filter(lambda ranks: len(set(ranks)) > 1), min_size=1, max_size=4), st.data())
def test_a_shuffled_pair_file_folds_into_the_groups_it_was_made_from(tmp_path_factory, groups, data):
    rows = []
    for number, ranks in enumerate(groups):
        for i, j in itertools.permutations(range(len(ranks)), 2):
            if ranks[i] < ranks[j]:
                rows.append(pair(f"id{number}", f"answer {i}", f"answer {j}"))
    rows = data.draw(st.permutations(rows))
    path = tmp_path_factory.mktemp("pairs") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    records = read_records(path)
    assert [r.id for r in records] == list(dict.fromkeys(row["id"] for row in rows))  # in order of their first row
    for record in records:
        ranks = groups[int(record.id[2:])]
        tiers = sorted(set(ranks))
        found = {response.text: response.rank for response in record.responses}
        assert found == {f"answer {i}": tiers.index(rank) + 1 for i, rank in enumerate(ranks)}


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(lambda e: e[0] != e[1]), min_size=1, max_size=10))
def test_no_preference_is_lost_or_invented_whatever_the_pairs(edges):
    """Any set of pairs: the exact weak order, or refusal (None), or a contradiction exactly where there is a cycle."""
    edges = sorted(edges)
    acyclic = any(all(p.index(i) < p.index(j) for i, j in edges) for p in itertools.permutations(range(5)))
    try:
        ranks = weak_order(5, edges)
    except Contradiction as error:
        assert not acyclic
        chosen, rejected = edges[error.row]  # the named row is in a cycle: a chain leads from its rejected to its chosen
        chains = itertools.chain.from_iterable(itertools.permutations(range(5), n) for n in range(2, 6))
        ends = (chain for chain in chains if (chain[0], chain[-1]) == (rejected, chosen))
        assert any(all(link in edges for link in itertools.pairwise(chain)) for chain in ends)
        return
    assert acyclic
    if ranks is not None:
        assert {(i, j) for i in range(5) for j in range(5) if ranks[i] < ranks[j]} == set(edges)


def test_critiques_and_pair_fields_of_mmrlhf_pairs_are_kept(write):
    rows = [
        pair("x", "A", "B", chosen_reason="a is good", rejected_reason="b is poor", ls_factor=0.4, category="mcq"),
        pair("x", "A", "C", chosen_reason="a is good", rejected_reason="", reference_chosen_logp=-3.5, category="mcq"),
        pair("x", "B", "C", chosen_reason="b is not bad", category="mcq"),
    ]
    (record,) = read_records(write(*rows))
    assert [(r.text, r.rank, r.critique) for r in record.responses] == [
        ("A", 1, "a is good"),
        ("B", 2, "b is not bad"),
        ("C", 3, None),
    ]
    assert record.responses[1].extra == {"critiques": ["b is not bad", "b is poor"]}
    assert record.extra == {
        "category": "mcq",
        "pairs": [
            {"chosen": 0, "rejected": 1, "ls_factor": 0.4},
            {"chosen": 0, "rejected": 2, "reference_chosen_logp": -3.5},
        ],
    }


def test_groups_are_separated_by_media_and_prompt_under_unique_ids(write):
    rows = [pair("x", "A", "B"), pair("x", "B", "A", image="b.png"), pair("x", "B", "A", prompt="Why?")]
    records = read_records(write(*rows))
    assert [(r.id, r.images, r.prompt) for r in records] == [
        ("x", ("a.png",), "Which?"),
        ("x#2", ("b.png",), "Which?"),
        ("x#3", ("a.png",), "Why?"),
    ]


def test_video_pairs_and_image_lists(write):
    video = {k: v for k, v in pair("v", "A", "B", video="video/clip").items() if k != "image"}
    first, second = read_records(write(video, pair("i", "A", "B", image=["1.png", "2.png"], video=None)))
    assert (first.video, first.images) == ("video/clip", ())
    assert (second.video, second.images) == (None, ("1.png", "2.png"))


def test_a_filtered_group_becomes_one_record_per_pair(write):
    """A > B and C > D say nothing about A and D: folding them into two tiers would invent preferences."""
    rows = [pair("x", "A", "B"), pair("x", "C", "D", ls_factor=2.0), pair("y", "A", "B"), pair("y", "B", "C")]
    records = read_records(write(*rows))
    assert [r.id for r in records] == ["x", "x#2", "y", "y#2"]
    assert preferences(records) == {("x", "A", "B"), ("x", "C", "D"), ("y", "A", "B"), ("y", "B", "C")}
    assert records[1].extra == {"pairs": [{"chosen": 0, "rejected": 1, "ls_factor": 2.0}]}


def test_stated_ties_share_a_rank(write):
    rows = [
        pair("x", "A", "C"),
        pair("x", "B", "C"),
        pair("x", "A", "B", is_tie=True),
        pair("y", "A", "B", is_tie=True),
    ]
    records = read_records(write(*rows))
    assert [[r.rank for r in record.responses] for record in records] == [[1, 1, 2], [1, 1]]


SIDES = {"chosen": "A", "rejected": "B"}
PAIRS_OF_EVERY_FORMAT = [
    SIDES | {"id": "x", "prompt": "Which?"},
    SIDES | {"prompt": "Which?"},
    SIDES | {"prompt": [{"role": "user", "content": "Which?"}]},
    SIDES | {"question": "Which?"},
    SIDES | {"instruction": "Which?"},
    SIDES | {"conversations": [{"from": "human", "value": "Which?"}]},
    {"text": SIDES | {"question": "Which?"}},
    {"query": "Which?", "response": "A", "rejected_response": "B"},
    {"query": "Which?", "response": "A", "rejected_response": ["B", "C"]},
    {"Text": "Which?", "Output1": "A", "Output2": "B", "Better": "Output2"},
]


@pytest.mark.parametrize("row", PAIRS_OF_EVERY_FORMAT)
@pytest.mark.parametrize("name", ["is_tie", "tie"])
def test_a_stated_tie_is_no_preference_in_any_format_of_pairs(write, row, name):
    (record,) = read_records(write(row | {name: True}))
    assert {response.rank for response in record.responses} == {1} and record.pairs() == [] and name not in record.extra
    for value in (False, None):
        (record,) = read_records(write(row | {name: value}))
        assert record.pairs()[0] == (0, 1) and name not in record.extra


@pytest.mark.parametrize("row", PAIRS_OF_EVERY_FORMAT)
@pytest.mark.parametrize("value", ["yes", "true", 1, 0, [True]])
def test_a_tie_that_is_neither_true_nor_false_is_refused(write, row, value):
    assert "field 'is_tie' must be true or false" in message(write(row | {"is_tie": value}))
    assert "field 'tie' must be true or false" in message(write(row | {"tie": value}))
    assert "fields 'is_tie' and 'tie' say different things" in message(write(row | {"tie": True, "is_tie": False}))


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([pair("bad", "A", "B"), pair("bad", "B", "A")], 2),
        ([pair("bad", "B", "Z"), pair("bad", "A", "B"), pair("bad", "B", "C"), pair("bad", "C", "A")], 3),
        ([pair("bad", "A", "A")], 2),
    ],
)
def test_contradicting_pairs_are_reported_by_id_and_line(write, rows, line):
    text = message(write(pair("good", "A", "B"), *rows))
    assert "'bad'" in text and f"rows.jsonl:{line}" in text and "good" not in text


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (pair("x", "A", 3), "field 'rejected' must be a string, found 3"),
        (pair("x", "A", "B", is_tie="no"), "field 'is_tie' must be true or false"),
        (pair(["x"], "A", "B"), "field 'id' must be a non-empty string"),
        (pair("x", "A", "B", image={"bytes": "iVBOR"}), "field 'image' must hold paths"),
        (pair("x", "A", "B", images=["b.png"]), "has both 'image' and 'images'"),
        (pair("x", "A", "B", video=["v"]), "field 'video' must be a path"),
        (pair("x", "A", "B", chosen_reason=["no"]), "field 'chosen_reason' must be a string"),
    ],
)
def test_wrong_fields_of_pairs(write, row, expected):
    assert expected in message(write(pair("first", "A", "B"), row))


def test_contradicting_groups_can_be_left_out_whole_and_are_named(write):
    rows = [pair("good", "A", "B"), pair("bad", "A", "B"), pair("bad", "B", "C"), pair("bad", "B", "A"), pair("good", "A", "C")]
    left_out = []
    records = read_records(write(*rows), drop_contradictions(left_out.append))
    assert preferences(records) == {("good", "A", "B"), ("good", "A", "C")}
    assert len(left_out) == 1 and "'bad'" in str(left_out[0]) and "left out" in str(left_out[0])
    with pytest.raises(UserError, match="must be a string"):  # anything else is still an error
        read_records(write(pair("x", "A", 3)), drop_contradictions(left_out.append))


# Tiers of the real MM-RLHF-RewardBench file, best first, with how many of its 46 ids have them.
REWARD_BENCH_TIERS = {
    (1, 1, 1): 6, (2, 1): 6, (1, 1, 2): 5, (1, 1, 1, 1): 5, (1, 2): 5, (1, 2, 1): 4, (3, 1): 4, (2, 2): 3, (1, 3): 3,
    (4, 1): 3, (2, 1, 1): 2,
}  # fmt: skip


def test_a_reward_bench_file_is_its_46_groups_and_their_pairs_are_exactly_its_170_rows(write):
    """A stand-in with the real file's orders; ids repeat, and rows of different prompts stand between each other."""
    rows = []
    for number, tiers in enumerate(tiers for tiers, count in REWARD_BENCH_TIERS.items() for _ in range(count)):
        kind = ("mcq", "long", "short", "safety", "video")[number % 5]
        media = {"video": f"video/{number}", "image": None} if kind == "video" else {"image": f"{kind}/{number}.png"}
        ranks = [tier for tier, count in enumerate(tiers) for _ in range(count)]
        for i, j in itertools.permutations(range(len(ranks)), 2):
            if ranks[i] < ranks[j]:
                texts = {"chosen": f"answer {i}", "rejected": f"answer {j}"}
                reasons = {"chosen_reason": f"reason {i}", "rejected_reason": f"reason {j}"}
                rows.append({"id": f"{kind}_{number}", "prompt": f"Question {number}?"} | media | texts | reasons)
    random.Random(0).shuffle(rows)
    records = read_records(write(*rows))
    assert (len(records), len(rows)) == (46, 170)
    found = sorted((r.id, r.responses[i].text, r.responses[j].text) for r in records for i, j in r.pairs())
    assert found == sorted((row["id"], row["chosen"], row["rejected"]) for row in rows)
    assert all(response.critique == response.text.replace("answer", "reason") for r in records for response in r.responses)


def test_llava_placeholder_is_removed_only_beside_media(write):
    (with_image,) = read_records(write(pair("i", "A", "B", prompt="<image>\nWhich?")))
    assert with_image.prompt == "Which?"
    text = message(write(pair("i", "A", "B"), pair("t", "A", "B", prompt="What is <image>?", image=None)))
    assert "rows.jsonl:2 (record 't'): the prompt has the tag <image>, but there are no media" in text


# MM-RLHF annotations -------------------------------------------------------------------------------------------------


def annotation(ranking, record_id="a1", outputs=("w", "x", "y", "z"), **fields):
    row = {
        "id": record_id,
        "question": "<image>\nHow many cups?",
        "answer": "",
        "image": "short/a.png",
        "video": None,
        "models_output": list(outputs),
        "faithfulness": [5, 1, 3, 5][: len(outputs)],
        "helpfulness": [4, 2, 3, 3][: len(outputs)],
        "ethical": [5, 5, 5, 5][: len(outputs)],
        "final_ranking": ranking,
        "score_reasons": ["right", "wrong", "so so", ""][: len(outputs)],
        "ranking_reason": "because",
    }
    return row | fields


def test_an_annotated_prompt_becomes_a_group(write):
    (record,) = read_records(write(annotation([1, 4, 3, 1])))
    assert (record.prompt, record.images, record.video) == ("How many cups?", ("short/a.png",), None)
    first = record.responses[0]
    assert (first.text, first.rank, first.critique) == ("w", 1, "right")
    assert first.scores == {"faithfulness": 5.0, "helpfulness": 4.0, "ethics": 5.0}
    assert [r.rank for r in record.responses] == [1, 3, 2, 1]
    assert [r.critique for r in record.responses] == ["right", "wrong", "so so", None]
    assert record.extra == {"answer": "", "ranking_reason": "because"}


RANKS = [1, 3, 2, 2]  # first best, then the third and fourth together, the second worst


@pytest.mark.parametrize(
    "spelling",
    [
        "1>3=4>2",
        "[1>3=4>2]",
        "1 > 4 = 3 > 2",
        "0>2=3>1",
        "A>C=D>B",
        "a > d = c > b",
        "\uff11\uff1e\uff13\uff1d\uff14\uff1e\uff12",  # the same in full-width signs
        [[1], [3, 4], [2]],
        [1, [4, 3], 2],
        [[0], [2, 3], [1]],
        [["A"], ["C", "D"], ["B"]],
        "[[1], [3, 4], [2]]",
        [1, 3, 2, 2],
        [1, 4, 2, 2],  # places as in sports: the tie takes two
        [1, 4, 2.5, 2.5],  # mean places
        [0, 2, 1, 1],
        ["1", "3", "2", "2"],
        "1,3,2,2",
        "[1, 3, 2, 2]",
    ],
)
def test_every_spelling_of_a_ranking_gives_the_same_weak_order(spelling):
    assert read_rankings([spelling], [4], [[None] * 4], ["f:1"]) == [RANKS]


@pytest.mark.parametrize("spelling", ["B>A>C>D", ["B", "A", "C", "D"], "B, A, C, D", "[B, A, C, D]", "2>1>3>4"])
def test_letters_and_strict_orders(spelling):
    assert read_rankings([spelling], [4], [[None] * 4], ["f:1"]) == [[2, 1, 3, 4]]


def test_a_flat_permutation_is_read_as_the_rest_of_its_file_is():
    """[2, 3, 1]: either ranks per response, or the order 2nd, 3rd, 1st. A repeated number elsewhere settles it."""
    unknown = [None] * 3
    assert read_rankings([[2, 3, 1], [1, 1, 2]], [3, 3], [unknown] * 2, ["f:1", "f:2"]) == [[2, 3, 1], [1, 1, 2]]


@pytest.mark.parametrize(
    ("scores", "ranks"), [([3, 1, 5], [2, 3, 1]), ([1.0, 5.0, 3.0], [3, 1, 2]), ([None, 5.0, 3.0], [3, 1, 2])]
)
def test_a_flat_permutation_is_read_as_the_scores_suggest(scores, ranks):
    assert read_rankings([[2, 3, 1]], [3], [scores], ["f:1"]) == [ranks]
    assert read_rankings([[1, 2, 0]], [3], [scores], ["f:1"]) == [ranks]


def test_permutations_that_mean_the_same_either_way_need_no_scores():
    assert read_rankings([[2, 1, 3], None], [3, 2], [[None] * 3, [None] * 2], ["f:1", "f:2"]) == [[2, 1, 3], None]


@pytest.mark.parametrize(
    "value",
    [
        [2, 3, 1],  # ambiguous without scores
        [1, 2],
        [1, 2, 9],
        [1, 2, None],
        [True, False, True],
        [1, -1, 1],
        "1>2",
        "1>2>2",
        "1>2>4",
        "1>>2=3",
        "1.5>2>3",
        "first, then the second",
        "",
        {"1": 1, "2": 2, "3": 3},
        4,
        [[1, 2]],
        ["A", "B", 3],
    ],
)
def test_any_other_ranking_is_an_error_that_shows_the_value(write, value):
    row = annotation(value, outputs="abc", faithfulness=None, helpfulness=None, ethical=None)
    text = message(write(annotation("1>2=3=4", "fine"), row))
    assert "rows.jsonl:2 (record 'a1'): field 'final_ranking' is " + repr(value) in text


def test_a_ranking_that_is_no_finite_number_is_an_error_that_names_it(write):
    for value in (math.nan, [1, math.inf, 2]):
        text = message(write(annotation("1>2=3=4", "fine"), annotation(value)))
        assert "rows.jsonl:2: record 'a1': field 'final_ranking" in text and "must be a finite number, found" in text


def test_absent_rankings_and_scores_leave_responses_unranked(write):
    (record,) = read_records(write(annotation(None, faithfulness=None, helpfulness=[1, None, 2, 3], ethical=None)))
    assert [r.rank for r in record.responses] == [None] * 4 and record.pairs() == []
    assert [r.scores for r in record.responses] == [
        {"helpfulness": 1.0},
        None,
        {"helpfulness": 2.0},
        {"helpfulness": 3.0},
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"models_output": "one"}, "field 'models_output'"),
        ({"models_output": []}, "field 'models_output'"),
        ({"faithfulness": [1, 2]}, "field 'faithfulness' must list 4 values"),
        ({"helpfulness": [1, 2, 3, float("nan")]}, "field 'helpfulness.3' must be a finite number, found NaN"),
        ({"helpfulness": [1, 2, 3, "nan"]}, "a score of 'helpfulness' must be a finite number, found 'nan'"),
        ({"helpfulness": [1, 2, 3, "1_0"]}, "a score of 'helpfulness' must be a finite number, found '1_0'"),
        ({"helpfulness": [1, 2, 3, True]}, "a score of 'helpfulness' must be a finite number, found True"),
        ({"helpfulness": [1, 2, 3, "1e39"]}, "a score of 'helpfulness' must be a finite number, found '1e39'"),
        ({"helpfulness": [1, 2, 3, 10**39]}, "a score of 'helpfulness' must be a finite number, found 1000"),
        ({"question": None}, "field 'question' must be a string"),
        ({"id": None}, "field 'id' is missing"),
    ],
)
def test_wrong_annotations(write, fields, expected):
    assert expected in message(write(annotation([1, 2, 3, 4]) | fields))


# TRL / Hugging Face rows ---------------------------------------------------------------------------------------------


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


PLAIN = {"prompt": "Which?", "chosen": "A", "rejected": "B"}
FORMS = [
    (
        PLAIN,
        PLAIN | {"id": 1, "chosen_reason": "good"},
        "MM-RLHF dpo_pairs.jsonl or RewardBench pairs",
        "'chosen_reason', 'id'",
    ),
    (PLAIN | {"id": None}, PLAIN | {"id": "x"}, "MM-RLHF dpo_pairs.jsonl or RewardBench pairs", ""),
    (
        PLAIN,
        PLAIN | {"Text": "Which?", "Output1": "A", "Output2": "B", "Better": "Output1"},
        "Multimodal-RewardBench",
        "'Better'",
    ),
    (PLAIN, PLAIN | {"question": "Which?"}, "RLAIF-V, SPA-VL or MMPR rows", "'question'"),
    (PLAIN, PLAIN | {"rejected_response": "C"}, "ms-swift rows", "'rejected_response'"),
]


@pytest.mark.parametrize(("first", "other", "form", "unlike"), FORMS)
def test_a_row_that_would_be_read_otherwise_if_it_stood_first_is_refused_with_both_lines(write, first, other, form, unlike):
    """Critiques of MM-RLHF's own form would be lost, and tags would be places, because an earlier row has no id."""
    path = write(first | {"prompt": "Why?"}, first, other)
    text = message(path)
    assert f"rows.jsonl:3: is in the form {form}, but {path}:1 is " in text and unlike in text
    errors = []
    assert len(read_records(path, errors.append)) == 2 and [str(error) for error in errors] == [text]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_null_among_the_ids_does_not_decide_how_a_file_is_read(write, tmp_path, name):
    rows = [PLAIN | {"id": None, "chosen_reason": "good"}, PLAIN | {"id": "x", "chosen_reason": "good"}]
    path = write(*rows, name="rows.jsonl")
    if name.endswith("parquet"):
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow as pa

        path = tmp_path / name
        parquet.write_table(pa.Table.from_pylist(rows), path)
    assert "is in the form MM-RLHF dpo_pairs.jsonl" in message(path) and "'id'" in message(path)


PARTS = [{"type": "image"}, {"type": "text", "text": "Which?"}]


@pytest.mark.parametrize(
    "row",
    [
        PLAIN,
        {"prompt": [user("Which?")], "chosen": [assistant("A")], "rejected": [assistant("B")]},
        {"prompt": [user([{"type": "text", "text": "Which?"}])], "chosen": [assistant("A")], "rejected": "B"},
        {"chosen": [user("Which?"), assistant("A")], "rejected": [user("Which?"), assistant("B")]},
        PLAIN | {"chosen": [user("Which?"), assistant("A")], "rejected": [user("Which?"), assistant("B")]},
    ],
)
def test_trl_rows_in_every_shape_are_groups_of_two(write, row):
    first, second = read_records(write(row, row))
    assert (first.id, second.id, first.prompt, first.images) == ("row-1", "row-2", "Which?", ())
    assert [(r.text, r.rank) for r in first.responses] == [("A", 1), ("B", 2)]


def test_the_implicit_prompt_is_the_one_trl_extracts(write):
    data_utils = pytest.importorskip("trl.data_utils")
    row = {"chosen": [user("Which?"), assistant("A")], "rejected": [user("Which?"), assistant("B")]}
    explicit = data_utils.maybe_extract_prompt(row)
    (ours,), (theirs,) = read_records(write(row)), read_records(write(explicit, name="explicit.jsonl"))
    assert ours == theirs


@pytest.mark.parametrize("images", [["a.png"], "a.png", [{"bytes": None, "path": "a.png"}]])
def test_trl_images_beside_the_messages(write, images):
    (record,) = read_records(write(PLAIN | {"prompt": [user(PARTS)], "images": images}))
    assert (record.images, record.prompt) == (("a.png",), "Which?")


def test_trl_images_inside_the_messages(write):
    parts = [{"type": "image", "image": "a.png"}, PARTS[1]]
    (record,) = read_records(write(PLAIN | {"prompt": [user(parts)]}))
    assert (record.images, record.prompt) == (("a.png",), "Which?")


def test_trl_rows_with_an_id_fold_and_keep_their_columns(write):
    rows = [
        PLAIN | {"id": 1, "score_chosen": 9.0},
        PLAIN | {"id": 1, "rejected": "C", "score_chosen": 9.0, "margin": 2},
    ]
    (record,) = read_records(write(*rows))
    assert [(r.text, r.rank) for r in record.responses] == [("A", 1), ("B", 2), ("C", 2)]
    assert record.extra == {"score_chosen": 9.0, "pairs": [{"chosen": 0, "rejected": 2, "margin": 2}]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": "A", "rejected": "B"}, "field 'prompt' must be a string or a list of messages, found None"),
        (PLAIN | {"prompt": [{"role": "system", "content": "s"}, user("q")]}, "found roles ['system', 'user']"),
        (PLAIN | {"prompt": [user("q"), assistant("a"), user("r")]}, "must be one user message"),
        (PLAIN | {"chosen": [user("q")]}, "must be one assistant message"),
        (PLAIN | {"chosen": [assistant(None)]}, "must have text content"),
        (PLAIN | {"rejected": 4}, "field 'rejected' must be a string or a list of messages"),
        (PLAIN | {"prompt": [user(PARTS)]}, "has 1 image parts, but 'images' has 0 paths"),
        (PLAIN | {"prompt": [user(["text"])]}, "must be a string or a list of objects"),
        (PLAIN | {"prompt": [user([{"type": "image_url", "image_url": {"url": "http://x"}}])]}, "must be image paths"),
        (PLAIN | {"rejected": "A"}, "chosen and rejected are the same text"),
    ],
)
def test_wrong_trl_rows(write, row, expected):
    assert expected in message(write(row))


# ms-swift rows -------------------------------------------------------------------------------------------------------

SWIFT = {"messages": [user("<image>Which?"), assistant("A")], "rejected_response": "B", "images": ["a.png"]}


@pytest.mark.parametrize(
    "row",
    [
        SWIFT,
        {k: v for k, v in SWIFT.items() if k != "rejected_response"}
        | {"rejected_messages": [user("<image>Which?"), assistant("B")]},
        {
            "query": "<image>Which?",
            "response": "A",
            "rejected_response": "B",
            "images": ["a.png"],
            "history": [],
            "system": None,
        },
        {"question": "Which?", "response": "A", "rejected_response": "B", "image": "a.png"},  # MM-RLHF's convert_to_swift.py
        SWIFT | {"images": [{"path": "a.png", "bytes": None}]},
    ],
)
def test_ms_swift_rows_in_every_generation_are_groups_of_two(write, row):
    (record,) = read_records(write(row))
    assert (record.prompt, record.images, record.video) == ("Which?", ("a.png",), None)
    assert [(r.text, r.rank) for r in record.responses] == [("A", 1), ("B", 2)]


def test_ms_swift_videos_and_ids(write):
    rows = [SWIFT | {"id": "x", "images": [], "videos": ["clip"], "rejected_response": text} for text in "BC"]
    (record,) = read_records(write(*rows))
    assert (record.video, record.images) == ("clip", ())
    assert [(r.text, r.rank) for r in record.responses] == [("A", 1), ("B", 2), ("C", 2)]


@pytest.mark.parametrize("both", [{}, {"video": None}, {"video": ""}, {"video": "clip"}])
def test_an_ms_swift_video_is_read_from_videos_whatever_else_the_row_has_and_its_tag_is_no_text(write, both):
    row = SWIFT | {"messages": [user("<video>\nWhich?"), assistant("A <video>")], "images": [], "videos": ["clip"]}
    (record,) = read_records(write(row | both))
    assert (record.prompt, record.images, record.video) == ("Which?", (), "clip")
    assert record.responses[0].text == "A <video>"


def test_the_video_tag_of_an_ms_swift_row_without_a_video_is_refused(write):
    text = message(write(SWIFT | {"messages": [user("What is <video>?"), assistant("A")]}))
    assert "the prompt has the tag <video>, but the record's media are images" in text


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (SWIFT | {"images": [], "video": "a", "videos": ["b"]}, "'video' and 'videos' name different videos, 'a' and ['b']"),
        (SWIFT | {"messages": [user("q"), assistant("a"), user("r"), assistant("b")]}, "must be one user and one assistant"),
        (SWIFT | {"messages": [{"role": "system", "content": "s"}, assistant("b")]}, "must be one user message"),
        (SWIFT | {"rejected_response": 3}, "field 'rejected_response' must be a string"),
        (SWIFT | {"system": "Be kind."}, "field 'system' must be empty"),
        (SWIFT | {"history": [["q", "a"]]}, "field 'history' must be empty"),
        (SWIFT | {"videos": ["a", "b"]}, "field 'videos' must list one path"),
        ({"response": "A", "rejected_response": "B"}, "field 'query' must be a string"),
    ],
)
def test_wrong_ms_swift_rows(write, row, expected):
    assert expected in message(write(row))


# Reward benchmarks ---------------------------------------------------------------------------------------------------

VL = {
    "id": "RLAIF-V-1",
    "query": "Which?",
    "response": ["A", "B"],
    "human_ranking": [1, 0],
    "image": "a.png",
    "models": ["m", "n"],
}
MULTIMODAL = {
    "ID": "vqa-1",
    "Text": "Which?",
    "Image": "a.png",
    "Output1": "A",
    "Output2": "B",
    "Better": "Output2",
    "Category": "vqa",
}


def test_vl_reward_bench(write):
    ids = ["RLAIF-V-1", "mathverse_1", "mmmu_pro_2", "wildvision-battle-3", "hallucination_pair-4"]
    records = read_records(write(*[VL | {"id": name} for name in ids]))
    assert [(r.text, r.rank, r.model) for r in records[0].responses] == [("A", 2, "m"), ("B", 1, "n")]
    assert records[0].pairs() == [(1, 0)] and records[0].images == ("a.png",)
    assert {r.extra["benchmark"] for r in records} == {"VL-RewardBench"}


def test_multimodal_reward_bench(write):
    rows = [MULTIMODAL, MULTIMODAL | {"ID": "vqa-2", "Better": "Output1"}]
    first, second = read_records(write(json.dumps(rows), name="all_data.json"))
    assert [(r.text, r.rank) for r in first.responses] == [("B", 1), ("A", 2)]
    assert [(r.text, r.rank) for r in second.responses] == [("A", 1), ("B", 2)]
    assert (first.id, first.prompt, first.images, category(first)) == ("vqa-1", "Which?", ("a.png",), "vqa")
    assert first.extra["benchmark"] == "Multimodal-RewardBench"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (VL | {"response": "A"}, "field 'response' must list two or more strings"),
        (VL | {"human_ranking": [0]}, "field 'human_ranking' is [0], which has 1 numbers for 2 responses"),
        (VL | {"id": None}, "field 'id' is missing"),
        (MULTIMODAL | {"Better": "A"}, "field 'Better' must be Output1 or Output2, found 'A'"),
        (MULTIMODAL | {"Output1": None}, "field 'output1' must be a string"),
    ],
)
def test_wrong_reward_bench_rows(write, row, expected):
    assert expected in message(write(row))
