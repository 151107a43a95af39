"""A running server of a tiny reward model, and of a policy, on a port of this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

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

from mmrlhf_jax.serving import server
from mmrlhf_jax.serving.limits import Limits
from mmrlhf_jax.serving.metrics import Metrics
from mmrlhf_jax.serving.model import ServedModel
from mmrlhf_jax.serving.service import Service
from mmrlhf_jax.serving.worker import Worker

LIMITS = Limits(body=2**20, media=4, frames=8, pixels=400_000, decoded=2**21, waiting=64, seconds=60.0)


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


def make_service(engine: Engine, records=None, key: str | None = None, limits: Limits = LIMITS) -> Service:
    lane = serving_lane(1536, 320, 4, engine.fits)
    scheduler = Scheduler(engine.programs(lane), engine.model.apart(), streaming=True)
    metrics = Metrics()
    places = {} if records is None else {record.id: place for place, record in enumerate(records.records)}
    find = None if records is None else lambda name: records[places[name]] if name in places else None
    model = ServedModel(engine, "tiny", lane.trunk, lane.branch)
    return Service(model, Worker([scheduler], limits.waiting, metrics.look), limits, metrics, key, find)


@contextlib.contextmanager
def running(service: Service) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = server.Server(server.make_config(service, "127.0.0.1", port), service, grace=5.0)
    served.install_signal_handlers = lambda: None
    service.worker.start()
    thread = threading.Thread(target=served.run, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/ready").status_code == 200:
                break
        time.sleep(0.05)
    try:
        yield address
    finally:
        served.should_exit = True
        thread.join(10)
        service.worker.stop()


@pytest.fixture(scope="session")
def service(judge, records) -> Service:
    return make_service(judge, records)


@pytest.fixture(scope="session")
def address(service) -> Iterator[str]:
    with running(service) as found:
        yield found
