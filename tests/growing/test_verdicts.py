"""What people say is checked against what they were shown, whatever tool it comes from, and several people make one order."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from mmrlhf_jax.data.digests import prompt_digest, text_digest
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.growing import argilla, label_studio
from mmrlhf_jax.growing.shown import SAME, Shown, ShownAnswer, question_of
from mmrlhf_jax.growing.verdict_files import read_verdicts
from mmrlhf_jax.growing.verdicts import EMPTY, Unfinished, agreed_ranks, checked
from mmrlhf_jax.records import RankedRecord, Response

TEXTS = ("A kite.", "A bird.", " ", "A <b>kite</b> & more")
RECORD = RankedRecord("r 1", "What is it?", tuple(map(Response, TEXTS)))
ORDER = (2, 0, 3, 1)  # as they are shown
DIGESTS = [text_digest(TEXTS[place]) for place in ORDER]
SHOWN = Shown(
    RECORD.id,
    question_of(RECORD),
    prompt_digest(RECORD),
    ("data:image/png;base64,AAAA",),
    tuple(ShownAnswer(digest, TEXTS[place] if TEXTS[place].strip() else EMPTY) for digest, place in zip(DIGESTS, ORDER)),
)
NOW = "2026-05-05T05:05:05+00:00"
RATINGS = dict(zip(DIGESTS, (1, 4, 4, 2)))  # the third is the same as the one above


def page_rows() -> list[dict]:
    said = [{"rating": 1}, {"rating": 4}, {"same_as_above": True}, {"rating": 2}]
    answers = [{"digest": digest} | each for digest, each in zip(DIGESTS, said)]
    row = {"id": "r 1", "prompt": SHOWN.prompt, "answers": answers, "who": "anna", "tool": "page", "reason": " Why not. "}
    return [row | {"when": "2026-03-01T12:00:00+02:00"}]


def region(control: str, place: int, **value) -> dict:
    name = "first_0" if place == 0 else f"other_{place - 1}"
    return {"from_name": f"{control}_{name}", "to_name": f"answer_{name}", "type": control, "value": value, "id": "x"}


def label_studio_tasks() -> list[dict]:
    result = [region("rating", place, rating=rating) for place, rating in ((3, 2), (0, 1), (1, 4))]
    result += [region("same", 2, choices=[SAME])]
    result += [{"from_name": "reason", "to_name": "question", "type": "textarea", "value": {"text": ["Why not."]}}]
    done = {"id": 5, "completed_by": {"id": 1, "email": "anna@x.org"}, "result": result, "was_cancelled": False}
    done |= {"created_at": "2026-03-01T09:00:00.123456Z", "updated_at": "2026-03-01T10:00:00.654321Z"}
    return [{"id": 7, **label_studio.task(SHOWN), "annotations": [done, done | {"was_cancelled": True}], "predictions": []}]


def argilla_records() -> list[dict]:
    record = argilla.record(SHOWN)
    values = {"rating_1": 1, "rating_2": 4, "same_3": SAME, "rating_4": 2, "reason": "Why not."}
    record["responses"] = {name: [{"value": value, "user_id": "u-1"}] for name, value in values.items()}
    return [record | {"status": "completed", "_server_id": "s"}]


FORMS = {"page": (page_rows, "anna"), "label-studio": (label_studio_tasks, "anna@x.org"), "argilla": (argilla_records, "u-1")}


@pytest.fixture(params=FORMS)
def form(request):
    made, who = FORMS[request.param]
    return request.param, made(), who


def written(path, form: str, content: list[dict]):
    if form == "argilla":
        path.mkdir(exist_ok=True)
        (path / "records.json").write_text(json.dumps(content))
    else:
        path.write_text(json.dumps(content) if form == "label-studio" else "".join(json.dumps(row) + "\n" for row in content))
    return path


def verdicts(path, form: str, content: list[dict]):
    """What people say; what they have skipped is left out."""
    return [checked(said, RECORD, NOW) for said in read_verdicts(written(path, form, content)) if not said.skipped]


def test_every_tool_says_the_same(form, tmp_path):
    name, content, who = form
    (found,) = verdicts(tmp_path / "file", name, content)
    assert (found.who, found.tool, found.reason) == (who, name, "Why not.")
    assert dict(found.ratings) == RATINGS
    assert found.when == (NOW if name == "argilla" else "2026-03-01T10:00:00+00:00")


def test_answers_are_found_by_their_content_in_any_order(form, tmp_path):
    """Whatever stands where in the file: a shuffled one gives each answer the same rating."""
    name, content, _ = form
    (row,) = content
    if name == "page":
        row["answers"][1:] = [{"digest": DIGESTS[2], "rating": 4}, {"digest": DIGESTS[3], "rating": 2}, row["answers"][1]]
    elif name == "label-studio":
        last, *others = [*row["data"]["first"], *row["data"]["others"]][::-1]
        row["data"] |= {"first": [last], "others": others}
        ratings = enumerate(reversed((1, 4, 4, 2)))
        row["annotations"][0]["result"] = [region("rating", place, rating=rating) for place, rating in ratings]
    else:
        row["metadata"]["answers"] = " ".join(reversed(DIGESTS))
        for one, other in ((1, 4), (2, 3)):
            row["fields"][f"answer_{one}"], row["fields"][f"answer_{other}"] = (
                row["fields"][f"answer_{other}"],
                row["fields"][f"answer_{one}"],
            )
        values = {"rating_1": 2, "rating_2": 4, "rating_3": 4, "rating_4": 1}
        row["responses"] = {question: [{"value": value, "user_id": "u-1"}] for question, value in values.items()}
    (found,) = verdicts(tmp_path / "file", name, content)
    assert dict(found.ratings) == RATINGS


def edited(form: str, content: list[dict], place: int, text: str) -> list[dict]:
    (row,) = content
    if form == "page":
        row["answers"][place]["text"] = text
    elif form == "label-studio":
        row["data"]["others"][place - 1]["text"] = text
    else:
        row["fields"][f"answer_{place + 1}"] = text
    return content


def test_edited_texts_are_refused(form, tmp_path):
    name, content, _ = form
    with pytest.raises(UserError, match=r"record 'r 1': the text of answer 2 was edited"):
        verdicts(tmp_path / "file", name, edited(name, content, 1, "A kite!"))


def test_another_prompt_is_refused(form, tmp_path):
    name, content, _ = form
    text = json.dumps(content).replace(SHOWN.prompt, "0" * 16)
    with pytest.raises(UserError, match="is about another prompt"):
        verdicts(tmp_path / "file", name, json.loads(text))


def test_an_answer_of_another_record_is_refused(form, tmp_path):
    name, content, _ = form
    text = json.dumps(content).replace(DIGESTS[1], "f" * 16)
    with pytest.raises(UserError, match="is none of this record"):
        verdicts(tmp_path / "file", name, json.loads(text))


def without(form: str, content: list[dict], place: int) -> list[dict]:
    """The same without the rating in this place."""
    (row,) = content
    if form == "page":
        row["answers"][place].pop("rating")
    elif form == "label-studio":
        result = row["annotations"][0]["result"]
        result[:] = [each for each in result if each["from_name"] != f"rating_other_{place - 1}"]
    else:
        del row["responses"][f"rating_{place + 1}"]
    return content


def test_a_verdict_without_all_ratings_is_not_finished(form, tmp_path):
    name, content, _ = form
    with pytest.raises(Unfinished, match="answer 4 is not rated"):
        verdicts(tmp_path / "file", name, without(name, content, 3))


@pytest.mark.parametrize("rating", [6, -1, 2.5, "4", True, False])
def test_a_rating_that_is_none_is_refused(form, tmp_path, rating):
    name, content, _ = form
    text = json.dumps(content)
    for given in ('"rating": 2', '"rating_4": [{"value": 2'):
        text = text.replace(given, given[:-1] + json.dumps(rating))
    with pytest.raises(UserError, match="from 1 to 5"):
        verdicts(tmp_path / "file", name, json.loads(text))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ([{"same_as_above": True}, {}, {}, {}], "the first answer has none above"),
        ([{}, {}, {"rating": 3}, {}], "answer 3 is the same as the one above, and has another rating"),
    ],
)
def test_contradictions_are_not_used(tmp_path, change, says):
    (row,) = page_rows()
    row["answers"] = [answer | more for answer, more in zip(row["answers"], change)]
    with pytest.raises(Unfinished, match=says):
        verdicts(tmp_path / "file", "page", [row])


def test_same_as_above_with_the_same_rating_is_no_contradiction(tmp_path):
    (row,) = page_rows()
    row["answers"][2]["rating"] = 4
    assert verdicts(tmp_path / "file", "page", [row])[0].ratings == RATINGS


def test_a_file_made_by_hand_may_name_answers_by_their_texts(tmp_path):
    answers = [{"text": text, "rating": rating} for text, rating in zip(TEXTS, (4, 2, 1, 4))]
    (found,) = verdicts(tmp_path / "file", "page", [{"id": "r 1", "answers": answers, "who": "ben"}])
    assert dict(found.ratings) == RATINGS and found.when == NOW
    answers[0]["text"] = "A kite?"
    with pytest.raises(UserError, match=r"answer 1 \('A kite\?'\) is none of this record"):
        verdicts(tmp_path / "file", "page", [{"id": "r 1", "answers": answers, "who": "ben"}])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("{", "line 1: not JSON"),
        ("[]", "is no export of Label Studio"),
        ('[{"image": "x", "rating_0": {"rating": 3}}]', "is no export of Label Studio"),
        ('[{"annotations": [], "data": {"image": "x"}}]', "JSON, not JSON-MIN"),
        ('[{"fields": {}, "responses": {}, "metadata": {}}]', "record 1"),
        ('{"id": "r", "who": "a"}', "field 'answers'"),
        ('{"id": "r", "answers": []}', "field 'who'"),
        ('{"id": "r", "answers": [], "who": "  "}', "field 'who'"),
        ('{"id": "r", "answers": [{}], "who": "a"}', "answer 1: needs the digest"),
        ('{"id": "r", "answers": [{"digest": "a", "same_as_above": 1}], "who": "a"}', "same_as_above must be"),
        ('{"id": "r", "prompt": "?", "responses": []}', "is a record of data, not a verdict"),
    ],
)
def test_what_is_no_verdict_is_said(tmp_path, content, says):
    (tmp_path / "file").write_text(content)
    with pytest.raises(UserError, match=says) as error:
        list(read_verdicts(tmp_path / "file"))
    assert str(tmp_path / "file") in str(error.value) and "\n" not in str(error.value)


def as_windows_saves_it(text: str) -> bytes:
    return b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()


@pytest.mark.parametrize("saved", [as_windows_saves_it, lambda text: text.encode("utf-16"), lambda text: text.strip().encode()])
def test_a_file_that_an_editor_has_saved_is_read(form, saved, tmp_path):
    name, content, _ = form
    path = written(tmp_path / "file", name, content)
    file = path / "records.json" if path.is_dir() else path
    file.write_bytes(saved(file.read_text()))
    assert [checked(said, RECORD, NOW).ratings for said in read_verdicts(path) if not said.skipped] == [RATINGS]


def test_what_is_no_text_is_said(tmp_path):
    (tmp_path / "file").write_bytes(b"\xff\xfe\x00\xd8\x41")
    with pytest.raises(UserError, match="is no text"):
        list(read_verdicts(tmp_path / "file"))


def test_a_line_is_found_by_its_number_in_the_file(tmp_path):
    (tmp_path / "file").write_text(json.dumps(page_rows()[0]) + '\n\n\n{"id": "r", "answers": [], "who": 3}\n')
    with pytest.raises(UserError, match="line 4: field 'who'"):
        list(read_verdicts(tmp_path / "file"))


def places_in(content, path=()):
    """The paths of all values in a file's content."""
    yield path
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield from places_in(content[key], (*path, key))


