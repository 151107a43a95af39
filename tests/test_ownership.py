"""One owner at a time: who comes second is told of the first and touches nothing; the place of one that is gone is taken."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
import yaml

from mmrlhf_jax import cli, config, ownership
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.exits import PEER_LOST, SIGNALLED
from mmrlhf_jax.faults import Unavailable
from mmrlhf_jax.inference.jobs import run_job
from mmrlhf_jax.owner import Owner
from mmrlhf_jax.ownership import Ownership
from mmrlhf_jax.training import loop, owner, peers
from tests import tiny
from tests.data import groups

# Takes the file that is named at the moment that is given, says whether, and holds it until it is killed.
HOLD = """
import sys, time
from mmrlhf_jax import ownership
from mmrlhf_jax.errors import UserError
ownership.SETTLE_SECONDS, ownership.BEAT_SECONDS = 2.0, 0.2
path, moment = sys.argv[1], float(sys.argv[2])
owner = ownership.Ownership(path, "RUN", "holds it", "end it", lambda reason: print("lost", flush=True))
print("ready", flush=True)
time.sleep(max(moment - time.time(), 0))
try:
    owner.take()
except UserError as error:
    print(f"refused: {error}", flush=True)
else:
    with owner:
        print("taken", flush=True)
        time.sleep(600)
