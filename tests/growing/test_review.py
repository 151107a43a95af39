"""Records go out to people and come back with their ranks, whatever comes in between."""

from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree

import pytest

from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.data.validate import validate
from tests.growing import made
from tests.growing.commands import command, refused
from tests.growing.made import answer, lines, verdict


def some_rows(count: int, answers: int = 3) -> list[dict]:
    """Records whose answers' rewards are at random, and whose first answer people had ranked first."""
    rows, rng = [], random.Random(0)
    for number in range(count):
        rewards = [rng.uniform(-3, 3) for _ in range(answers)]
        order = sorted(rewards, reverse=True)
        made_of = [
            answer(f"{number}: answer {place}", reward, 1 + order.index(reward), human_rank=1 + place)
            for place, reward in enumerate(rewards)
        ]
        rows.append(made.row(f"r{number}", *made_of, source="ab"[number % 2]))
    return rows


@pytest.fixture
def grown(tmp_path):
    return made.directory(tmp_path / "grown", some_rows(12), pictures=1)


def export(grown, *more) -> str:
    return command("review", "export", grown, "--budget", 6, *more)


def said_of(grown, **who) -> list[dict]:
    """A verdict on each record in the queue: the answers are rated by the numbers in their texts, the lower the better."""
    rows = {row["id"]: row for row in lines(grown / "records.jsonl")}
    found = []
    for entry in lines(grown / "review.jsonl"):
        texts = {text_digest(each["text"]): each["text"] for each in rows[entry["id"]]["responses"]}
        found.append(verdict(entry, {digest: 5 - int(texts[digest][-1]) for digest in entry["answers"]}, **who))
    return found


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_verdicts_become_ranks_and_the_critics_stay_beside_them(grown, tmp_path):
    before = {row["id"]: row for row in lines(grown / "records.jsonl")}
    assert "6 of 12 records" in export(grown)
    said = command("review", "import", grown, save(tmp_path / "v.jsonl", said_of(grown, reason="Look.")))
    assert "verdicts: 6 new" in said and "6 of 6 records in the queue have verdicts, of 1 people" in said
    queue = {entry["id"]: entry for entry in lines(grown / "review.jsonl")}
    for row in lines(grown / "records.jsonl"):
        old = before[row["id"]]
        if row["id"] not in queue:
            assert row == old
            continue
        assert [response["rank"] for response in row["responses"]] == [1, 2, 3]
        assert [response["critic_rank"] for response in row["responses"]] == [each["rank"] for each in old["responses"]]
        assert [response["reward"] for response in row["responses"]] == [each["reward"] for each in old["responses"]]
        assert row["selected_because"] == queue[row["id"]]["selected_because"]
        when = "2026-03-01T10:00:00+00:00"
        assert row["review"] == [{"who": "anna", "when": when, "tool": "page", "ratings": [5, 4, 3], "reason": "Look."}]
    assert not validate(grown / "records.jsonl").findings
    assert all(SourceExamples(grown / "records.jsonl")[i].images for i in range(12))
    assert not [path for path in grown.iterdir() if path.name.startswith(".")]


def test_an_import_that_is_done_twice_changes_nothing(grown, tmp_path):
    export(grown)
    file = save(tmp_path / "v.jsonl", said_of(grown))
    command("review", "import", grown, file)
    before = {name: (grown / name).read_bytes() for name in ("records.jsonl", "review.jsonl", "job.json")}
    assert "0 new, 0 in place of earlier ones, 12 known" in command("review", "import", grown, file, file)
    assert before == {name: (grown / name).read_bytes() for name in before}


def test_a_kill_between_the_two_files_is_mended_by_the_same_import(grown, tmp_path, monkeypatch):
    from mmrlhf_jax.growing import import_verdicts

    export(grown)
    file = save(tmp_path / "v.jsonl", said_of(grown))
    before = (grown / "records.jsonl").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(import_verdicts, "write_json_lines", killed)
        with pytest.raises((KeyboardInterrupt, AssertionError)):
            command("review", "import", grown, file)
    assert (grown / "records.jsonl").read_bytes() == before
    command("review", "import", grown, file)
    assert sum("review" in row for row in lines(grown / "records.jsonl")) == 6


def test_a_part_of_the_verdicts_in_any_order_changes_those_records_alone(grown, tmp_path):
    export(grown)
    before = {row["id"]: row for row in lines(grown / "records.jsonl")}
    said = said_of(grown)
    for one in said:
        one["answers"].reverse()
    command("review", "import", grown, save(tmp_path / "v.jsonl", [said[4], said[1]]))
    changed = {row["id"] for row in lines(grown / "records.jsonl") if row != before[row["id"]]}
    assert changed == {said[4]["id"], said[1]["id"]}
    assert "2 records have verdicts already, and are left out" in export(grown)
    command("review", "import", grown, save(tmp_path / "v.jsonl", said))
    assert sum("review" in row for row in lines(grown / "records.jsonl")) == 6