def test_a_damaged_file_is_refused_in_one_line_or_means_the_same(form, tmp_path):
    name, content, _ = form
    for *way, last in list(places_in(content))[1:]:
        for value in (None, 7, True, "x", [], {}, ["x"], [7]):
            damaged = json.loads(json.dumps(content))
            inside = damaged
            for key in way:
                inside = inside[key]
            inside[last] = value
            try:
                found = verdicts(tmp_path / "file", name, damaged)
            except UserError as error:
                assert "\n" not in str(error)
            except Unfinished:
                pass
            else:
                assert all(one.ratings.keys() == RATINGS.keys() for one in found), (way, last, value)


def test_missing_and_doubled_answers(tmp_path):
    (row,) = page_rows()
    row["answers"].pop()
    with pytest.raises(Unfinished, match="1 of 4 answers are not there"):
        verdicts(tmp_path / "file", "page", [row])
    row["answers"].append(row["answers"][0])
    with pytest.raises(UserError, match="stands there twice"):
        verdicts(tmp_path / "file", "page", [row])
    with pytest.raises(UserError, match="no such file"):
        list(read_verdicts(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"without records\.json"):
        list(read_verdicts(tmp_path))


def test_what_a_person_has_skipped_is_no_verdict(tmp_path):
    *_, skipped = read_verdicts(written(tmp_path / "file", "label-studio", label_studio_tasks()))
    with pytest.raises(Unfinished, match=r"anna@x\.org skipped it"):
        checked(skipped, RECORD, NOW)


def test_a_draft_or_discarded_response_is_skipped_where_the_export_says_so(tmp_path):
    (record,) = argilla_records()
    for each in record["responses"].values():
        each.append(each[0] | {"user_id": "u-2", "status": "draft"})
        each[0]["status"] = "submitted"
    assert [found.who for found in verdicts(tmp_path / "file", "argilla", [record])] == ["u-1"]
    assert [(said.who, said.skipped) for said in read_verdicts(tmp_path / "file")] == [("u-1", False), ("u-2", True)]


def test_a_reason_may_be_one_text(tmp_path):
    (task,) = label_studio_tasks()
    task["annotations"][0]["result"][-1]["value"]["text"] = "Why not."
    assert [found.reason for found in verdicts(tmp_path / "file", "label-studio", [task])] == ["Why not."]


@pytest.mark.parametrize("when", ["yesterday", "0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00"])
def test_a_time_that_is_none_is_refused(tmp_path, when):
    with pytest.raises(UserError, match="is not in the form of ISO 8601"):
        verdicts(tmp_path / "file", "page", [page_rows()[0] | {"when": when}])


def test_a_question_with_media_inside_names_them():
    record = RankedRecord("r", "Is <image> like <image>?", (), images=("a", "b"))
    assert question_of(record) == "Is [picture 1] like [picture 2]?"
    assert question_of(RankedRecord("r", "What happens in <video>?", (), video="v")) == "What happens in [the video]?"
    assert question_of(RankedRecord("r", " Why? ", (), images=("a",))) == "Why?"


def weak_orders(count: int):
    """All rankings with ties of so many answers, as ratings."""
    every = itertools.product(range(1, count + 1), repeat=count)
    return [ratings for ratings in every if set(ratings) == set(range(1, max(ratings) + 1))]


def ranks_of(ratings: tuple[int, ...]) -> dict[str, int]:
    levels = sorted(set(ratings), reverse=True)
    return {f"a{place}": 1 + levels.index(rating) for place, rating in enumerate(ratings)}


def named(ratings: tuple[int, ...]) -> dict[str, int]:
    return {f"a{place}": rating for place, rating in enumerate(ratings)}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_one_persons_order_is_the_rank(count):
    for ratings in weak_orders(count):
        assert agreed_ranks([named(ratings)]) == ranks_of(ratings)


def test_an_order_that_more_than_half_share_is_the_rank_whatever_the_others_say():
    rng = np.random.default_rng(0)
    orders = weak_orders(4)
    for _ in range(200):
        shared, *others = (orders[i] for i in rng.integers(len(orders), size=3))
        assert agreed_ranks([named(each) for each in (shared, others[0], shared, others[1], shared)]) == ranks_of(shared)


def test_people_who_are_divided_make_a_tie():
    assert agreed_ranks([{"a": 5, "b": 1}, {"a": 1, "b": 5}]) == {"a": 1, "b": 1}
    assert agreed_ranks([{"a": 5, "b": 1}, {"a": 3, "b": 3}]) == {"a": 1, "b": 1}  # one of two is no majority
    circle = [{"a": 3, "b": 2, "c": 1}, {"a": 1, "b": 3, "c": 2}, {"a": 2, "b": 1, "c": 3}]
    assert agreed_ranks(circle) == {"a": 1, "b": 1, "c": 1}


def test_people_see_every_answer_in_the_drawn_order_and_an_empty_one_as_empty():
    wanted = [EMPTY, "A kite.", "A <b>kite</b> & more", "A bird."]
    data = label_studio.task(SHOWN)["data"]
    assert [answer["text"] for answer in (*data["first"], *data["others"])] == wanted
    assert [argilla.record(SHOWN)["fields"][f"answer_{n}"] for n in (1, 2, 3, 4)] == wanted