"""


def start(path, moment: float = 0.0) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", HOLD, str(path), str(moment)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.fixture
def holders():
    """Processes that are killed behind the test."""
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def hold(path, holders) -> subprocess.Popen:
    holders.append(start(path))
    assert [holders[-1].stdout.readline().strip() for _ in range(2)] == ["ready", "taken"]
    return holders[-1]


def mine(path, lost=lambda reason: pytest.fail(reason)) -> Ownership:
    return Ownership(path, "RUN", "holds it", "end it", lost)


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in (("BEAT_SECONDS", 0.05), ("LOOK_SECONDS", 0.02), ("SILENT_SECONDS", 0.3), ("SETTLE_SECONDS", 0.1)):
        monkeypatch.setattr(ownership, name, seconds)


def test_who_comes_second_is_told_host_process_and_last_sign_of_life_and_touches_nothing(tmp_path, holders):
    first = hold(tmp_path / "run" / "owner", holders)
    before = [path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")]
    with pytest.raises(UserError) as refused:
        mine(tmp_path / "run" / "owner").take()
    line = str(refused.value)
    assert f"RUN: process {first.pid} on {socket.gethostname()} holds it; end it (" in line
    assert "last sign of life was 0:00:0" in line and "\n" not in line
    assert [path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")] == before == ["owner"]
    assert json.loads((tmp_path / "run" / "owner").read_text())["pid"] == first.pid


@pytest.mark.parametrize("waited_for", [True, False], ids=["gone", "zombie"])
def test_the_place_of_a_process_that_was_killed_is_taken_at_once(tmp_path, holders, waited_for):
    first = hold(tmp_path / "owner", holders)
    first.kill()
    if waited_for:
        first.wait()
    else:
        time.sleep(0.2)
    began = time.monotonic()
    with (own := mine(tmp_path / "owner")):
        own.take()
        assert json.loads((tmp_path / "owner").read_text())["pid"] == os.getpid()
    assert time.monotonic() - began < 5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("whose", ["own", "other"])
def test_an_id_that_was_given_to_another_process_is_no_sign_of_life(tmp_path, holders, whose):
    """The trainer is gone, and something else has its number: in a container that starts again, this very process."""
    other = hold(tmp_path / "elsewhere", holders)
    stale = dataclasses.replace(Owner.me(), pid=os.getpid() if whose == "own" else other.pid, started="12")
    (tmp_path / "owner").write_text(stale.text())
    mine(tmp_path / "owner").take()


def test_a_suspended_owner_of_this_host_is_not_gone(tmp_path, holders, quick):
    first = hold(tmp_path / "owner", holders)
    first.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    with pytest.raises(UserError, match="it lives"):
        mine(tmp_path / "owner").take()
    first.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("before", ["nobody", "dead"])
@pytest.mark.long
def test_of_several_that_start_at_the_same_moment_exactly_one_wins(tmp_path, holders, before):
    path = tmp_path / "run" / "owner"
    if before == "dead":
        first = hold(path, holders)
        first.kill()
        first.wait()
    assert_one_wins(path, holders)


@pytest.mark.long
def test_of_several_that_start_at_the_same_moment_in_a_bucket_exactly_one_wins(bucket, holders):
    assert_one_wins(bucket / "run" / "owner", holders, count=3)


def assert_one_wins(path, holders, count: int = 5) -> None:
    moment = time.time() + 5
    racing = [start(path, moment) for _ in range(count)]
    holders += racing
    assert [process.stdout.readline().strip() for process in racing] == ["ready"] * count
    said = [process.stdout.readline().strip().split(":")[0] for process in racing]
    assert sorted(said) == ["refused"] * (count - 1) + ["taken"]
    assert Owner.parse(path.read_text()).pid == racing[said.index("taken")].pid


ELSEWHERE = {
    "another host": {"host": "elsewhere", "place": "b"},
    "a container of this host": {"place": "b"},
    "no place": {"host": "x"},
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_a_silent_owner_elsewhere_gives_way_after_a_time(tmp_path, quick, capsys, where):
    (tmp_path / "owner").write_text(dataclasses.replace(Owner.me(), **ELSEWHERE[where]).text())
    began = time.monotonic()
    mine(tmp_path / "owner").take()
    assert 0.3 <= time.monotonic() - began < 10
    said = capsys.readouterr().err
    assert "looking for signs of life" in said and "is gone; going on in its place" in said


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"host": 1}', b"torn", bytes(300), b"\xff\xfe{\x80"])
def test_a_file_that_says_nothing_gives_way_after_a_time(tmp_path, quick, content):
    (tmp_path / "owner").write_bytes(content)
    mine(tmp_path / "owner").take()


def test_an_owner_elsewhere_that_beats_is_not_gone_whatever_the_clocks_say(tmp_path, quick, monkeypatch):
    """Its clock is years behind, and this one's jumps: only the change of its file counts."""
    monkeypatch.setattr(ownership.time, "time", lambda: 0.0)
    owner, beats = dataclasses.replace(Owner.me(), host="elsewhere", place="b", at=12.0), 0
    own = mine(tmp_path / "owner")
    for beats in range(3):
        (tmp_path / "owner").write_text(dataclasses.replace(owner, beat=beats).text())
        outcome = own.look()
        if outcome is not False:
            break
    assert outcome[0] == f"process {os.getpid()} on elsewhere" and beats == 1


def test_who_was_suspended_itself_does_not_count_that_time_as_the_others_silence(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(ownership.time, "monotonic", lambda: now[0])
    (tmp_path / "owner").write_text(dataclasses.replace(Owner.me(), host="elsewhere", place="b").text())
    own = mine(tmp_path / "owner")
    assert own.look() is False
    now[0] += 3600.0
    assert own.look() is False


@pytest.mark.parametrize("notices", ["beat", "check"])
def test_an_owner_whose_place_was_taken_while_it_was_suspended_notices(tmp_path, quick, monkeypatch, notices):
    reasons: list[str] = []
    if notices == "check":
        monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.0)
    own = mine(tmp_path / "owner", reasons.append)
    own.take()
    (tmp_path / "owner").write_text(dataclasses.replace(Owner.me(), host="elsewhere", pid=7).text())
    if notices == "check":
        own.check()
    else:
        with own:
            deadline = time.monotonic() + 10
            while not reasons and time.monotonic() < deadline:
                time.sleep(0.02)
    assert "process 7 on elsewhere is at work here now" in reasons[0]
    assert json.loads((tmp_path / "owner").read_text())["pid"] == 7


