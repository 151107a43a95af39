"""The page on which people rate answers: what its file has, and, in a browser where one is installed, what it does."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mmrlhf_jax.growing.verdict_files import read_verdicts
from mmrlhf_jax.pages.review import review_page
from tests import ranked

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")


def in_browser(page: str, tmp_path: Path, steps: str) -> str:
    """What `result` is after these steps in the page."""
    # The page's policy allows its own script alone.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    driver = f"<script>let result;\n{steps}\ndocument.title = 'result ' + JSON.stringify(result);</script>"
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", f"{driver}</body>"))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", profile, "--dump-dom", file.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    (found,) = re.findall(r"<title>result (.*?)</title>", shown, re.DOTALL)
    return json.loads(html.unescape(found))


KEYS = "const press = (key) => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));\n"


@needs_browser
def test_ratings_become_lines_that_are_read_as_verdicts(page, tmp_path):
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
    text, count = in_browser(page, tmp_path, steps)
    assert count == "2 of 3 rated"
    (tmp_path / "verdicts.jsonl").write_text(text)
    first, second = read_verdicts(tmp_path / "verdicts.jsonl")
    assert (first.record, first.prompt, first.who, first.tool) == ("a", "p-a", "Anna B.", "page") and first.when
    assert [(each.digest, each.rating, each.same_as_above) for each in first.answers] == [("a0", 2, False), ("a1", 5, False)]
    rated = [(each.digest, each.rating, each.same_as_above) for each in second.answers]
    assert rated == [("b0", 4, False), ("b1", None, True), ("b2", 1, False)] and second.reason == "because"


@needs_browser
def test_a_saved_file_is_gone_on_with(page, tmp_path):
    row = {"id": "c", "prompt": "p-c", "answers": [{"digest": "c1", "rating": 1}, {"digest": "c0", "rating": 4}], "who": "Ben"}
    other = row | {"prompt": "of another question"}
    steps = f"""
    load({json.dumps(json.dumps(row) + chr(10))}); load({json.dumps(json.dumps(other))});
    goToUnrated();
    result = [lines(), document.getElementById('who').textContent, document.getElementById('question').textContent];
    """
    text, who, question = in_browser(page, tmp_path, steps)
    assert (who, question) == ("Ben", "What is b?")
    assert json.loads(text)["answers"] == [{"digest": "c0", "rating": 4}, {"digest": "c1", "rating": 1}]


@needs_browser
def test_a_rating_can_be_taken_back_and_the_first_answer_has_none_above(page, tmp_path):
    keys = "press('='); press('3'); press('ArrowUp'); press('3');"
    steps = f"{KEYS} enter('Anna'); {keys} result = JSON.stringify(said(records[0]).ratings);"
    assert in_browser(page, tmp_path, steps) == "{}"


@needs_browser
def test_nobody_sees_what_another_person_rated_in_the_same_browser(page, tmp_path):
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
    shown, known, who = in_browser(page, tmp_path, steps)
    nobody = ["", 0, True]
    assert shown == [nobody, nobody, ["Anna", 2, False], nobody, ["Ben", 0, False], ["Anna", 2, False]]
    assert known == ["Go on as Anna (1 of 3 rated, not saved yet)"] and who == "Anna"
    # The browser is closed and opened again.
    steps = """
    const asked = [...document.querySelectorAll('#known button')].map((one) => one.textContent).sort();
    enter('ben'); result = [asked, state.who, said(records[0]).ratings];
    """
    asked, who, ratings = in_browser(page, tmp_path, steps)
    assert (who, ratings) == ("Ben", {"a0": 5})
    assert asked == ["Go on as Anna (1 of 3 rated, not saved yet)", "Go on as Ben (0 of 3 rated, not saved yet)"]


@needs_browser
def test_what_is_rated_in_part_is_not_saved_and_said(page, tmp_path):
    steps = f"""{KEYS}
    const shown = () => document.getElementById('message').textContent;
    enter('Anna'); press('1'); press('2'); save(); result = [shown()];
    go(2); press('3'); save(); result.push(shown(), lines().split('\\n').length - 1, state.unsaved);
    """
    first, second, count, unsaved = in_browser(page, tmp_path, steps)
    assert "verdicts-anna.jsonl" in first and "in part" not in first
    assert second.endswith("Not in it: records that are rated in part (1).") and count == 1 and not unsaved


@needs_browser
def test_a_browser_that_keeps_nothing_is_said_to_and_keeps_people_apart_all_the_same(page, tmp_path):
    steps = (
        KEYS
        + """
    Storage.prototype.setItem = Storage.prototype.getItem = () => { throw new Error('forbidden'); };
    enter('Anna'); press('1'); askWho(); enter('Ben'); const ben = {...said(records[0]).ratings};
    askWho(); enter('Anna');
    result = [ben, said(records[0]).ratings, document.getElementById('storage').hidden];
    """
    )
    assert in_browser(page, tmp_path, steps) == [{}, {"a0": 1}, False]


@needs_browser
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
def test_a_file_is_taken_where_it_is_this_persons_and_newer(page, tmp_path, change, taken, says):
    answers = [{"digest": "c1", "rating": 1}, {"digest": "c0", "rating": 4}]
    row = {"id": "c", "prompt": "p-c", "answers": answers, "who": "anna", "when": "2099-01-01T00:00:00Z"} | change
    steps = f"""
    enter('Anna'); go(2); rate(0, 2); rate(1, 2);
    load({json.dumps(json.dumps(row) + chr(13) + chr(10))});
    result = [said(records[2]).ratings, document.getElementById('message').textContent];
    """
    ratings, message = in_browser(page, tmp_path, steps)
    assert ratings == taken and says in message


@needs_browser
def test_the_page_runs_under_its_own_policy_and_shows_texts_as_texts(page, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}", "--dump-dom"]
    shown = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert "<title>Three &lt;records&gt;</title>" in shown
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown and "0 of 3 rated" in shown and f'<img src="{PICTURE}"' in shown
