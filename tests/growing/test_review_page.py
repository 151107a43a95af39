"""The page on which people rate answers: what its file has, and, in a browser where one is installed, what it does."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from mmrlhf_jax.growing.verdict_files import read_verdicts
from mmrlhf_jax.pages.review import review_page
from tests import browser, ranked

NASTY = (
    "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> <b>bold</b> \u2028 &amp;"
)
PICTURE = "data:image/png;base64," + base64.b64encode(ranked.picture((3, 2), 1)).decode()


def record(name: str, *answers: str, pictures=(PICTURE,)) -> dict:
    shown = [{"digest": f"{name}{number}", "text": text} for number, text in enumerate(answers)]
    return {"id": name, "question": f"What is {name}?", "prompt": f"p-{name}", "pictures": list(pictures), "answers": shown}


RECORDS = [record("a", NASTY, "A kite."), record("b", "One.", "Two.", "Three.", pictures=()), record("c", "x", "y")]


@pytest.fixture(scope="module")
def page() -> str:
    return review_page(
        "Three <records>", "q1", RECORDS, ("bad", "poor", "fair", "good", "best"), "same as above", "Rate & see."
    )


def test_texts_of_models_cannot_end_the_data_nor_run(page):
    (data,) = re.findall(r'<script id="records" type="application/json">(.*?)</script>', page, re.DOTALL)
    content = json.loads(data)
    assert content["records"][0]["answers"][0]["text"] == NASTY
    assert "<" not in data and page.count("<script") == 2
    assert "<title>Three &lt;records&gt;</title>" in page and "Rate &amp; see." in page


def test_a_picture_of_several_records_is_stored_once(page):
    assert page.count(PICTURE) == 1


def test_nothing_is_loaded_from_elsewhere(page):
    assert "default-src 'none'" in html.unescape(page) and not re.search(r"https?://", page)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[browser.Browser]:
    with browser.running(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture
def tab(chromium, page, tmp_path) -> browser.Browser:
    """The page, as somebody sees it who opens it for the first time."""
    (tmp_path / "page.html").write_text(page)
    chromium.forget()
    chromium.open(tmp_path / "page.html", 1280)
    return chromium


def after(tab: browser.Browser, steps: str) -> Any:
    """What `result` is after these steps in the page."""
    return tab.value(f"(() => {{ let result;\n{steps}\nreturn result; }})()")


KEYS = "const press = (key) => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));\n"


@browser.needed
def test_ratings_become_lines_that_are_read_as_verdicts(tab, tmp_path):
    steps = (
        KEYS
        + """
    press('1');                              // nobody rates yet
    document.getElementById('name').value = ' Anna B. ';
    document.querySelector('#start button').click();
    press('2'); press('5');                  // record a, by keys
    press('ArrowRight');
    const levels = (answer) => document.querySelectorAll('.answer')[answer].querySelectorAll('button');
    levels(0)[3].click(); levels(1)[5].click(); levels(2)[0].click();  // record b, by the mouse
    document.getElementById('reason').value = ' because ';
    document.getElementById('reason').oninput({target: document.getElementById('reason')});
    press('ArrowRight'); press('1');         // record c is not finished
    result = [lines(), document.getElementById('count').textContent];
    """
    )
    text, count = after(tab, steps)
    assert count == "2 of 3 rated"
    (tmp_path / "verdicts.jsonl").write_text(text)
    first, second = read_verdicts(tmp_path / "verdicts.jsonl")
    assert (first.record, first.prompt, first.who, first.tool) == ("a", "p-a", "Anna B.", "page") and first.when
    assert [(each.digest, each.rating, each.same_as_above) for each in first.answers] == [("a0", 2, False), ("a1", 5, False)]
    rated = [(each.digest, each.rating, each.same_as_above) for each in second.answers]
    assert rated == [("b0", 4, False), ("b1", None, True), ("b2", 1, False)] and second.reason == "because"


@browser.needed
def test_a_saved_file_is_gone_on_with(tab):
    row = {"id": "c", "prompt": "p-c", "answers": [{"digest": "c1", "rating": 1}, {"digest": "c0", "rating": 4}], "who": "Ben"}
    other = row | {"prompt": "of another question"}
    steps = f"""
    load({json.dumps(json.dumps(row) + chr(10))}); load({json.dumps(json.dumps(other))});
    goToUnrated();
    result = [lines(), document.getElementById('who').textContent, document.getElementById('question').textContent];
    """
    text, who, question = after(tab, steps)
    assert (who, question) == ("Ben", "What is b?")
    assert json.loads(text)["answers"] == [{"digest": "c0", "rating": 4}, {"digest": "c1", "rating": 1}]


@browser.needed
def test_a_rating_can_be_taken_back_and_the_first_answer_has_none_above(tab):
    keys = "press('='); press('3'); press('ArrowUp'); press('3');"
    steps = f"{KEYS} enter('Anna'); {keys} result = JSON.stringify(said(records[0]).ratings);"
    assert after(tab, steps) == "{}"


@browser.needed
def test_nobody_sees_what_another_person_rated_in_the_same_browser(tab, tmp_path):
    steps = (
        KEYS
        + """
    const shown = () => [state.who, document.querySelectorAll('.level.chosen').length, document.getElementById('sides').hidden];
    result = [shown()];
    enter('  '); result.push(shown());                                     // nobody has this name
    enter('Anna'); press('1'); press('2'); result.push(shown());
    document.getElementById('someone').click(); result.push(shown());
    const known = [...document.querySelectorAll('#known button')].map((one) => one.textContent);
    enter('Ben'); result.push(shown()); press('5');
    document.getElementById('someone').click(); enter(' ANNA '); result.push(shown());
    result = [result, known, JSON.parse(lines()).who];
    """
    )
    shown, known, who = after(tab, steps)
    nobody = ["", 0, True]
    assert shown == [nobody, nobody, ["Anna", 2, False], nobody, ["Ben", 0, False], ["Anna", 2, False]]
    assert known == ["Go on as Anna (1 of 3 rated, not saved yet)"] and who == "Anna"
    tab.open(tmp_path / "page.html", 1280)  # again
    steps = """
    const asked = [...document.querySelectorAll('#known button')].map((one) => one.textContent).sort();
    enter('ben'); result = [asked, state.who, said(records[0]).ratings];
    """
    asked, who, ratings = after(tab, steps)
    assert (who, ratings) == ("Ben", {"a0": 5})
    assert asked == ["Go on as Anna (1 of 3 rated, not saved yet)", "Go on as Ben (0 of 3 rated, not saved yet)"]


@browser.needed
def test_what_is_rated_in_part_is_not_saved_and_said(tab):
    steps = f"""{KEYS}
    const shown = () => document.getElementById('message').textContent;
    enter('Anna'); press('1'); press('2'); save(); result = [shown()];
    go(2); press('3'); save(); result.push(shown(), lines().split('\\n').length - 1, state.unsaved);
    """
    first, second, count, unsaved = after(tab, steps)
    assert "verdicts-anna.jsonl" in first and "in part" not in first
    assert second.endswith("Not in it: records that are rated in part (1).") and count == 1 and not unsaved


@browser.needed
def test_a_browser_that_keeps_nothing_is_said_to_and_keeps_people_apart_all_the_same(tab):
    steps = (
        KEYS
        + """
    Storage.prototype.setItem = Storage.prototype.getItem = () => { throw new Error('forbidden'); };
    enter('Anna'); press('1'); askWho(); enter('Ben'); const ben = {...said(records[0]).ratings};
    askWho(); enter('Anna');
    result = [ben, said(records[0]).ratings, document.getElementById('storage').hidden];
    """
    )
    assert after(tab, steps) == [{}, {"a0": 1}, False]


@browser.needed
@pytest.mark.parametrize(
    ("change", "taken", "says"),
    [
        ({}, {"c0": 4, "c1": 1}, "Taken from the file: 1 records."),
        ({"when": "2020-01-01T00:00:00Z"}, {"c0": 2, "c1": 2}, "rated later here"),
        ({"who": "Ben"}, {"c0": 2, "c1": 2}, "has the verdicts of Ben"),
        ({"who": ""}, {"c0": 2, "c1": 2}, "no file that was saved here"),
        ({"prompt": "another"}, {"c0": 2, "c1": 2}, "1 of the file are left out"),
        ({"answers": [{"digest": "c1", "rating": 9}, {"digest": "c0", "rating": 4}]}, {"c0": 2, "c1": 2}, "left out"),
        ({"answers": [{"digest": "c1", "rating": 3}]}, {"c0": 2, "c1": 2}, "left out"),
        ({"answers": [{"digest": "c1", "rating": 3}, {"digest": "c0", "same_as_above": True}]}, {"c0": 3, "c1": 3}, "Taken"),
    ],
)
def test_a_file_is_taken_where_it_is_this_persons_and_newer(tab, change, taken, says):
    answers = [{"digest": "c1", "rating": 1}, {"digest": "c0", "rating": 4}]
    row = {"id": "c", "prompt": "p-c", "answers": answers, "who": "anna", "when": "2099-01-01T00:00:00Z"} | change
    steps = f"""
    enter('Anna'); go(2); rate(0, 2); rate(1, 2);
    load({json.dumps(json.dumps(row) + chr(13) + chr(10))});
    result = [said(records[2]).ratings, document.getElementById('message').textContent];
    """
    ratings, message = after(tab, steps)
    assert ratings == taken and says in message


@browser.needed
def test_the_page_runs_under_its_own_policy_and_shows_texts_as_texts(tab):
    shown = tab.value("document.documentElement.outerHTML")
    assert "<title>Three &lt;records&gt;</title>" in shown and not tab.complaints()
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown and "0 of 3 rated" in shown and f'<img src="{PICTURE}"' in shown