def test_the_majority_of_people_ranks_and_a_later_verdict_replaces_an_earlier_one(grown, tmp_path):
    export(grown)
    backwards = [
        one | {"who": who, "answers": [each | {"rating": 8 - each["rating"]} for each in one["answers"]]}
        for who in ("ben", "cleo")
        for one in said_of(grown)
    ]
    files = [save(tmp_path / "anna.jsonl", said_of(grown)), save(tmp_path / "others.jsonl", backwards)]
    said = command("review", "import", grown, *files)
    assert "18 new" in said and "of 3 people" in said and "people agree with each other on 33.3% of 54 pairs" in said
    ranks = lambda: {tuple(r["rank"] for r in row["responses"]) for row in lines(grown / "records.jsonl") if "review" in row}
    assert ranks() == {(3, 2, 1)}
    again = [one | {"when": "2026-03-02T10:00:00Z"} for one in said_of(grown, who="cleo")]
    assert "6 in place of earlier ones" in command("review", "import", grown, save(tmp_path / "again.jsonl", again))
    assert ranks() == {(1, 2, 3)}
    said = command("review", "import", grown, files[1])  # older ones change nothing
    assert "0 in place of earlier ones, 6 known already, 6 left out because later ones are there" in said
    assert "two different verdicts of 'cleo'" in said
    assert ranks() == {(1, 2, 3)}
    assert all(
        [one["who"] for one in row["review"]] == ["anna", "ben", "cleo"]
        for row in lines(grown / "records.jsonl")
        if "review" in row
    )


def test_a_name_in_another_spelling_is_the_same_person_and_has_one_vote(grown, tmp_path):
    export(grown)
    first, again = said_of(grown, who="Zoë"), said_of(grown, who=" ZOE\u0308 ")
    said = command("review", "import", grown, save(tmp_path / "1.jsonl", first), save(tmp_path / "2.jsonl", again))
    assert "6 new, 0 in place of earlier ones, 6 known already" in said and "of 1 people" in said
    assert {one["who"] for row in lines(grown / "records.jsonl") for one in row.get("review", ())} == {"Zoë"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": "nobody"}, "'nobody' is no record of this directory"),
        ({"prompt": "0" * 16}, "is about another prompt"),
    ],
)
def test_what_does_not_belong_here_is_refused_and_nothing_is_changed(grown, tmp_path, change, says):
    export(grown)
    before = {path: path.read_bytes() for path in grown.rglob("*") if path.is_file()}
    said = said_of(grown)
    said[3] |= change
    assert says in refused("review", "import", grown, save(tmp_path / "v.jsonl", said))
    assert before == {path: path.read_bytes() for path in grown.rglob("*") if path.is_file()}


def test_a_record_outside_of_the_queue_and_one_of_another_directory_are_refused(grown, tmp_path):
    export(grown)
    other = made.directory(tmp_path / "other", [made.row("r0", answer("x", 1.0, 1), answer("y", 0.0, 2))])
    command("review", "export", other)
    queued = {entry["id"] for entry in lines(grown / "review.jsonl")}
    outside = next(row for row in lines(grown / "records.jsonl") if row["id"] not in queued)
    digests = [text_digest(each["text"]) for each in outside["responses"]]
    stray = {"id": outside["id"], "who": "a", "answers": [{"digest": digest, "rating": 1} for digest in digests]}
    assert "is not in the queue" in refused("review", "import", grown, save(tmp_path / "v.jsonl", [stray]))
    (entry,) = lines(other / "review.jsonl")
    foreign = verdict(entry, {digest: 1 for digest in entry["answers"]})
    message = refused("review", "import", grown, save(tmp_path / "v.jsonl", [foreign]))
    assert "'r0' is not in the queue" in message or "record 'r0': answer 1" in message


def test_unfinished_verdicts_are_counted(grown, tmp_path):
    export(grown)
    said = said_of(grown)
    for one in said[:2]:
        del one["answers"][1]["rating"]
    message = command("review", "import", grown, save(tmp_path / "v.jsonl", said))
    assert "4 new" in message and "2 verdicts are not finished, and are not used; the first is" in message
    assert "answer 2 is not rated" in message


