"""Rows of every format, with anything changed in them, are read as an independent reader reads them, or refused by name."""

from __future__ import annotations

import copy
import json
import math
import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrlhf_jax.data.sources import FORMATS, read_source
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.records import RankedRecord
from tests.data import plain_readers
from tests.data.plain_readers import ADDRESSES, OTHER_NAMES, Meaning, Refused

ROWS_PER_FILE = 25

# Sound rows -----------------------------------------------------------------------------------------------------------


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def own(rng, n):
    row = {"id": f"own-{n}", "prompt": "Which one?", "source": "s", "responses": [
        {"text": "A", "rank": 1, "scores": {"ethics": 4, "helpfulness": 2.5}, "critique": "good", "reward": 1.5, "model": "m"},
        {"text": "B", "rank": 2, "scores": {"ethics": 1, "helpfulness": 2}, "critique": ""},
        {"text": "C", "rank": 2, "note": "x"},
    ]}  # fmt: skip
    media = [{}, {"images": ["a.png"]}, {"images": ["a.png", "b.png"], "prompt": "Is <image> like <image>?"}, {"video": "clip"}]
    return row | rng.choice(media)


def mmrlhf_pairs(rng, n):
    row = {"id": f"p-{n}", "prompt": "<image>\nWhich?", "image": "a.png", "chosen": "A", "rejected": "B", "ls_factor": 0.5}
    more = [{}, {"image": ["a.png", "b.png"]}, {"image": None, "video": "clip"}, {"chosen_reason": "so", "is_tie": False}]
    return row | rng.choice(more)


def mmrlhf_annotations(rng, n):
    row = {
        "id": f"a-{n}",
        "question": "<image>\nWhich?",
        "image": "a.png",
        "video": None,
        "models_output": ["A", "B", "C"],
        "helpfulness": [5, 1, 3],
        "faithfulness": [4.5, 2, None],
        "ethical": None,
        "final_ranking": rng.choice(["1>2=3", "2>1>3", "0>1=2", "1=2=3"]),
        "score_reasons": ["good", "", "bad"],
        "answer": "A",
    }
    return row | rng.choice([{}, {"image": None, "video": "clip", "question": "Which?"}])


def trl(rng, n):
    parts = [{"type": "text", "text": "Is "}, {"type": "image"}, {"type": "text", "text": " like "}, {"type": "image"}]
    path = {"type": "image", "image": "a.png"}
    row = {"prompt": [user("Which?")], "chosen": [assistant("A")], "rejected": [assistant("B")]}
    more = [
        {"images": ["a.png"]},
        {"prompt": "Which?<image>", "chosen": "A", "rejected": "B", "images": ["a.png"]},
        {"prompt": [user(parts)], "images": ["a.png", "b.png"]},
        {"prompt": [user([path, {"type": "text", "text": "Which?"}])]},
        {"chosen": [user("Which?"), assistant("A")], "rejected": [user("Which?"), assistant("B")], "prompt": "Which?"},
        {"prompt": [user([{"type": "text", "text": "Which?"}, {"type": "video"}])], "video": "clip"},
        {"chosen": [assistant([{"type": "text", "text": "A"}])]},
    ]
    row |= rng.choice(more)
    return row | rng.choice([{}, {"score_chosen": 3} | ({} if isinstance(row["chosen"], str) else {"id": f"t-{n}"})])


def swift(rng, n):
    row = {"messages": [user("<image>Which?"), assistant("A")], "rejected_response": "B", "images": ["a.png"]}
    query = {"query": "Is <image> or <image>?", "response": "A", "rejected_response": "B", "images": ["a.png", "b.png"]}
    whole = {"messages": row["messages"], "rejected_messages": [user("<image>Which?"), assistant("B")], "images": ["a.png"]}
    clip = row | {"messages": [user("<video>Which?"), assistant("A")], "images": [], "videos": ["clip"]}
    several = row | {"rejected_response": ["B", "C"]}
    return rng.choice([row, query, whole, clip, several]) | rng.choice([{}, {"id": f"s-{n}"}, {"history": [], "system": None}])


