"""A pass over data writes every line once, whatever is killed, on one host or on several."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import jobs, journal
from mmrlhf_jax.inference.jobs import Share, run_job
from tests import ranked


@pytest.fixture
def source(tmp_path):
    return ranked.write(tmp_path / "data", [(1, 2), (1, 2, 3), (2, 1), (1, 2)], [[(40, 30)], [], [(30, 30)], []])


@pytest.fixture(autouse=True)
def each_line_a_part(monkeypatch):
    monkeypatch.setattr(journal, "PART_SECONDS", 0.0)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.05)


def line(examples, index: int) -> dict:
    record = examples.records[index]
    return {"id": record.id, "responses": [{"reward": index + place} for place in range(len(record.responses))]}


class Work:
    """Lines of records; remembers for which it was asked, and is cut off behind `cut` of them."""

    def __init__(self, examples, cut: int = 1000, wrong: float | None = None):
        self.examples, self.cut, self.wrong, self.asked = examples, cut, wrong, []

    def __call__(self, indices):
        for index in indices:
            if len(self.asked) == self.cut:
                raise KeyboardInterrupt
            self.asked.append(index)
            made = line(self.examples, index)
            if self.wrong is not None and index == 2:
                made["responses"][1]["reward"] = self.wrong
            yield index, made


def begun(source, out):
    """The parts of a pass that was cut off behind its second record."""
    examples = open_examples(source)
    with pytest.raises(KeyboardInterrupt):
        run_job(examples, out, "job", Work(examples, cut=2))
    (folder,) = out.parent.glob(f".{out.name}.*.parts")
    return sorted(folder.glob("*.jsonl"))


def finish(source, out, job: str = "job") -> Work:
    examples = open_examples(source)
    work = Work(examples)
    run_job(examples, out, job, work)
    written = [json.loads(text) for text in out.read_text().splitlines()]
    assert written == [line(examples, index) for index in range(len(examples))]
    assert not list(out.parent.glob(f".{out.name}*"))
    return work


def test_a_pass_goes_on_from_finished_lines_of_the_same_job_and_data(source, tmp_path):
    out = tmp_path / "out" / "lines.jsonl"
    assert len(begun(source, out)) == 2
    assert finish(source, out).asked == [2, 3]


@pytest.mark.parametrize("damage", ["torn", "empty", "other", "fewer responses", "not json", "no record"])
def test_a_kept_line_that_is_not_whole_or_of_another_record_is_made_anew(source, tmp_path, capsys, damage):
    out = tmp_path / "out" / "lines.jsonl"
    part = begun(source, out)[1]
    content = part.read_bytes()
    row = json.loads(content)
    part.write_bytes(
        {
            "torn": content[:-9],
            "empty": b"",
            "other": json.dumps(row | {"index": 3}).encode() + b"\n",
            "fewer responses": json.dumps(row | {"line": row["line"] | {"responses": []}}).encode() + b"\n",
            "not json": content.replace(b'"reward": 1', b'"reward": NaN'),
            "no record": json.dumps(row | {"index": 99}).encode() + b"\n",
        }[damage]
    )
    assert finish(source, out).asked == [1, 2, 3]
    said = capsys.readouterr().err
    assert ("1 line left out (not whole, or of other records)" in said) == (damage not in ("torn", "empty"))


@pytest.mark.parametrize("what", ["job", "data", "media", "version"])
def test_lines_of_another_job_or_of_other_content_are_not_used(source, tmp_path, monkeypatch, what):
    out = tmp_path / "out" / "lines.jsonl"
    begun(source, out)
    if what == "data":
        source.write_text(source.read_text().replace("group-3", "group-33"))
    if what == "media":
        (source.parent / "0_0.png").write_bytes(ranked.picture((40, 30), 77))
    if what == "version":
        monkeypatch.setattr(jobs, "VERSION", jobs.VERSION + 1)
    examples = open_examples(source)
    work = Work(examples)
    run_job(examples, out, "another" if what == "job" else "job", work)
    assert work.asked == [0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_number_that_is_not_finite_ends_the_pass_and_leaves_no_file(source, tmp_path, wrong):
    out = tmp_path / "out" / "lines.jsonl"
    examples = open_examples(source)
    with pytest.raises(UserError, match=r"record 'group-2': line\.responses\.1\.reward is (nan|inf)"):
        run_job(examples, out, "job", Work(examples, wrong=float(wrong)))
    assert not out.exists()
    assert finish(source, out).asked == [2, 3]


def test_lines_may_be_finished_in_any_order(source, tmp_path):
    examples = open_examples(source)
    run_job(examples, tmp_path / "out", "job", lambda indices: Work(examples)(reversed(indices)))
    assert [json.loads(text)["id"] for text in (tmp_path / "out").read_text().splitlines()] == [r.id for r in examples.records]


# Several processes ---------------------------------------------------------------------------------------------------


def start(source, out, process: int, count: int, seconds: float = 0.02) -> subprocess.Popen:
    arguments = [str(source), str(out), str(process), str(count), str(seconds)]
    return subprocess.Popen([sys.executable, "-m", "tests.inference.share", *arguments], stderr=subprocess.PIPE, text=True)


def many(tmp_path, count: int):
    return ranked.write(tmp_path / "data", [(1, 2)] * count, [[]] * count)


def check_whole(source, out) -> None:
    rows = [json.loads(text) for text in out.read_text().splitlines()]
    records = open_examples(source).records
    assert [row["id"] for row in rows] == [record.id for record in records]
    assert [[each["text"] for each in row["responses"]] for row in rows] == [[r.text for r in x.responses] for x in records]
    left = [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")]
    assert left == [f".{out.name}.finished"]


def ended(process: subprocess.Popen) -> str:
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said


def test_processes_share_the_records_and_one_writes_them(tmp_path):
    source, out = many(tmp_path, 30), tmp_path / "out"
    said = [ended(each) for each in [start(source, out, process, 3) for process in range(3)]]
    check_whole(source, out)
    assert not any("gives no sign of life" in each for each in said)


def test_a_process_that_reads_slowly_ends_well_when_another_has_written_the_output(tmp_path, monkeypatch):
    """The folder of lines is removed while it reads them."""
    source, out = many(tmp_path, 60), tmp_path / "out"
    read = journal.read_bytes
    monkeypatch.setattr(journal, "read_bytes", lambda path: (time.sleep(0.02), read(path))[1])
    examples, ended_well = open_examples(source), []

    def one(process: int) -> None:
        def work(indices):
            for index in indices:
                time.sleep(0.03 * process)
                yield index, line(examples, index)

        run_job(examples, out, "job", work, share=Share(process, 2))
        ended_well.append(process)

    threads = [threading.Thread(target=one, args=(process,)) for process in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert sorted(ended_well) == [0, 1]
    assert [json.loads(text) for text in out.read_text().splitlines()] == [line(examples, index) for index in range(60)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == [".out.finished"]


@pytest.mark.parametrize("how", ["another job on one host", "by hand"])
def test_an_output_that_several_hosts_wrote_is_known_by_its_content(source, tmp_path, monkeypatch, how):
    monkeypatch.setattr(jobs, "LATE_SECONDS", 0.0)
    out, examples = tmp_path / "out.jsonl", open_examples(source)
    run_job(examples, out, "job", Work(examples), share=Share(0, 2))
    again = Work(examples)
    run_job(examples, out, "job", again, share=Share(0, 2))
    assert again.asked == []  # a process that comes late
    out.unlink()
    if how == "by hand":
        out.write_text("mine\n")
    else:
        run_job(examples, out, "another", lambda indices: ((i, line(examples, i) | {"other": True}) for i in indices))
    with pytest.raises(UserError, match="already exists"):
        run_job(examples, out, "job", again, share=Share(0, 2))


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.long
def test_the_records_of_a_process_that_dies_are_computed_by_another(tmp_path, killed):
    """Also those of the one that has reserved the output."""
    source, out = many(tmp_path, 40), tmp_path / "out"
    processes = [start(source, out, process, 2, seconds=0.1) for process in range(2)]
    while not list(tmp_path.glob(f".out.*.parts/{killed:04d}-*.jsonl")):
        time.sleep(0.02)
    processes[killed].send_signal(signal.SIGKILL)
    processes[killed].wait()
    assert f"process {killed} gives no sign of life" in ended(processes[1 - killed])
    check_whole(source, out)


@pytest.mark.long
def test_four_processes_that_are_killed_at_random_write_each_record_once(tmp_path):
    """A killed process is started again, as launchers do, on as many hosts as before."""
    source, out, rng = many(tmp_path, 200), tmp_path / "out", random.Random(0)
    processes = {process: start(source, out, process, 4) for process in range(4)}
    for _ in range(8):
        time.sleep(rng.uniform(0.2, 0.6))
        process = rng.randrange(4)
        if processes[process].poll() is None:
            processes[process].send_signal(signal.SIGKILL)
            processes[process].wait()
            processes[process] = start(source, out, process, 4)
    for each in processes.values():
        ended(each)
    check_whole(source, out)


@pytest.mark.long
def test_a_pass_of_three_processes_is_finished_by_two(tmp_path):
    source, out = many(tmp_path, 60), tmp_path / "out"
    processes = [start(source, out, process, 3, seconds=0.1) for process in range(3)]
    while len(list(tmp_path.glob(".out.*.parts/*.jsonl"))) < 9:
        time.sleep(0.02)
    for each in processes:
        each.send_signal(signal.SIGKILL)
        each.wait()
    said = [ended(each) for each in [start(source, out, process, 2) for process in range(2)]]
    check_whole(source, out)
    assert all("of 60 records were done before" in each for each in said)


@pytest.mark.long
def test_a_process_that_comes_when_all_is_done_has_nothing_to_do(tmp_path):
    """But the output of something else is not taken for this job's."""
    source, out = many(tmp_path, 6), tmp_path / "out"
    for each in [start(source, out, process, 2) for process in range(2)]:
        ended(each)
    for process in range(2):
        assert "have written it" in ended(start(source, out, process, 2))
    (tmp_path / ".out.finished").write_text("of another job")
    late = start(source, out, 1, 2)
    assert "already exists" in late.communicate(timeout=60)[1] and late.returncode


def test_shares_are_even_and_cover_all():
    shares = [Share(process, 3) for process in range(3)]
    assert sorted(index for share in shares for index in range(10) if share.of(index) == share.process) == list(range(10))
