"""Critiques from a server outlive kills, failures of their scoring, and the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import critic, endpoint, journal
from mmrlhf_jax.inference.engine import Engine
from tests import ranked
from tests.serving import fakes
from tests.serving.fakes import Fake, chat, refusal
from tests.serving.scoring import CRITIQUES, RANKS, SIZES, about, failing, prompts, refused, score, scored


@pytest.fixture
def source(tmp_path):
    return ranked.write(tmp_path / "data", RANKS, SIZES)


@pytest.fixture(autouse=True)
def quick(monkeypatch, beside):
    """The model is loaded once for all tests, and nothing waits."""
    monkeypatch.setattr(Engine, "load", lambda path, **_: beside)
    monkeypatch.setattr(journal, "PART_SECONDS", 0.0)
    monkeypatch.setattr(endpoint, "_pause", lambda attempt, stated: 0.05)


class Killed(Exception):
    pass


def stops_at_the(number: int):
    """`Journal.add` that is cut off at a line."""
    add, count = journal.Journal.add, []

    def cut(self, index, line):
        count.append(index)
        if len(count) == number:
            raise Killed
        add(self, index, line)

    return cut


@pytest.mark.long
def test_a_pass_that_was_cut_off_asks_for_the_critiques_that_are_not_there(directory, source, tmp_path, monkeypatch):
    out, one = tmp_path / "out", ("--concurrency", "1")
    with fakes.running(Fake(about(source))) as fake:
        with monkeypatch.context() as patched:
            patched.setattr(journal.Journal, "add", stops_at_the(3))
            assert isinstance(score(directory, source, out, fake.url, *one).exception, Killed)
        asked = len(fake.asked)
        lines = scored(directory, source, out, fake.url, *one)
        again = fake.texts()[asked:]
    assert again[-4:] == [text for texts in prompts(source)[2:] for text in texts]
    assert all(body["max_completion_tokens"] == 1 for body in fake.asked[asked:-4])  # the probe
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES


def test_critiques_outlive_a_second_step_that_fails_and_the_server(directory, source, tmp_path, monkeypatch):
    """And their rewards may be computed in another way then."""
    out = tmp_path / "out"

    def broken(*_, **__):
        raise UserError("the model's reward is nan")
        yield

    with fakes.running(Fake(about(source))) as fake, monkeypatch.context() as patched:
        patched.setattr(critic, "score_each", broken)
        assert "is nan" in refused(directory, source, out, fake.url)
    lines = scored(directory, source, out, fake.url, "--critic-model", "m")  # nothing listens there any more
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES


@pytest.mark.parametrize("what", ["data", "model", "length"])
def test_critiques_of_other_content_are_not_used(directory, source, tmp_path, monkeypatch, what):
    out, more = tmp_path / "out", {"length": ("--max-new-tokens", "7")}.get(what, ())
    with fakes.running(Fake(lambda body: chat(), models=("m", "n"))) as fake:
        with monkeypatch.context() as patched:
            patched.setattr(journal.Journal, "add", stops_at_the(5))  # behind all critiques
            assert isinstance(score(directory, source, out, fake.url, "--critic-model", "m").exception, Killed)
        if what == "data":
            source.write_text(source.read_text().replace("group-3", "group-33"))
        asked = len(fake.asked)
        result = score(directory, source, out, fake.url, "--critic-model", "n" if what == "model" else "m", *more)
        assert result.exception is None
    assert sum(body["max_completion_tokens"] > 1 for body in fake.asked[asked:]) == 9


def test_a_record_that_was_refused_is_asked_for_again_by_a_pass_that_goes_on(directory, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with fakes.running(Fake(failing(source, [(3, 0), (3, 1)], refusal(400)))) as fake:
        with monkeypatch.context() as patched:
            patched.setattr(journal.Journal, "add", stops_at_the(4))  # the first reward
            assert isinstance(score(directory, source, out, fake.url).exception, Killed)
        fake.reply = about(source)
        lines = scored(directory, source, out, fake.url)
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES


def test_a_record_of_which_a_part_was_refused_is_scored_last_and_asked_for_again(directory, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with fakes.running(Fake(failing(source, [(0, 0)], refusal(400)))) as fake:
        with monkeypatch.context() as patched:
            patched.setattr(journal.Journal, "add", stops_at_the(7))  # three lines of critiques, three of rewards
            assert isinstance(score(directory, source, out, fake.url).exception, Killed)
        fake.reply = about(source)
        lines = scored(directory, source, out, fake.url)
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES


@pytest.mark.long
def test_a_kill_loses_no_finished_critique(directory, source, tmp_path):
    """Of a process that waits for a server which has stopped to answer."""
    out, held, usual, numbers = tmp_path / "out", threading.Event(), about(source), []

    def reply(body):
        if body["max_completion_tokens"] > 1:
            numbers.append(body)
            if len(numbers) > 5:  # the critiques of two records
                held.wait(60)
        return usual(body)

    with fakes.running(Fake(reply)) as fake:
        code = "from mmrlhf_jax.inference import journal; journal.PART_SECONDS = .2; from mmrlhf_jax.cli import main; main()"
        arguments = ["--model", str(directory), "--data", str(source), "--out", str(out), "--critic-endpoint", fake.url]
        process = subprocess.Popen([sys.executable, "-c", code, "score", *arguments, "--concurrency", "1"])
        folder = lambda: list(tmp_path.glob(".out.*.step/*.jsonl"))
        while sum(len(part.read_text().splitlines()) for part in folder()) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        held.set()
        asked = len(fake.asked)
        fake.reply = usual
        lines = scored(directory, source, out, fake.url)
    assert sum(body["max_completion_tokens"] > 1 for body in fake.asked[asked:]) == 4
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES


@pytest.mark.slow
def test_two_hosts_share_the_records_and_what_one_wrote_before_its_kill_is_not_asked_again(directory, source, tmp_path):
    out, launch, held, usual = tmp_path / "out", tmp_path / "launch.yaml", threading.Event(), about(source)
    launch.write_text("distributed: {initialization_timeout: 60}\n")
    own = {text for texts in prompts(source)[1::2] for text in texts}  # of the second host
    last = prompts(source)[3][1]

    def reply(body):
        text = "".join(part.get("text", "") for part in body["messages"][0]["content"])
        if body["max_completion_tokens"] > 1 and text == last:
            held.wait(120)
        return usual(body)

    with fakes.running(Fake(reply)) as fake:
        code = "from mmrlhf_jax.inference import journal; journal.PART_SECONDS = .2; from mmrlhf_jax.cli import main; main()"
        arguments = ["--model", str(directory), "--data", str(source), "--out", str(out), "--critic-endpoint", fake.url]

        def host(number: int) -> subprocess.Popen:
            place = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)}
            command = [sys.executable, "-c", code, "score", *arguments, "--launch", str(launch), "--concurrency", "1"]
            return subprocess.Popen(command, env=os.environ | place, stderr=subprocess.PIPE, text=True)

        hosts = [host(0), host(1)]
        while not list(tmp_path.glob(".out.*.step/0001-*.jsonl")):  # record 1
            assert hosts[1].poll() is None
            time.sleep(0.1)
        hosts[1].kill()
        hosts[1].communicate()
        held.set()
        hosts[1] = host(1)
        for each in hosts:
            said = each.communicate(timeout=300)[1]
            assert each.returncode == 0, said
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [record.id for record in open_examples(source).records]
    assert [[each["critique"] for each in line["responses"]] for line in lines] == CRITIQUES
    asked = [text for text, body in zip(fake.texts(), fake.asked, strict=True) if body["max_completion_tokens"] > 1]
    assert sum(text in own for text in asked) <= len(own) + 2  # the record that was under way
    assert all(asked.count(text) == 1 for texts in prompts(source)[:3] for text in texts)
    assert not list(tmp_path.glob(".out*step"))
