"""Several hosts answer in one directory, and refuse what they do not have in common."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.jobs import Share
from mmrlhf_jax.suite import answering, hosts, results
from mmrlhf_jax.suite.benchmarks import Wanted, evaluate_against
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness.source import Options
from mmrlhf_jax.suite.judges.assignment import JudgeAssignment
from mmrlhf_jax.suite.judges.judge import EndpointJudge
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.model import Model
from tests.serving.fakes import refusal
from tests.suite.support import made_up_own
from tests.suite.support.going_on import JUDGED, PLAIN, policy
from tests.suite.support.judged import judge


class Hosts:
    """Processes of one launch, in threads."""

    def __init__(self, directory, data, server, pool):
        self._directory, self._data, self._server, self._pool = directory, data, server, pool

    def start(self, process: int, count: int = 2, *, judges=None, base=None, tasks=PLAIN, data=None, **options):
        local = {name: Local((self._data if data is None else data)[name]) for name in tasks if data is None or name in data}
        wanted = Wanted(
            [TASKS[name] for name in tasks], Options(**options), local, judges or JudgeAssignment(), Share(process, count)
        )
        return self._pool.submit(evaluate_against, Model(endpoint=self._server.url), base, wanted, self._directory)


@pytest.fixture
def launch(tmp_path, data, monkeypatch):
    for module in (hosts, answering):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    with policy() as server, ThreadPoolExecutor() as pool:
        yield Hosts(tmp_path / "out", data, server, pool)


def test_two_hosts_answer_the_model_and_its_base(launch, tmp_path):
    with policy() as base:
        processes = [launch.start(n, base=Model(endpoint=base.url)) for n in (1, 0)]
        assert [each.result(30) for each in processes] == [None, None]
        assert (len(launch._server.asked), len(base.asked)) == (6, 6)
    for directory in (tmp_path / "out", tmp_path / "out" / "against"):
        assert results.read(directory, "nsfw_text").coverage.scored == 3


def test_what_the_first_host_refuses_nobody_begins(launch, tmp_path):
    with judge(lambda text: refusal(401, "expired")) as dead:
        judges = JudgeAssignment(EndpointJudge(dead.url, "m"))
        other = launch.start(1, tasks=JUDGED)
        with pytest.raises(UserError, match="401"):
            launch.start(0, judges=judges, tasks=JUDGED).result(30)
        with pytest.raises(UserError, match=r"process 0 has ended: .*401"):
            other.result(30)
    assert not launch._server.asked and not (tmp_path / "out" / "answers").exists()


@pytest.mark.long
def test_a_host_with_other_options_is_refused_and_one_that_comes_late_has_nothing_to_do(launch, monkeypatch):
    monkeypatch.setattr(answering, "LATE_SECONDS", 0.5)
    monkeypatch.setattr(hosts, "LATE_SECONDS", 1.0)
    first, other = launch.start(0), launch.start(1, limit=1)
    with pytest.raises(UserError, match="process 0 was started with limit None, process 1 with 1"):
        other.result(30)
    assert first.result(30) is None  # it has answered all
    asked = len(launch._server.asked)
    assert launch.start(1).result(30) is None and len(launch._server.asked) == asked == 6


@pytest.mark.parametrize("has", [True, False])
def test_a_host_with_other_documents_is_refused(launch, tmp_path, data, monkeypatch, has):
    monkeypatch.setattr(answering, "LATE_SECONDS", 0.5)
    changed = made_up_own.write(tmp_path / "changed", "nsfw_text", "jsonl")
    changed.write_text(changed.read_text().replace("cats", "rats"))
    other = {"nsfw_image": data["nsfw_image"]} | ({"nsfw_text": str(changed)} if has else {})
    first, second = launch.start(0), launch.start(1, data=other)
    with pytest.raises(
        UserError, match=r"started with documents of nsfw_text 'a file of .*', process 1 with '(a file|the hub)"
    ):
        second.result(30)
    assert first.result(30) is None


def test_single_and_several_hosts_do_not_work_in_one_directory_at_once(launch, monkeypatch):
    held = threading.Event()
    launch._server.reply = lambda body, whole=launch._server.reply: (held.wait(20), whole(body))[1]
    first = launch.start(0, count=1)
    while not launch._server.asked:
        pass
    with pytest.raises(UserError, match="evaluates there"):
        launch.start(0, count=2).result(30)
    held.set()
    assert first.result(30) is None
