"""Processes that meet before JAX starts: all go on together, or each of them says who is missing or came twice."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest
import yaml

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.exits import ABSENT, RESTART
from mmrlhf_jax.sharding import meeting
from mmrlhf_jax.sharding.meeting import Absent, meet
from tests.sharding import loopback


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(meeting, "RETRY_SECONDS", 0.02)


@pytest.fixture
def port():
    return loopback.free_port()


def gather(port: int, guests: list[tuple[int, int]], timeout: float = 20.0, delays: dict[int, float] | None = None):
    """What becomes of (process, count) each, in a thread of its own: None, or the error."""
    found: list = ["still waiting"] * len(guests)

    def come(place: int, process: int, count: int):
        time.sleep((delays or {}).get(process, 0.0))
        try:
            found[place] = meet(f"127.0.0.1:{port}", count, process, timeout)
        except UserError as error:
            found[place] = error

    threads = [threading.Thread(target=come, args=(i, *guest), daemon=True) for i, guest in enumerate(guests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return found


@pytest.mark.parametrize("late", [0, 1, 2])
def test_all_go_on_when_the_last_has_come_whichever_it_is_and_the_port_is_free(port, late):
    started = time.monotonic()
    assert gather(port, [(i, 3) for i in range(3)], delays={late: 0.4}) == [None] * 3
    assert time.monotonic() - started >= 0.4
    with socket.create_server(("", port)):  # as JAX does next
        pass


def test_many_processes_meet(port):
    assert gather(port, [(i, 40) for i in range(40)]) == [None] * 40


@pytest.mark.parametrize(("count", "missing"), [(3, [2]), (5, [1, 3])])
def test_who_does_not_come_is_named_to_all_who_did(port, count, missing):
    there = [i for i in range(count) if i not in missing]
    found = gather(port, [(i, count) for i in there], timeout=0.6)
    expected = f"of {count} processes {', '.join(map(str, missing))} did not come within 1 s (there: 0 on "
    for error in found:
        assert isinstance(error, Absent) and error.status == ABSENT
        assert str(error).startswith(expected) and "\n" not in str(error)


def test_where_the_first_process_does_not_come_it_is_named(port):
    for error in gather(port, [(1, 3), (2, 3)], timeout=0.3):
        assert isinstance(error, Absent)
        assert f"process 0, whose address is 127.0.0.1:{port}, was not reached within 0 s" in str(error)
        assert "Connection refused" in str(error)


@pytest.mark.parametrize("number", [1, 2])
def test_two_processes_of_one_number_are_named_to_all(port, number):
    found = gather(port, [(0, 4), (number, 4), (number, 4)], delays={0: 0.2})
    assert all(type(error) is UserError for error in found), found
    assert all(f"two processes have the number {number} (on " in str(error) for error in found)


def test_processes_that_were_told_of_different_counts_are_named_to_all(port):
    found = gather(port, [(0, 3), (1, 2)])
    assert all(type(error) is UserError for error in found)
    assert all("was told of 2 processes, process 0 on" in str(error) and "of 3; start all" in str(error) for error in found)


def test_one_that_went_away_while_it_waited_is_missing_and_may_come_again(port):
    first = threading.Thread(target=meet, args=(f"127.0.0.1:{port}", 3, 0, 20.0), daemon=True)
    first.start()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            gone = socket.create_connection(("127.0.0.1", port))
            break
        except OSError:
            time.sleep(0.02)
    gone.sendall(b'{"process": 1, "count": 3, "host": "old", "pid": 1}\n')
    gone.close()
    assert gather(port, [(1, 3), (2, 3)], delays={1: 0.3}) == [None, None]
    first.join(timeout=20)
    assert not first.is_alive()


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff\n", b"[]\n", b'{"process": "1"}\n', b"x" * 9000, b""])
def test_who_knocks_and_is_none_of_ours_is_not_counted(port, noise):
    def knock():
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(noise)
                return
            except OSError:
                time.sleep(0.02)

    stranger = threading.Thread(target=knock)
    stranger.start()
    assert gather(port, [(0, 2), (1, 2)], delays={1: 0.3}) == [None, None]
    stranger.join()


def test_a_port_that_another_run_holds_is_said(port):
    said = f"port {port} of process 0 on .* cannot be used .*another run may be here"
    with socket.create_server(("", port)), pytest.raises(UserError, match=said):
        meet(f"127.0.0.1:{port}", 2, 0, 1.0)


@pytest.mark.parametrize(
    ("address", "process"), [("host", 0), ("host:", 0), (":1", 0), ("host:x", 1), ("host:1", 2), ("host:1", -1)]
)
def test_what_is_no_address_or_number_is_refused(address, process):
    with pytest.raises(UserError):
        meet(address, 2, process, 1.0)


@pytest.mark.long
def test_the_command_ends_with_one_line_and_a_status_that_is_not_repeated_for_ever(tmp_path, port):
    """Real processes: two of three come."""
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(loopback.write_experiment(tmp_path, "supervised", directory="x")))
    launch = {"mesh": {"fsdp": 3}, "distributed": {"initialization_timeout": 5}}
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(launch))
    common = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(loopback.ROOT)}
    common |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "3"}
    command = [sys.executable, "-c", loopback.COMMAND, "train", str(tmp_path / "experiment.yaml")]
    command += ["--launch", str(tmp_path / "launch.yaml")]
    started = [
        subprocess.Popen(command, env=os.environ | common | {"JAX_PROCESS_ID": number}, stderr=subprocess.PIPE, text=True)
        for number in "02"
    ]
    for process in started:
        _, said = process.communicate(timeout=120)
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        assert process.returncode == ABSENT and ABSENT not in RESTART, said
        assert len(lines) == 1 and "of 3 processes 1 did not come within 5 s (there: 0 on" in lines[0]
        assert "Traceback" not in said and "Check failure" not in said
