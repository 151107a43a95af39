"""A running server of a tiny reward model, and of a policy, on a port of this machine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import httpx
import jax
import pytest

from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.lanes import serving_lane
from mmrlhf_jax.inference.scheduler import Scheduler
from mmrlhf_jax.sharding.mesh import make_mesh
from tests import ranked, tiny

pytest.importorskip("starlette")

from mmrlhf_jax.serving import model, server
from mmrlhf_jax.serving.limits import Limits
from mmrlhf_jax.serving.metrics import Metrics
from mmrlhf_jax.serving.model import ServedModel
from mmrlhf_jax.serving.service import Service
from mmrlhf_jax.serving.worker import Worker

LIMITS = Limits(body=2**20, media=4, frames=8, pixels=400_000, decoded=2**21, waiting=64, seconds=300.0)


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    """A reward model; untied, because a tied model of random weights says the same token for ever."""
    raw = tiny.config(text={"tie_word_embeddings": False})
    return tiny.checkpoint(tmp_path_factory.mktemp("judge"), raw, reward_head=True)


@pytest.fixture(scope="session")
def judge(directory) -> Engine:
    """The model that is served, and by which tests generate beside the server."""
    return Engine.load(str(directory), batch=4, mesh=make_mesh({}, jax.devices()[:1]))


@pytest.fixture(scope="session")
def beside(directory) -> Engine:
    """The same model, for passes over rows."""
    return Engine.load(str(directory), batch=4, mesh=make_mesh({}, jax.devices()[:1]))


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    sizes = [[(40, 30)], [], [(30, 30), (50, 20)]]
    return open_examples(ranked.write(tmp_path_factory.mktemp("data"), [(1, 2), (1, 2, 2), (2, 1)], sizes))


@pytest.fixture(scope="session", autouse=True)
def short_critiques():
    """The views have no field for the length of critiques."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "USUAL_CRITIQUE", 8)
        yield


def make_service(engine: Engine, records=None, key: str | None = None, limits: Limits = LIMITS) -> Service:
    lane = serving_lane(1536, 320, 4, engine.fits)
    scheduler = Scheduler(engine.programs(lane), engine.model.apart(), streaming=True)
    metrics = Metrics()
    places = {} if records is None else {record.id: place for place, record in enumerate(records.records)}
    find = None if records is None else lambda name: records[places[name]] if name in places else None
    served = ServedModel(engine, "tiny", lane.trunk, lane.branch)
    return Service(served, Worker([scheduler], limits.waiting), limits, metrics, key, find)


class Running(NamedTuple):
    """A server in a thread of this process."""

    address: str
    server: server.Server
    thread: threading.Thread


@contextlib.contextmanager
def started(service: Service, grace: float = 5.0, warm: Callable[[], Iterable] | None = None) -> Iterator[Running]:
    """A server that takes requests; with `warm`, one that may still be at that."""
    bound = server.bind("127.0.0.1", 0)
    address = f"http://127.0.0.1:{bound.getsockname()[1]}"
    served = server.Server(server.make_config(service), service, grace=grace)
    service.worker.start(warm or tuple)
    thread = threading.Thread(target=served.run, args=([bound],), daemon=True)
    thread.start()
    soon(lambda: answers(address, "/ready" if warm is None else "/health"))
    try:
        yield Running(address, served, thread)
    finally:
        served.should_exit = True
        thread.join(10)
        service.worker.stop()


def answers(address: str, path: str) -> bool:
    try:
        return httpx.get(f"{address}{path}").status_code == 200
    except httpx.HTTPError:
        return False


def soon(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something holds; a failure if it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not hold in time"
        time.sleep(0.02)


@contextlib.contextmanager
def running(service: Service) -> Iterator[str]:
    """The address of a server."""
    with started(service) as found:
        yield found.address


@pytest.fixture(scope="session")
def service(judge, records) -> Service:
    return make_service(judge, records)


@pytest.fixture(scope="session")
def address(service) -> Iterator[str]:
    with running(service) as found:
        yield found
