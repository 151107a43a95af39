"""Public preference sets in the columns that their publishers give them, as their builders, cards and consumers have them."""

import io
import itertools
import json
import random

import pytest
from PIL import Image

from mmrlhf_jax.commands import data as commands
from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.sources import FORMATS, read_records, read_source
from mmrlhf_jax.data.validate import validate
from mmrlhf_jax.errors import UserError


def png(grey=1) -> bytes:
    out = io.BytesIO()
    Image.new("L", (20, 10), grey).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq = pytest.importorskip("pyarrow.parquet")
            import pyarrow as pa

            pq.write_table(pa.Table.from_pylist(list(rows)), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def message(path, **options) -> str:
    with pytest.raises(UserError) as error:
        read_source(path, **options)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def ranks(record) -> dict[str, int | None]:
    return {response.text: response.rank for response in record.responses}


# VLFeedback ----------------------------------------------------------------------------------------------------------


def completion(text, *ratings, **fields):
    aspects = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    annotations = {aspect: {"Rating": r, "Rationale": f"because {r}"} for aspect, r in zip(aspects, ratings, strict=True)}
    return {"annotations": annotations, "model": f"model of {text}", "response": text} | fields


def feedback(*completions, record_id="LRV-1", **fields):
    row = {"id": record_id, "prompt": "Which?", "models": [c["model"] for c in completions], "completions": list(completions)}
    return row | {"img_path": "a.png"} | fields


def as_the_hub_stores_it(row):
    """`datasets.Sequence` of objects: an object of lists."""
    names = row["completions"][0].keys()
    return row | {"completions": {name: [one[name] for one in row["completions"]] for name in names}}


FOUR = [
    completion("A", "4", "5", "3"),
    completion("B", "5", "5", "5"),
    completion("C", "3", "4", "5"),
    completion("D", "1", "5", "1"),
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_vlfeedback_is_ranked_by_the_mean_of_its_ratings(write, name):
    row = feedback(*FOUR)
    (record,) = read_records(write(as_the_hub_stores_it(row) if name.endswith("parquet") else row, name=name))
    assert ranks(record) == {"A": 2, "B": 1, "C": 2, "D": 3}  # 4, 5, 4, 7 / 3
    assert (record.id, record.prompt, record.images) == ("LRV-1", "Which?", ("a.png",))
    assert record.responses[0].scores == {"helpfulness": 4.0, "ethics": 5.0, "faithfulness": 3.0}
    assert record.responses[0].model == "model of A"
    assert record.responses[0].extra["annotations"]["Helpfulness"] == {"Rating": "4", "Rationale": "because 4"}


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("missing", ["N/A", "n/a", "", " ", None])
def test_a_rating_that_is_not_there_gives_its_answer_no_rank(write, missing, parquet):
    row = feedback(completion("A", "1", "1", "1"), completion("B", "5", missing, "5"), completion("C", "3", "3", "4"))
    (record,) = read_records(write(as_the_hub_stores_it(row), name="rows.parquet") if parquet else write(row))
    assert ranks(record) == {"A": 2, "B": None, "C": 1} and record.pairs() == [(2, 0)]
    assert record.responses[1].scores == {"helpfulness": 5.0, "faithfulness": 5.0}


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("wrong", ["4/5", "not applicable", "nan", "inf", "1_0", "five", "3-4", "1e39", "\u200b"])
def test_a_rating_in_other_words_is_refused_by_record_answer_and_aspect(write, wrong, parquet):
    """Else all ranks of a set could be missing without a word."""
    row = feedback(completion("A", "1", "1", "1"), completion("B", "5", wrong, "5"))
    path = write(as_the_hub_stores_it(row), name="rows.parquet") if parquet else write(row)
    assert "(record 'LRV-1'), completion 1: field 'Rating' of 'Ethical Considerations' must be a finite number" in message(path)
    assert repr(wrong) in message(path)


@pytest.mark.parametrize("wrong", [True, [5], {"a": 1}, 10**40])
def test_a_rating_that_is_no_number_at_all_is_refused(write, wrong):
    assert "field 'Rating' of 'Helpfulness'" in message(write(feedback(completion("A", wrong, "1", "1"))))


def test_an_answer_without_an_aspect_that_others_have_is_not_compared(write):
    short = completion("B", "5", "5", "5")
    del short["annotations"]["Visual Faithfulness"]
    (record,) = read_records(write(feedback(completion("A", "1", "1", "1"), short, completion("C", 3, 3.5, "4"))))
    assert ranks(record) == {"A": 2, "B": None, "C": 1}


def authors_pairs(row):
    """The pairs of `run_dpo.py`, in its own way."""
    pairs = []
    for one, other in itertools.combinations(row["completions"], 2):
        try:
            means = [sum(float(a["Rating"]) for a in c["annotations"].values()) / len(c["annotations"]) for c in (one, other)]
        except ValueError:
            continue
        if means[0] != means[1]:
            better, worse = (one, other) if means[0] > means[1] else (other, one)
            pairs.append((better["response"], worse["response"]))
    return sorted(pairs)


def test_vlfeedbacks_pairs_are_those_of_its_authors(write):
    rng = random.Random(0)
    rows = [
        feedback(*(completion(text, *rng.choices(["1", "2", "3", "4", "5", "N/A"], k=3)) for text in "ABCD"), record_id=str(i))
        for i in range(60)
    ]
    for record, row in zip(read_records(write(*rows)), rows, strict=True):
        assert sorted((record.responses[i].text, record.responses[j].text) for i, j in record.pairs()) == authors_pairs(row)


@pytest.mark.parametrize("path", [None, "LRV-1.jpg", "/cache/datasets/downloads/extracted/f00/merged_images/LRV-1.jpg"])
def test_vlfeedbacks_images_are_read_from_its_archive(write, tmp_path, path):
    """As `VLFeedback.py` finds them: the JSON lines name no image; where the hub's parquet names one, it is the converter's."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "merged_images.zip", "w") as archive:
        archive.writestr("merged_images/LRV-1.jpg", png(7))
    row = feedback(*FOUR, img_path=path)
    for source in (write(row), write(as_the_hub_stores_it(row), name="rows.parquet")):
        (example,) = SourceExamples(source, tmp_path / "merged_images.zip")
        assert example.images == (png(7),)


def test_vlfeedback_rows_of_one_image_have_one_id_and_get_their_own(write):
    source = read_source(write(feedback(*FOUR), feedback(*FOUR, prompt="And why?")))
    assert [record.id for record in source.records] == ["LRV-1", "LRV-1#2"] and "1 ids occur more than once" in source.notes[0]
    assert {record.images for record in source.records} == {("a.png",)}


def test_vlfeedbacks_images_may_be_inside_parquet(write):
    row = as_the_hub_stores_it(feedback(*FOUR)) | {"img_path": None, "image": {"bytes": png(8), "path": "a.png"}}
    (example,) = SourceExamples(write(row, name="rows.parquet"))
    assert example.images == (png(8),)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (feedback(*FOUR) | {"completions": "none"}, "field 'completions' must list answers with annotations"),
        (feedback(*FOUR) | {"completions": {"response": ["a"], "model": []}}, "field 'completions' must list answers"),
        (feedback(completion("A", "1", "1", "1", annotations=[3])), "field 'annotations' must have an object per aspect"),
        (feedback(completion("A", "1", "1", "1", response=None)), "completion 0: field 'response' must be a string"),
        (feedback(*FOUR, record_id=None), "field 'id' is missing"),
    ],
)
def test_wrong_vlfeedback_rows(write, row, expected):
    assert expected in message(write(row))


# Questions with a chosen and a rejected answer ----------------------------------------------------------------------

RLAIF_V = {
    "ds_name": "RLAIF-V", "image": {"bytes": png(3), "path": "COCO_1.jpg"},
    "question": "Which?", "chosen": "A", "rejected": "B",
    "origin_dataset": "COCO", "origin_split": '{"model": "OmniLMM"}', "idx": "7", "image_path": "RLAIF-V-Dataset/COCO_1.jpg",
}  # fmt: skip


def test_rlaif_v_rows_are_pairs_with_their_image(write):
    path = write(RLAIF_V, RLAIF_V | {"idx": "8", "rejected": "C"}, name="rows.parquet")
    first, second = SourceExamples(path)
    assert (first.record.id, first.record.prompt, ranks(first.record)) == ("7", "Which?", {"A": 1, "B": 2})
    assert first.images == second.images == (png(3),) and ranks(second.record) == {"A": 1, "C": 2}
    assert first.record.extra["origin_dataset"] == "COCO"


def test_spa_vl_rows_are_pairs_with_their_image(write):
    row = {
        "image": {"bytes": png(4), "path": "1.jpg"},
        "question": "Which?",
        "chosen": "A",
        "rejected": "B",
        "prompt_source": "x",
    }
    (example,) = SourceExamples(write(row, name="rows.parquet"))
    assert (example.record.id, example.record.prompt, ranks(example.record)) == ("row-1", "Which?", {"A": 1, "B": 2})
    assert example.images == (png(4),)


@pytest.mark.parametrize("as_text", [True, False])
def test_rlhf_v_rows_have_their_texts_inside_one_column(write, as_text):
    texts = {"question": "Which?", "chosen": "A", "rejected": "B"}
    row = {"ds_name": "RLHF-V", "image": {"bytes": png(5), "path": "x.jpg"}, "text": json.dumps(texts) if as_text else texts}
    row |= {"origin_dataset": "LCS-558K", "idx": 0, "image_path": "llava1.5_7b_cvpr_ocrvqa/x.jpg"}
    (example,) = SourceExamples(write(row, name="rows.parquet"))
    assert (example.record.id, example.record.prompt, ranks(example.record)) == ("0", "Which?", {"A": 1, "B": 2})
    assert example.images == (png(5),) and "text" not in example.record.extra


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ('"\\ud800"', r"field 'text': not valid UTF-8: field 'question' holds half of a character"),
        ('"q", "note": ["\\udfff"]', r"field 'text': not valid UTF-8: field 'note\.0' holds half of a character"),
        ('"q", "note": NaN', r"field 'text': field 'note' must be a finite number, found NaN"),
        ('"q", "question": "r"', r"field 'text': field 'question' stands twice"),
    ],
)
def test_the_json_inside_rlhf_v_rows_is_as_strict_as_the_rows(write, wrong, expected):
    row = {"text": f'{{"question": {wrong}, "chosen": "A", "rejected": "B"}}', "idx": 1}
    for rows in ([row], [row | {"text": row["text"].replace(wrong, '"q"'), "idx": 2}, row]):
        with pytest.raises(UserError, match=expected):
            read_records(write(*rows))


MMPR = {"image": "1.png", "question": "<image>\nWhich?", "chosen": "A", "rejected": "B"}


def test_mmpr_rows_are_pairs_with_one_image_or_several_or_none(write):
    several = MMPR | {"image": ["1.png", "2.png"], "question": "Is <image> like <image>?"}
    one, two, none = read_records(
        write(MMPR, several, {name: MMPR[name] for name in ("chosen", "rejected")} | {"question": "Which?"})
    )
    assert (one.prompt, one.images, ranks(one)) == ("Which?", ("1.png",), {"A": 1, "B": 2})
    assert (two.prompt, two.images) == ("Is <image> like <image>?", ("1.png", "2.png"))
    assert (none.prompt, none.images) == ("Which?", ())


@pytest.mark.parametrize("prefix", ["MMPR/", ""])
def test_mmprs_meta_file_is_a_mixture_of_its_sets(write, tmp_path, prefix):
    for number in (1, 2):
        write(MMPR, name=f"MMPR/annotations/{number}.jsonl")
        (tmp_path / f"MMPR/images/{number}").mkdir(parents=True)
        (tmp_path / f"MMPR/images/{number}/1.png").write_bytes(png(number))
    meta = {
        f"set {number}": {
            "root": f"{prefix}images/{number}", "annotation": f"{prefix}annotations/{number}.jsonl",
            "data_augment": False, "repeat_time": number, "length": 1,
        }
        for number in (1, 2)
    }  # fmt: skip
    path = tmp_path / "MMPR" / "meta.json"
    path.write_text(json.dumps(meta))
    examples = open_examples(path)
    assert [example.images[0] for example in examples] == [png(1), png(2)] and examples.weights.tolist() == [1, 2]
    meta["set 1"]["annotation"] = "nowhere.jsonl"
    path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"set 'set 1': its rows 'nowhere\.jsonl' are not beside the file"):
        open_examples(path)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (MMPR | {"rejected": None}, "field 'rejected' must be a string, found None"),
        (MMPR | {"question": ["q"]}, "field 'question' must be a string"),
        (MMPR | {"question": "<image><image>Which?"}, "<image>"),
        ({"text": json.dumps(MMPR), "question": "Another?"}, "has 'question' both as a field and inside 'text'"),
    ],
)
def test_wrong_question_rows(write, row, expected):
    first = {"text": json.dumps(MMPR)} if "text" in row else MMPR
    assert expected in message(write(first, row)) and ":2" in message(write(first, row))


# LLaMA-Factory -------------------------------------------------------------------------------------------------------

SHARE = {
    "conversations": [{"from": "human", "value": "<image>Which?"}],
    "chosen": {"from": "gpt", "value": "A"},
    "rejected": {"from": "gpt", "value": "B"},
    "images": ["a.png"],
}
OPEN = {
    "messages": [{"role": "user", "content": "<image>Which?"}],
    "chosen": {"role": "assistant", "content": "A"},
    "rejected": {"role": "assistant", "content": "B"},
    "images": ["a.png"],
}
ALPACA = {
    "instruction": "<image>Which?",
    "input": "",
    "chosen": "A",
    "rejected": "B",
    "images": ["a.png"],
    "system": "",
    "history": [],
}


@pytest.mark.parametrize(
    "row",
    [
        SHARE,
        OPEN,
        ALPACA,
        SHARE | {"chosen": "A", "rejected": "B"},
        SHARE | {"conversations": {"from": ["human"], "value": ["<image>Which?"]}},
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_llama_factory_rows_in_every_style_are_pairs(write, row, name):
    (record,) = read_records(write(row, name=name))
    assert (record.prompt, record.images, ranks(record)) == ("Which?", ("a.png",), {"A": 1, "B": 2})


def test_alpaca_rows_join_instruction_and_input_and_videos_are_read(write):
    row = {"instruction": "Read:", "input": "some text", "chosen": "A", "rejected": "B"}
    video = {key: value for key, value in SHARE.items() if key != "images"} | {"videos": ["clip"]}
    video["conversations"] = [{"from": "human", "value": "<video>Which?"}]
    assert read_records(write(row))[0].prompt == "Read:\nsome text"
    assert read_records(write(video))[0].video == "clip"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (SHARE | {"conversations": [*SHARE["conversations"], {"from": "gpt", "value": "a"}]}, "must be one user message"),
        (
            SHARE | {"conversations": [{"from": "system", "value": "s"}, *SHARE["conversations"]]},
            "found roles ['system', 'user']",
        ),
        (SHARE | {"system": "Be kind."}, "field 'system' must be empty"),
        (SHARE | {"tools": "[]"}, "field 'tools' must be empty"),
        (ALPACA | {"history": [["q", "a"]]}, "field 'history' must be empty"),
        (SHARE | {"chosen": {"from": "human", "value": "A"}}, "must be one assistant message"),
        (SHARE | {"chosen": {"from": "gpt", "content": "A"}}, "both 'from' and 'role' or 'content'"),
        (SHARE | {"images": []}, "<image>"),
        (ALPACA | {"instruction": None}, "field 'instruction' must be a string"),
    ],
)
def test_wrong_llama_factory_rows(write, row, expected):
    assert expected in message(write(row))


# ms-swift's lists ----------------------------------------------------------------------------------------------------

SWIFT = {"messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "A"}]}


def test_a_list_of_rejected_answers_is_a_group_in_which_one_answer_is_above_each(write):
    rows = [SWIFT | {"rejected_response": ["B", "C", "B"]}, SWIFT | {"rejected_response": "B"}]
    first, second = read_records(write(*rows))
    assert ranks(first) == {"A": 1, "B": 2, "C": 2} and ranks(second) == {"A": 1, "B": 2}
    assert (first.id, second.id) == ("row-1", "row-2")  # as the rows stand, not the pairs
    (flat,) = read_records(write({"query": "Which?", "response": "A", "rejected_response": ["B", "C"]}))
    assert ranks(flat) == {"A": 1, "B": 2, "C": 2}


def test_a_list_of_rejected_answers_folds_with_other_rows_of_its_id(write):
    rows = [SWIFT | {"id": 1, "rejected_response": ["B", "C"]}]
    rows += [{"id": 1, "messages": [SWIFT["messages"][0], {"role": "assistant", "content": "B"}], "rejected_response": ["C"]}]
    (record,) = read_records(write(*rows))
    assert ranks(record) == {"A": 1, "B": 2, "C": 3}


def test_a_message_in_rejected_response_is_its_answer(write):
    (record,) = read_records(write(SWIFT | {"rejected_response": [{"role": "assistant", "content": "B"}]}))
    assert ranks(record) == {"A": 1, "B": 2}


@pytest.mark.parametrize(
    ("rejected", "expected"),
    [
        ([], "field 'rejected_response' must be a string, or a list of them, found []"),
        (["B", None], "field 'rejected_response' must be a string, or a list of them"),
        (["B", "A"], "chosen and rejected are the same text"),
        ([{"role": "user", "content": "B"}], "must be one assistant message"),
    ],
)
def test_wrong_lists_of_rejected_answers(write, rejected, expected):
    assert expected in message(write(SWIFT | {"rejected_response": rejected}))


# VL-RewardBench ------------------------------------------------------------------------------------------------------


def bench_rows(count=1250, twice=25):
    """The published file's shape: every row two answers, `twice` ids a second time with another rejected answer."""
    kinds = ["RLAIF-V-{}", "mathverse_{}", "mmmu_pro_test_Art_{}", "wildvision-battle-{}", "hallucination_pair-{}"]
    rows = []
    for number in range(count - twice):
        row = {"id": kinds[number % 5].format(number), "query": f"<image>\nQuestion {number}?", "response": ["A", "B"]}
        row |= {"human_ranking": [[0, 1], [1, 0]][number % 3 == 0], "models": ["m", "n"], "judge": "human", "rationale": None}
        rows.append(row | {"image_path": f"images/{number}.jpg", "query_source": "COCO", "ground_truth": None})
    again = [row | {"response": ["A", "C"]} for row in rows[1 : 5 * twice : 5]]
    return rows + again


def test_vl_reward_bench_is_read_whole_its_pairs_are_its_rows_and_what_was_renamed_is_said(write):
    rows = bench_rows()
    source = read_source(write(*rows))
    assert (len(source.records), len({record.id for record in source.records})) == (1250, 1250)
    found = [(r.id.split("#")[0], r.responses[i].text, r.responses[j].text) for r in source.records for i, j in r.pairs()]
    places = [row["human_ranking"].index(0) for row in rows]
    assert found == [(row["id"], row["response"][p], row["response"][1 - p]) for row, p in zip(rows, places, strict=True)]
    assert source.records[0].images == ("images/0.jpg",) and source.records[0].prompt == "Question 0?"
    assert "25 ids occur more than once; 25 later records are renamed, the first from 'mathverse_1' to 'mathverse_1#2'" in str(
        source.notes
    )


def test_the_hubs_file_of_vl_reward_bench_holds_its_images(write):
    rows = [
        {key: value for key, value in row.items() if key not in ("image_path", "rationale", "ground_truth")}
        | {"image": {"bytes": png(number), "path": None}}
        for number, row in enumerate(bench_rows(9, 2))
    ]
    path = write(*rows, name="test-00000-of-00001.parquet")
    assert [example.images for example in SourceExamples(path)] == [(png(i),) for i in range(9)]
    assert any("2 ids occur more than once" in remark for remark in validate(path).remarks)
    assert not [finding for finding in validate(path).findings if finding.kind != "text"]


def test_ids_that_occur_twice_are_still_refused_where_they_are_the_users_own(write):
    row = {"id": "a", "prompt": "p", "responses": ["A", "B"]}
    assert "id 'a' is used twice" in message(write(row, row))


# Lists of objects ----------------------------------------------------------------------------------------------------


def as_datasets_stores_them(value):
    """Every list of objects as an object of lists, at any depth: `datasets.Sequence` of objects."""
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        names = dict.fromkeys(name for one in value for name in one)
        return {name: [as_datasets_stores_them(one.get(name)) for one in value] for name in names}
    return {name: as_datasets_stores_them(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def turn(role, text):
    return {"role": role, "content": text}


PARTS = [{"type": "image", "text": None}, {"type": "text", "text": "Which?"}]
LISTS_OF_OBJECTS = [
    SWIFT | {"rejected_messages": [turn("user", "Which?"), turn("assistant", "B")]},
    {"prompt": [turn("user", "Which?")], "chosen": [turn("assistant", "A")], "rejected": [turn("assistant", "B")]},
    {
        "prompt": [turn("user", PARTS)],
        "chosen": [turn("assistant", "A")],
        "rejected": [turn("assistant", "B")],
        "images": ["a.png"],
    },
    {"id": "x", "prompt": "Which?", "responses": [{"text": "A", "rank": 1, "critique": "good"}, {"text": "B", "rank": 2}]},
    SHARE,
    feedback(*FOUR),
]


@pytest.mark.parametrize("row", LISTS_OF_OBJECTS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_lists_of_objects_are_read_as_datasets_stores_them(write, row, name):
    (plain,) = read_records(write(row, name="plain.jsonl"))
    stored = as_datasets_stores_them(row)
    assert stored != row
    (record,) = read_records(write(stored, name=name))
    assert record == plain and len(ranks(record)) >= 2


# What is not pairs ---------------------------------------------------------------------------------------------------

TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
NOT_PAIRS = {
    "KTO rows": [
        {"prompt": "q", "completion": "a", "label": True},
        {"messages": SWIFT["messages"], "label": False},
        {"conversations": TURNS, "kto_tag": True},
        {"instruction": "q", "output": "a", "kto_tag": False},
    ],
    "supervised fine-tuning rows": [
        {"id": "1", "image": "a.png", "conversations": TURNS},
        {"messages": SWIFT["messages"], "images": []},
        {"instruction": "q", "input": "", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"query": "q", "response": "a", "history": []},
        {"messages": SWIFT["messages"], "rejected_response": None},
    ],
    "prompts for sampling": [{"messages": SWIFT["messages"][:1], "solution": "a"}],
    "MMPR's prompts": [{"image": "1.png", "question": "q", "chosen": "a"}],
    "questions about images": [{"image": "1.png", "question": "q", "class1": "c"}],  # SPA-VL's test
    "questions with one answer": [{"image": "1.png", "question": "q", "answer": "a"}],
}


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in NOT_PAIRS.items() for row in rows])
def test_what_holds_no_comparison_is_refused_by_its_name(write, name, row):
    text = message(write(row))
    assert name in text and not any(known.fields in text for known in FORMATS)


# Ranks by scores -----------------------------------------------------------------------------------------------------


def scored(record_id, *scores, **fields):
    responses = [{"text": text} | one for text, one in zip("ABCD", scores, strict=False)]
    return {"id": record_id, "prompt": "p", "responses": responses} | fields


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("mean_score", {"A": 1, "B": 1, "C": None}),
        ("helpfulness", {"A": 2, "B": 1, "C": 3}),
        ("ethics", {"A": 1, "B": 2, "C": None}),
        ("reward", {"A": 2, "B": 1, "C": None}),
        ("votes", {"A": None, "B": None, "C": 1}),
    ],
)
def test_scores_rank_where_the_user_says_by_which(write, by, expected):
    row = scored(
        "a",
        {"scores": {"helpfulness": 3, "ethics": 5}, "reward": -2.5},
        {"scores": {"helpfulness": 4, "ethics": 4}, "reward": 0},
        {"scores": {"helpfulness": 1}, "votes": 7},
    )
    ranked = scored("b", {"rank": 2, "scores": {"helpfulness": 9}}, {"rank": 1, "scores": {"helpfulness": 1}})
    source = read_source(write(row, ranked), rank_by=by)
    assert ranks(source.records[0]) == expected
    assert ranks(source.records[1]) == {"A": 2, "B": 1}  # it has ranks of its own
    assert "1 of 2 records had no ranks and are ranked by" in source.notes[-1]
    unranked = read_source(write(row, ranked))
    assert not unranked.records[0].pairs() and not unranked.notes


def test_annotations_without_a_ranking_rank_by_their_mean(write):
    row = {"id": "a", "question": "q", "models_output": ["A", "B"], "final_ranking": None}
    row |= {"helpfulness": [1, 5], "faithfulness": [2, 2], "ethical": [5, 5]}
    (record,) = read_source(write(row), rank_by="mean_score").records
    assert ranks(record) == {"A": 2, "B": 1}


def test_a_score_that_nothing_has_or_that_is_no_number_is_refused(write):
    row = scored("a", {"scores": {"ethics": 3}, "votes": "many"}, {"scores": {"ethics": 4}, "length": 3})
    assert "no response has the score 'beauty'; there is ethics, length, mean_score" in message(write(row), rank_by="beauty")
    assert "record 'a': the score 'votes' must be a finite number, found 'many'" in message(write(row), rank_by="votes")


def test_a_build_says_how_scores_could_rank_and_how_they_did(write, tmp_path, capsys):
    path = write(scored("a", {"scores": {"ethics": 3}}, {"scores": {"ethics": 4}}))
    commands.build(str(path), str(tmp_path / "unranked"), None, 3, 1, None, "error", None)
    said = capsys.readouterr().err
    assert "1 groups have scores but no ranks, so they give no pair; rank them with --rank-by mean_score" in said
    commands.build(str(path), str(tmp_path / "ranked"), None, 3, 1, None, "error", "ethics")
    said = capsys.readouterr().err
    assert "1 of 1 records had no ranks and are ranked by ethics" in said and "1 strictly ordered pairs" in said
    assert ranks(open_examples(tmp_path / "ranked").records[0]) == {"A": 2, "B": 1}