def test_the_import_says_how_good_the_critic_is(tmp_path):
    """The critic orders two of three pairs as people do in every record; a tie of people counts for neither."""
    rows = [
        made.row(f"r{n}", answer(f"{n}: 0", 3.0, 1), answer(f"{n}: 1", 1.0, 3), answer(f"{n}: 2", 2.0, 2)) for n in range(20)
    ]
    grown = made.directory(tmp_path / "grown", rows)
    command("review", "export", grown, "--budget", 20)
    said = said_of(grown)
    tied = next(one for one, entry in zip(said, lines(grown / "review.jsonl")) if entry["selected_because"] == "random")
    for each in tied["answers"]:
        each["rating"] = 2
    message = command("review", "import", grown, save(tmp_path / "v.jsonl", said))
    found = json.loads((grown / "job.json").read_text())["review"]["results"]["critic_agrees"]
    two_thirds = pytest.approx(2 / 3)
    assert found["random"] == {"records": 2, "pairs": 3, "agreement": two_thirds, "interval": None}
    assert found["near-tie"] == {"records": 18, "pairs": 54, "agreement": two_thirds, "interval": [two_thirds] * 2}
    assert "on 66.7% of 3 pairs in 2 random records (too few for an interval; the estimate for all records)" in message
    assert "on 66.7% of 54 pairs in 18 near-tie records (95 % interval 66.7% to 66.7%)" in message


def test_without_a_random_record_nothing_is_said_of_all(grown, tmp_path):
    export(grown)
    said = [one for one, entry in zip(said_of(grown), lines(grown / "review.jsonl")) if entry["selected_because"] != "random"]
    assert "is not known" in command("review", "import", grown, save(tmp_path / "v.jsonl", said))


# The export -------------------------------------------------------------------------------------------------------------


def test_people_see_neither_who_wrote_an_answer_nor_what_the_critic_thinks(grown):
    for tool in ("html", "label-studio", "argilla"):
        export(grown, "--to", tool)
    written = [path for path in (grown / "review").rglob("*") if path.is_file()]
    assert {path.name for path in written} == {
        "page.html", "label-studio.json", "label-studio.xml", "dataset.json", "settings.json", "records.json",
    }  # fmt: skip
    rows = lines(grown / "records.jsonl")
    for path in written:
        text = path.read_text()
        assert "policy" not in text.replace("Content-Security-Policy", "") and "near-tie" not in text and "critic" not in text
        assert not any(str(each["reward"]) in text for row in rows for each in row["responses"])


def test_the_order_of_answers_is_drawn(tmp_path):
    grown = made.directory(tmp_path / "grown", some_rows(60))
    command("review", "export", grown, "--budget", 60)
    rows = {row["id"]: row for row in lines(grown / "records.jsonl")}
    first = [
        [text_digest(each["text"]) for each in rows[entry["id"]]["responses"]].index(entry["answers"][0])
        for entry in lines(grown / "review.jsonl")
    ]
    assert min(map(first.count, range(3))) > 8


def test_tasks_of_label_studio_fit_their_interface(grown):
    export(grown, "--to", "label-studio")
    config = xml.etree.ElementTree.parse(grown / "review" / "label-studio.xml").getroot()
    tasks = json.loads((grown / "review" / "label-studio.json").read_text())
    assert len(tasks) == 6
    used = {match for element in config.iter() for value in element.attrib.values() for match in re.findall(r"\$(\w+)", value)}
    for task in tasks:
        assert used <= task["data"].keys() and len(task["data"]["images"]) == 1
        assert len(task["data"]["first"]) == 1 and len(task["data"]["others"]) == 2
        assert all({"title", "text"} <= each.keys() for name in ("first", "others") for each in task["data"][name])
    assert {element.tag for element in config.iter()} & {"Ranker", "Pairwise"} == set()


def test_a_dataset_of_argilla_has_what_its_records_need(grown):
    export(grown, "--to", "argilla")
    folder = grown / "review" / "argilla"
    settings = json.loads((folder / ".argilla" / "settings.json").read_text())
    names = {field["name"] for field in settings["fields"]}
    for record in json.loads((folder / "records.json").read_text()):
        assert record["fields"].keys() <= names
        assert {field["name"] for field in settings["fields"] if field["required"]} <= record["fields"].keys()
    assert [q["name"] for q in settings["questions"]] == ["rating_1", "rating_2", "same_2", "rating_3", "same_3", "reason"]
    assert [q["name"] for q in settings["questions"] if q["required"]] == ["rating_1"]  # without one nothing is published