def questions(rng, n):
    row = {"question": "Which?", "chosen": "A", "rejected": "B", "image": "a.png"}
    more = [{"idx": n, "image_path": "coco/a.png"}, {"id": f"q-{n}", "question": "<image>\nWhich?"}, {"ds_name": "d"}]
    return row | rng.choice(more)


def rlhf_v(rng, n):
    texts = {"question": "Which?", "chosen": "A", "rejected": "B"}
    return {"ds_name": "d", "image": "a.png", "text": rng.choice([texts, json.dumps(texts)]), "idx": n, "origin_split": "{}"}


def llama_factory(rng, n):
    human, gpt = (lambda value: {"from": "human", "value": value}), (lambda value: {"from": "gpt", "value": value})
    sharegpt = {"conversations": [human("<image>Which?")], "chosen": gpt("A"), "rejected": gpt("B"), "images": ["a.png"]}
    openai = {"messages": [user("Is <image> or <image>?")], "chosen": assistant("A"), "rejected": assistant("B")}
    alpaca = {"instruction": "Which?", "input": rng.choice(["", "This."]), "chosen": "A", "rejected": "B"}
    return rng.choice([sharegpt, openai | {"images": ["a.png", "b.png"]}, alpaca, alpaca | {"videos": ["clip"]}])


def vlfeedback(rng, n):
    def completion(text, *ratings):
        aspects = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
        annotations = {aspect: {"Rating": value, "Rationale": "so"} for aspect, value in zip(aspects, ratings, strict=True)}
        return {"response": text, "model": "m", "annotations": annotations}

    completions = [completion("A", "5", "4", "5"), completion("B", "4", "5", "5"), completion("C", "1", "N/A", "3")]
    return {"id": f"f-{n}", "prompt": "Which?", "completions": completions} | rng.choice(
        [{"img_path": "a.png"}, {"image": "a.png"}]
    )


def vl_reward_bench(rng, n):
    return {
        "id": f"v-{n}",
        "query": "Which?",
        "response": ["A", "B"],
        "human_ranking": rng.choice([[0, 1], [1, 0], [0, 0]]),
        "image": "a.png",
        "models": ["m", "n"],
        "query_source": "q",
    }


def multimodal_reward_bench(rng, n):
    better = rng.choice(["Output1", "Output2"])
    return {
        "ID": f"m-{n}",
        "Text": "Which?",
        "Image": "a.png",
        "Output1": "A",
        "Output2": "B",
        "Better": better,
        "Category": "c",
    }


def mmrb2(rng, n):
    def answer(*parts):
        return {"model_name": "m", "response_content": [list(part) for part in parts]}

    prompt = [["text", "Which?"], ["image", "a.png"], ["text", "Or none?"]][: rng.choice([2, 3])]
    sides = [answer(("text", "A")), answer(("text", "B"), ("image", "b.png"), ("text", "C"))]
    rng.shuffle(sides)
    row = {"id": f"b-{n}", "prompt_source": "blink", "prompt_content": rng.choice([prompt, prompt[::-1]])}
    return row | {"response_a": sides[0], "response_b": sides[1], "chosen": rng.choice("AB")}


# Format's name: sound rows, the independent reader, and whether a row is a pair.
CASES = {
    "ranking groups": (own, plain_readers.own, False),
    "MM-RLHF dpo_pairs.jsonl or RewardBench pairs": (mmrlhf_pairs, plain_readers.mmrlhf_pairs, True),
    "MM-RLHF data.jsonl": (mmrlhf_annotations, plain_readers.mmrlhf_annotations, False),
    "TRL / Hugging Face preference rows": (trl, plain_readers.trl, True),
    "ms-swift rows": (swift, plain_readers.swift, True),
    "RLAIF-V, SPA-VL or MMPR rows": (questions, plain_readers.questions, True),
    "RLHF-V": (rlhf_v, plain_readers.rlhf_v, True),
    "LLaMA-Factory preference rows": (llama_factory, plain_readers.llama_factory, True),
    "VLFeedback": (vlfeedback, plain_readers.vlfeedback, False),
    "VL-RewardBench": (vl_reward_bench, plain_readers.vl_reward_bench, False),
    "Multimodal-RewardBench": (multimodal_reward_bench, plain_readers.multimodal_reward_bench, True),
    "MMRB2": (mmrb2, plain_readers.mmrb2, False),
}
FIRST = {"TRL / Hugging Face preference rows": {"prompt": [user("First?")], "chosen": [assistant("A")], "rejected": "B"}}