def test_storage_that_is_away_for_a_while_ends_no_run(tmp_path, monkeypatch):
    own = mine(tmp_path / "owner")
    own.take()
    asked = []
    monkeypatch.setattr(ownership.owner_file, "read", lambda path: asked.append(path) or (_ for _ in ()).throw(OSError(503)))
    now = ownership.now_here()
    for later in (10.0, 100.0, 101.0, 200.0):
        monkeypatch.setattr(ownership, "now_here", lambda later=later: now + later)
        own.check()
    assert len(asked) == 2  # not in every step


@pytest.mark.parametrize("ends", [UserError("step 3: the loss is not finite"), Unavailable("run: 503"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails", [OSError(503), PermissionError(13, "Permission denied"), RuntimeError("store closed")])
def test_the_error_that_ends_the_work_is_seen_where_the_file_cannot_be_given_back(tmp_path, monkeypatch, capsys, ends, fails):
    own = mine(tmp_path / "owner")
    own.take()
    with pytest.raises(type(ends)) as raised, own:
        monkeypatch.setattr(ownership.owner_file, "read", lambda path: (_ for _ in ()).throw(fails))
        raise ends
    assert raised.value is ends
    assert f"{tmp_path / 'owner'}: cannot be removed" in capsys.readouterr().err
    monkeypatch.undo()
    mine(tmp_path / "owner").take()  # at once: its owner is known to be gone


def test_a_beat_is_a_change_and_leaves_nothing_behind(tmp_path, quick):
    own = mine(tmp_path / "owner")
    own.take()
    with own:
        before, deadline = (tmp_path / "owner").read_text(), time.monotonic() + 10
        while (tmp_path / "owner").read_text() == before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / "owner").read_text() != before
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_links_works_as_well(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(ownership.os, "link", link)
    own = mine(tmp_path / "owner")
    own.take()
    with own, pytest.raises(UserError, match="holds it"):
        mine(tmp_path / "owner").take()


@pytest.mark.long
def test_in_a_bucket_who_comes_second_is_told_and_the_place_of_a_dead_one_is_taken(bucket, holders, quick):
    path = bucket / "other" / "owner"
    first = hold(path, holders)
    with pytest.raises(UserError, match=f"process {first.pid} on"):
        mine(path).take()
    first.kill()
    first.wait()
    own = mine(path)
    own.take()
    with own:
        assert Owner.parse(path.read_text()).pid == os.getpid()
    assert not path.exists()


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: (path.mkdir(), path.chmod(0o500))])
def test_a_directory_that_cannot_be_used_is_said_in_words(tmp_path, make):
    make(tmp_path / "run")
    if os.geteuid() == 0 and (tmp_path / "run").is_dir():
        pytest.skip("nothing is forbidden to root")
    with pytest.raises(UserError, match="RUN: cannot be written"):
        mine(tmp_path / "run" / "owner").take()


def listing(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and "owner" not in path.name)
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.parametrize("options", [[], ["--fresh"]])
def test_a_second_trainer_ends_with_status_2_before_it_loads_anything(tmp_path, holders, monkeypatch, capsys, options):
    first = hold(tmp_path / "run" / "owner", holders)
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "7" / "data").write_text("precious")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    before = listing(tmp_path / "run")
    experiment = {
        "model": {"path": str(tiny.checkpoint(tmp_path / "model"))},
        "data": {"path": str(tmp_path / "no data")},
        "objective": {"kind": "supervised"},
        "run": {"directory": str(tmp_path / "run")},
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    monkeypatch.setattr(sys, "argv", ["mmrlhf", "train", str(tmp_path / "experiment.yaml"), *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert ended.value.code == 2
    assert len(said) == 1 and f"process {first.pid} on {socket.gethostname()} is training in it" in said[0]
    assert listing(tmp_path / "run") == before


def experiment_in(directory: Path) -> config.Experiment:
    return config.Experiment(
        model=config.Model(path="none"),
        data=config.Data(path="none"),
        objective=config.Supervised(),
        run=config.Run(directory=str(directory)),
    )


@pytest.mark.parametrize("error", [ValueError("gloo: connection closed by peer"), jax.errors.JaxRuntimeError("UNAVAILABLE")])
def test_a_process_that_is_gone_while_the_owner_is_looked_for_is_named_and_the_run_repeated(
    tmp_path, monkeypatch, capsys, error
):
    def collective(act):
        raise error

    def leave(status):
        raise InterruptedError(status)

    monkeypatch.setattr(loop, "check_launch", lambda experiment, _: (experiment, None))
    monkeypatch.setattr(loop, "check_stored", lambda *_: None)
    monkeypatch.setattr(peers.Peers, "lost", lambda self: "process 1 on elsewhere is gone")
    monkeypatch.setattr(owner, "first_decides", collective)
    monkeypatch.setattr(peers.os, "_exit", leave)
    with pytest.raises(InterruptedError) as left:
        loop.train(experiment_in(tmp_path), config.Launch())
    assert left.value.args == (PEER_LOST,) and "process 1 on elsewhere is gone" in capsys.readouterr().err


@pytest.mark.parametrize("where", ELSEWHERE)
def test_a_signal_while_an_owner_elsewhere_is_watched_ends_the_trainer_as_one_that_is_repeated(tmp_path, monkeypatch, where):
    left = dataclasses.replace(Owner.me(), **ELSEWHERE[where]).text()
    (tmp_path / "owner").write_text(left)
    monkeypatch.setattr(loop, "check_launch", lambda experiment, _: (experiment, None))
    monkeypatch.setattr(owner.time, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        loop.train(experiment_in(tmp_path), config.Launch())
    assert ended.value.code == SIGNALLED and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert (tmp_path / "owner").read_text() == left and os.listdir(tmp_path) == ["owner"]


def test_a_second_pass_that_writes_the_same_file_is_refused(tmp_path, holders):
    """Its pieces are the first one's."""
    examples = open_examples(groups.write(tmp_path / "source", 3), video_frames=3)
    said = []

    def work(indices):
        with pytest.raises(UserError, match=rf"out: process {os.getpid()} on .* is writing it; wait for it, or end it "):
            run_job(examples, tmp_path / "out", "job", lambda indices: said.append("written twice") or [])
        return ((index, {"id": index}) for index in indices)

    run_job(examples, tmp_path / "out", "job", work)
    assert len((tmp_path / "out").read_text().splitlines()) == 3 and not said
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


@pytest.mark.parametrize("made_by", ["a pass with other settings", "another program"])
def test_what_another_one_writes_to_the_same_file_is_not_overwritten(tmp_path, made_by):
    """A pass with other settings is held back before it computes anything; whatever else is found costs no finished piece."""
    examples = open_examples(groups.write(tmp_path / "source", 3), video_frames=3)

    def lines(text):
        def work(indices):
            for index in indices:
                record = examples.records[index]
                yield index, {"id": record.id, "text": text, "responses": [{}] * len(record.responses)}

        return work

    def slower(indices):
        if made_by == "another program":
            (tmp_path / "out").write_text("faster")
        else:
            with pytest.raises(UserError, match="is writing it; wait for it"):
                run_job(examples, tmp_path / "out", "other settings", lines("faster"))
        return lines("slower")(indices)

    if made_by != "another program":
        run_job(examples, tmp_path / "out", "settings", slower)
        assert [json.loads(line)["text"] for line in (tmp_path / "out").read_text().splitlines()] == ["slower"] * 3
        return
    with pytest.raises(UserError, match=r"out: already exists"):
        run_job(examples, tmp_path / "out", "settings", slower)
    assert (tmp_path / "out").read_text() == "faster"
    (kept,) = tmp_path.glob(".out.*.parts/*.jsonl")
    assert "slower" in kept.read_text()


@pytest.mark.parametrize("left", [[], ["data"]])
def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path, left):
    own = mine(tmp_path / "run" / "owner")
    own.take()
    with own:
        for name in left:
            (tmp_path / "run" / name).write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == (["run", *left] if left else [])
