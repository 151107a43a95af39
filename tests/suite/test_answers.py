"""The store of answers: each is on disk when it is made, and is found again by the content of its request."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time

import pytest

from mmrlhf_jax.suite.answers import Answer, AnswerFile, answers_path, stored
from mmrlhf_jax.suite.request import Medium, Request
from tests.suite.support.asked import only

OPTIONS = {"max_new_tokens": 16, "temperature": 0.0}


def request(document: str = "0", text: str = "Which colour?", digest: str = "ab", **options) -> Request:
    return Request(document, ("", text), (Medium("image", digest, b"png"),), OPTIONS | options)


def test_an_answer_is_stored_at_once_and_read_back(tmp_path):
    answer = Answer.to(request(text="哪种颜色?\nA. 红色"), "红色 \u2028 und „rot“", "length")
    with AnswerFile(tmp_path, "mme") as file:
        file.add(answer)
        assert only(tmp_path, "mme") == {"0": answer}
    assert only(tmp_path, "mme") == {"0": answer}
    assert only(tmp_path, "pope") == {}


def test_an_empty_answer_is_an_answer(tmp_path):
    with AnswerFile(tmp_path, "mme") as file:
        file.add(Answer.to(request(), "", "stop"))
    assert only(tmp_path, "mme")["0"].answer == ""


def test_the_key_is_of_texts_media_and_options():
    same = request()
    assert same.key == request(document="7").key
    others = [request(text="Which?"), request(digest="cd"), request(max_new_tokens=17), request(until=["\n"])]
    others += [
        dataclasses.replace(same, texts=("Which colour?", "")),
        dataclasses.replace(same, media=(Medium("video", "ab"),)),
    ]
    assert len({each.key for each in [same, *others]}) == 1 + len(others)


def test_answers_to_what_was_asked_otherwise_are_told_apart(tmp_path):
    asked = request(), request(text="Which, now?")
    for process, text, to in ((0, "red", asked[0]), (0, "blue", asked[1]), (1, "rot", asked[0])):
        with AnswerFile(tmp_path, "mme", process) as file:
            file.add(Answer.to(to, text, "stop"))
    found = stored(tmp_path, "mme")["0"]
    assert {key: each.answer for key, each in found.items()} == {asked[0].key: "rot", asked[1].key: "blue"}
    assert len(answers_path(tmp_path, "mme").read_text().splitlines()) == 2


def test_half_a_line_of_a_kill_is_left_out_and_the_next_answer_is_whole(tmp_path, capsys):
    with AnswerFile(tmp_path, "mme") as file:
        file.add(Answer.to(request("0"), "red", "stop"))
        file.add(Answer.to(request("1"), "blue", "stop"))
    path = answers_path(tmp_path, "mme")
    path.write_bytes(path.read_bytes()[:-25])
    assert list(only(tmp_path, "mme")) == ["0"]
    assert "1 line is not whole" in capsys.readouterr().err
    with AnswerFile(tmp_path, "mme") as file:
        file.add(Answer.to(request("1"), "green", "stop"))
    assert {name: each.answer for name, each in only(tmp_path, "mme").items()} == {"0": "red", "1": "green"}
    capsys.readouterr()
    assert only(tmp_path, "mme")["1"].answer == "green"
    assert capsys.readouterr().err == ""


def test_a_damaged_byte_is_no_other_answer(tmp_path, capsys):
    with AnswerFile(tmp_path, "mme") as file:
        file.add(Answer.to(request("0"), "red", "stop"))
        file.add(Answer.to(request("1"), "blue", "stop"))
    path = answers_path(tmp_path, "mme")
    path.write_bytes(path.read_bytes().replace(b'"blue"', b'"bl\xfee"'))
    assert list(only(tmp_path, "mme")) == ["0"]
    assert "1 line is not whole" in capsys.readouterr().err


def test_lines_of_something_else_are_no_answers(tmp_path):
    path = answers_path(tmp_path, "mme")
    path.parent.mkdir()
    path.write_text(
        '{"document": 3}\n[]\nnull\n{"document": "0", "key": "k", "prompt": "p", "media": "x", "options": [], "answer": 1}\n'
    )
    assert only(tmp_path, "mme") == {}


def test_hosts_write_files_of_their_own_that_are_read_together(tmp_path):
    for process in range(3):
        with AnswerFile(tmp_path, "mme", process) as file:
            file.add(Answer.to(request(f"{process}"), f"answer {process}", "stop"))
    assert {name: each.answer for name, each in only(tmp_path, "mme").items()} == {str(n): f"answer {n}" for n in range(3)}
    assert only(tmp_path, "mm") == {}


def _write(directory) -> None:
    with AnswerFile(directory, "mme") as file:
        for number in range(10**6):
            file.add(Answer.to(request(f"{number}"), "x" * 200, "stop"))


@pytest.mark.long
def test_a_kill_loses_no_answer_that_was_added(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_write, args=(tmp_path,))
    process.start()
    path = answers_path(tmp_path, "mme")
    while not path.exists() or os.path.getsize(path) < 20_000:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    lines = path.read_text().count("\n")
    found = only(tmp_path, "mme")
    assert len(found) == lines > 10
    assert sorted(map(int, found)) == list(range(lines))