# Changes --------------------------------------------------------------------------------------------------------------

VALUES = [
    None, True, False, 0, 1, -1, 3, 2.5, 10**30, 1e300, math.nan, math.inf, "", " ", "\u200b", "A", "B", "1>2", "2>1=3",
    "<image>", "clip.mp4", [], [None], [[]], ["A"], ["A", 3], [{}], {}, {"path": "b.png"}, {"bytes": "", "path": "b.png"},
    {"a": {"b": None}}, user("Why?"), assistant("C"), [user("Why?")], [assistant("C")], [user("Why?"), assistant("C")],
    [{"type": "image"}], {"type": "text", "text": "t"}, {"type": "audio", "audio": "a.wav"}, "x" * 30_000, ["y" * 5_000] * 3,
    "\ud7ff\ue000\U0001f600",
]  # fmt: skip
SEPARATORS = ["\u2028", "\u2029", "\x85", "\u00a0", "\x0b", "\x0c", "\x1e", "\u200b", "\ufeff", "\u202e"]
TAGS = ["<image>", "<video>", "<image>\n", "<audio>", "<|im_end|>", "<IMAGE>"]
MEDIA = ["b.png", ["b.png"], ["a.png"], ["a.png", "b.png"], {"path": "b.png"}, "http://host/a.png", None, [], "", "clip.mp4"]