def test_the_same_export_gives_the_same_files_and_a_larger_budget_adds_to_the_queue(grown, tmp_path):
    export(grown)
    page, queue = (grown / "review" / "page.html").read_bytes(), lines(grown / "review.jsonl")
    export(grown)
    assert (grown / "review" / "page.html").read_bytes() == page and lines(grown / "review.jsonl") == queue
    assert "at least as many" in refused("review", "export", grown, "--budget", 3)
    command("review", "import", grown, save(tmp_path / "v.jsonl", said_of(grown)))
    assert "all 6 records in the queue have verdicts" in refused("review", "export", grown, "--budget", 6)
    said = command("review", "export", grown, "--budget", 10, "--out", tmp_path / "more")
    assert "4 of them new" in said and "6 records have verdicts already" in said
    after = lines(grown / "review.jsonl")
    assert [entry["id"] for entry in after][:6] == [entry["id"] for entry in queue] and len(after) == 10
    assert all(entry["verdicts"] for entry in after[:6])
    shown = re.search(r'type="application/json">(.*?)</script>', (tmp_path / "more" / "page.html").read_text(), re.DOTALL)[1]
    assert [record["id"] for record in json.loads(shown)["records"]] == [entry["id"] for entry in after[6:]]
    command("review", "export", grown, "--budget", 10, "--again", "--to", "label-studio")
    assert len(json.loads((grown / "review" / "label-studio.json").read_text())) == 10
    assert "all that there is" in command("review", "export", grown, "--budget", 100)


def test_another_seed_needs_another_queue(grown):
    export(grown)
    assert "begun with another --seed" in refused("review", "export", grown, "--budget", 6, "--seed", 1)


def test_a_second_critic_shows_where_they_disagree(tmp_path):
    rows = [made.row(f"r{n}", answer(f"{n} a", 2.0, 1), answer(f"{n} b", 0.0, 2)) for n in range(40)]
    grown = made.directory(tmp_path / "one", rows)
    for row in rows[10:14]:
        row["responses"] = [answer(row["responses"][1]["text"], 5.0, 1), answer(row["responses"][0]["text"], 1.0, 2)]
    second = made.directory(tmp_path / "two", rows)
    said = command("review", "export", grown, "--budget", 20, "--against", second)
    found = {entry["id"] for entry in lines(grown / "review.jsonl") if entry["selected_because"] != "near-tie"}
    assert {f"r{n}" for n in range(10, 14)} <= found and "ranks the answers of 40 of 40 records" in said
    strangers = made.directory(tmp_path / "three", [made.row("r0", answer("x", 1.0, 1), answer("y", 0.0, 2))])
    other = made.directory(tmp_path / "four", rows)
    assert "has ranks of none of these answers" in refused("review", "export", other, "--against", strangers)


def test_ranks_of_people_from_before_show_where_the_critic_disagrees(grown):
    export(grown)
    rows = {row["id"]: row for row in lines(grown / "records.jsonl")}
    reasons = {entry["id"]: entry["selected_because"] for entry in lines(grown / "review.jsonl")}
    disagreed = [rows[name]["responses"] for name, why in reasons.items() if why == "disagreement"]
    assert len(disagreed) == 2
    for responses in disagreed:  # people had ranked them in this order, and the critic does not
        assert [response["rank"] for response in responses] != [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        ([made.row("r", answer("x", 1.0, 1))], [], "no record has two different answers"),
        (
            [made.row("r", answer("x", 1.0, 1), answer("y", 0.0, 2))],
            ["--to", "prodigy"],
            "choose from html, label-studio, argilla",
        ),
        ([made.row("r", answer("x", 1.0, 1), answer("y", 0.0, 2))], ["--budget", 0], "budget"),
    ],
)
def test_what_cannot_be_exported_is_said(tmp_path, rows, more, says):
    grown = made.directory(tmp_path / "grown", rows)
    assert says in refused("review", "export", grown, *more)
    assert not (grown / "review.jsonl").exists()


def test_a_directory_that_is_not_ready_is_said(tmp_path, grown):
    assert "has no job.json" in refused("review", "export", tmp_path)
    assert "nothing was exported from it" in refused("review", "import", grown, save(tmp_path / "v.jsonl", []))
    (grown / "records.jsonl").rename(grown / "elsewhere.jsonl")
    assert "let `mmrlhf annotate` come to its end" in refused("review", "export", grown)


def test_a_queue_of_other_records_is_refused(grown, tmp_path):
    export(grown)
    content = (grown / "records.jsonl").read_text()
    (grown / "records.jsonl").write_text(content.replace("answer 1", "answer one"))
    assert "they belong to different runs" in refused("review", "export", grown, "--budget", 6)
    (grown / "records.jsonl").write_text(content)
    spoilt = (grown / "review.jsonl").read_text().replace('"verdicts": []', '"verdicts": 3', 1)
    (grown / "review.jsonl").write_text(spoilt)
    assert "review.jsonl, line 1: is not as `mmrlhf review` writes it" in refused("review", "export", grown, "--budget", 6)