def places(value, path=()):
    """Paths of everything inside a row."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield (*path, key)
        yield from places(inner, (*path, key))


def inside(row, path):
    for key in path:
        row = row[key]
    return row


def mutate(row, rng, others):
    """A copy with one thing changed."""
    row = copy.deepcopy(row)
    everywhere = list(places(row))
    texts = [path for path in everywhere if isinstance(inside(row, path), str)]
    path = rng.choice(everywhere if rng.random() < 0.5 else [path for path in everywhere if len(path) == 1]) if row else None
    text = rng.choice(texts) if texts else None

    def put(where, value):
        inside(row, where[:-1])[where[-1]] = value

    match rng.randrange(16):
        case 0 if path:
            del inside(row, path[:-1])[path[-1]]
        case 1 if row:
            name = rng.choice(list(row))
            new = rng.choice([*ADDRESSES, *OTHER_NAMES, name + "s", name.upper(), f"{name}_2", "note"])
            row = {new if key == name else key: value for key, value in row.items()}
        case 2 if row:
            row[rng.choice(["note", "copy of it", *row])] = copy.deepcopy(row[rng.choice(list(row))])
        case 3 if path:
            put(path, copy.deepcopy(rng.choice(VALUES)))
        case 4 if text:
            put(text, rng.choice(["", " ", "\n", "\u200b", "\0"]))
        case 5 if path:
            put(path, rng.choice([math.nan, math.inf, -math.inf]))
        case 6 if text:
            put(text, inside(row, text) + "long " * rng.choice([500, 5000]))
        case 7 if text:
            old, tag = inside(row, text), rng.choice(TAGS)
            put(text, rng.choice([tag + old, old + tag, old[:2] + tag + old[2:], old.replace("<image>", "", 1), tag * 2 + old]))
        case 8:
            row[rng.choice(["image", "images", "video", "videos", "Image"])] = copy.deepcopy(rng.choice(MEDIA))
        case 9:
            row[rng.choice([*ADDRESSES, *OTHER_NAMES])] = copy.deepcopy(rng.choice(MEDIA))
        case 10 if path:
            put(path, rng.choice([None, [None], {"a": None}, [[None]]]))
        case 11:
            for one, other in (("chosen", "rejected"), ("response", "rejected_response"), ("Output1", "Output2")):
                if one in row and other in row:
                    row[one], row[other] = row[other], row[one]
        case 12:
            row[rng.choice(["note", "Notes\u2028", "x" * 3000, "", "ключ"])] = rng.choice(
                [1, "text", {"deep": [{"er": None}]}, None]
            )
        case 13 if text:
            old = inside(row, text)
            put(text, old[:1] + rng.choice(SEPARATORS) + old[1:])
        case 15:
            name = rng.choice(["Prompt", "Question", "Input", "Text", "is_tie", "tie"])
            row[name] = copy.deepcopy(rng.choice(["Which?", "<image>Why?", [user("Which?")], True, False, None, 1, " "]))
        case 14:
            lists = [
                p for p in everywhere if isinstance(inside(row, p), list) and any("role" in str(m) for m in inside(row, p))
            ]
            if lists:
                messages = inside(row, rng.choice(lists))
                messages.insert(
                    rng.randrange(len(messages) + 1),
                    rng.choice([user("Why?"), assistant("C"), {"role": "system", "content": "s"}]),
                )
            elif "id" in row and others:
                row["id"] = rng.choice(others)
    return row


# Reading both ways ----------------------------------------------------------------------------------------------------


def expected(reader, row):
    """What a row means to the independent reader, or None where it must be refused."""
    try:
        return reader(copy.deepcopy(row))
    except Refused:
        return None


def pair_keys(meaning: Meaning):
    (chosen, rank, _, _), *others = meaning.answers
    for rejected, other, _, _ in others:
        texts = (chosen, rejected) if rank != other else tuple(sorted((chosen, rejected)))
        yield meaning.id, meaning.prompt, meaning.images, meaning.video, texts, rank == other


def found_pairs(record: RankedRecord, given_ids):
    around = record.prompt_text()
    id_ = re.sub(r"#\d+$", "", record.id)
    key = (id_ if id_ in given_ids else None, (around,) if isinstance(around, str) else around, record.images, record.video)
    for i, j in record.pairs():
        yield (*key, (record.responses[i].text, record.responses[j].text), False)
    for j, other in enumerate(record.responses):
        for response in record.responses[:j]:
            if response.rank == other.rank:
                yield (*key, tuple(sorted((response.text, other.text))), True)


def found_meaning(record: RankedRecord) -> Meaning:
    around = record.prompt_text()
    answers = tuple((r.text, r.rank, r.critique, None if r.scores is None else dict(r.scores)) for r in record.responses)
    prompt = (around,) if isinstance(around, str) else around
    return Meaning(record.id, prompt, record.images, record.video, answers, record.source, {})


def check_message(message: str, path, number: int | None = None) -> None:
    assert "\n" not in message and len(message) <= 500 + len(str(path)), message[:2000]
    assert str(path) in message and (number is None or f"{path}:{number}" in message), message
    assert re.search(r"field|'[^']+'|tag|id ", message.replace(str(path), "")), message


def check_file(path, name, rows):
    """Every row is refused by both readers, or means the same to both. Gives how many are read."""
    _, reader, is_pair = CASES[name]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    errors: list[UserError] = []
    source = read_source(path, errors.append)
    assert source.format.name == name
    refused = set()
    for error in errors:
        check_message(str(error), path)
        numbers = [int(number) for number in re.findall(re.escape(str(path)) + r":(\d+)", str(error))]
        refused.update(numbers[:1] if "is in the form" in str(error) else numbers)  # the second is of the row that is unlike it
    wanted = {number: expected(reader, row) for number, row in enumerate(rows, 1)}
    # A number that is not finite may be refused wherever it stands; JSON has none.
    for number, row in enumerate(rows, 1):
        if number in refused and not plain_readers.is_finite(row):
            wanted[number] = None
    right = {number: meaning for number, meaning in wanted.items() if meaning is not None}
    if not is_pair:
        check_groups(source.records, right, refused, rows, source.format.repeats_ids)
    else:
        check_pairs(source.records, right, refused, rows, errors)
    return len(right)


def check_groups(records, right, refused, rows, repeats_ids):
    taken, kept = set(), {}
    for number, meaning in right.items():
        names = [meaning.id, *(f"{meaning.id}#{n}" for n in range(2, len(rows) + 1))]
        free = next(name for name in names if name not in taken) if repeats_ids else meaning.id
        if free not in taken:
            kept[number] = meaning._replace(id=free)
        taken.add(free)
    assert not refused & kept.keys(), [rows[number - 1] for number in refused & kept.keys()]
    found = {record.id: record for record in records}
    assert set(found) == {meaning.id for meaning in kept.values()}
    for number, meaning in kept.items():
        record = found[meaning.id]
        assert found_meaning(record) == meaning._replace(unknown={}), rows[number - 1]
        for name, value in meaning.unknown.items():
            kept_as = [
                record.extra[key] for key in record.extra if key.removeprefix("original_") == name.removeprefix("original_")
            ]
            assert json.dumps(value) in map(json.dumps, kept_as), (name, rows[number - 1])


def check_pairs(records, right, refused, rows, errors):
    given_ids = {meaning.id for meaning in right.values() if meaning.id is not None}
    contradictions = " ".join(str(error) for error in errors if "contradict" in str(error))
    contradictory = {id_ for id_ in given_ids if repr(id_)[:97] in contradictions}
    judged = {number: meaning for number, meaning in right.items() if meaning.id not in contradictory}
    assert not refused & judged.keys(), [rows[number - 1] for number in refused & judged.keys()]
    wanted = {key for meaning in judged.values() for key in pair_keys(meaning)}
    found = {key for record in records for key in found_pairs(record, given_ids) if key[0] not in contradictory}
    # Responses of one group that no row compares are tied, too: MM-RLHF writes no row for a tie.
    assert {key for key in found if not key[-1]} == {key for key in wanted if not key[-1]}, found ^ wanted
    assert wanted <= found, wanted - found
    kept = json.dumps([dict(record.extra) for record in records])
    for meaning in judged.values():
        for name, value in meaning.unknown.items():
            assert json.dumps(name) in kept or json.dumps(f"original_{name}") in kept, name
            assert json.dumps(value) in kept, (name, value)


def test_every_format_has_a_case():
    assert {format_.name for format_ in FORMATS} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_sound_rows_are_read_by_both_readers_alike(tmp_path, name):
    make = CASES[name][0]
    rows = [make(random.Random(n), n) for n in range(40)]
    check_file(tmp_path / "rows.jsonl", name, [FIRST.get(name, rows[0] | {}), *rows[1:]])
    assert all(expected(CASES[name][1], row) is not None for row in rows)


def check_seed(folder, name, seed, count=ROWS_PER_FILE):
    """A file of sound rows that were changed in one to three places each. Gives how many are read."""
    rng = random.Random(seed)
    make = CASES[name][0]
    first = FIRST.get(name) or make(rng, 0)
    rows = [first]
    for number in range(1, count + 1):
        row = make(rng, number)
        others = [other["id"] for other in rows if isinstance(other.get("id"), str)] if rng.random() < 0.1 else []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            row = mutate(row, rng, others) if isinstance(row, dict) else row
        rows.append(row)
    return check_file(folder / "rows.jsonl", name, rows)


@pytest.mark.parametrize("name", CASES)
def test_mutated_rows_are_read_right_or_refused_by_place_and_name(tmp_path, name):
    """250 rows of every format, of which many are read and many are refused."""
    read = sum(check_seed(tmp_path, name, seed) for seed in range(10))
    assert 75 < read < 225


@pytest.mark.parametrize("name", CASES)
def test_a_first_row_that_is_of_no_format_any_more_is_refused_in_one_short_line(tmp_path, name):
    path = tmp_path / "rows.jsonl"
    for seed in range(60):
        rng = random.Random(seed)
        row = mutate(mutate(CASES[name][0](rng, 0), rng, []), rng, [])
        path.write_text(json.dumps(row))
        try:
            read_source(path)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) <= 700 + len(str(path)) and str(path) in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_five_thousand_mutated_rows_are_read_right_or_refused(tmp_path, name, seed):
    check_seed(tmp_path, name, seed)


@pytest.mark.parametrize("name", CASES)
def test_a_field_that_stands_twice_in_a_row_is_refused_by_name(tmp_path, name):
    """Python's own reader keeps the last one without a word."""
    row = CASES[name][0](random.Random(0), 1)
    for field in row:
        doubled = json.dumps(row)[:-1] + f", {json.dumps(field)}: 1}}"
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(FIRST.get(name, row)) + "\n" + doubled)
        with pytest.raises(UserError, match=f"rows.jsonl:2: field '{field}' stands twice"):
            read_source(path)
