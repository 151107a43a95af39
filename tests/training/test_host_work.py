"""What the host does while a step runs: it reads only what is finished, and gives the devices nothing else to do."""

from __future__ import annotations

import logging

import jax
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.training import loop
from mmrlhf_jax.training import run as run_module
from mmrlhf_jax.training.checkpoint import Checkpoints
from mmrlhf_jax.training.metrics import MetricsLog, read_metrics
from mmrlhf_jax.training.profiler import ProfilerWindow
from mmrlhf_jax.training.stop import StopSignal
from tests import ranked, tiny
from tests.training.pretended import PretendedStep

RANKS = [(1, 2), (1, 2, 3), (1, 1, 2), (2, 1), (1, 2, 2), (1, 2), (2, 1, 3)]
IMAGES = [[(30, 30)], [(75, 40)], [(33, 90)], [], [(30, 30), (50, 20)], [(120, 31)], []]
LAUNCH = config.Launch(mesh=config.Mesh(data=1, fsdp=1))
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("experiment")
    return config.Experiment(
        model=config.Model(path=str(tiny.checkpoint(root / "model")), dtype="float32", remat="none"),
        data=config.Data(path=str(ranked.write(root / "data", RANKS, IMAGES)), learn="best"),
        objective=config.Supervised(),
        batch=config.Batch(rows=1, slots=512, logprob_chunk=64),
        run=config.Run(directory="each test has its own", seed=3, steps=6, checkpoint_every=4),
    )


def train(experiment, directory, monkeypatch, batch=None, **run):
    """The events of a run whose steps are pretended, and the lines of its metrics."""
    step = PretendedStep()
    monkeypatch.setattr(run_module, "make_train_step", lambda *_, **__: step)
    changed = {"run": experiment.run.model_copy(update={"directory": str(directory), **run})}
    changed |= {} if batch is None else {"batch": experiment.batch.model_copy(update=batch)}
    loop.train(experiment.model_copy(update=changed), LAUNCH)
    return step.events, read_metrics(directory)


@pytest.mark.parametrize("run", [{}, {"log_every": 3}, {"profile_at": 1, "profile_steps": 2}])
def test_nothing_of_a_step_is_read_before_the_next_one_is_started(experiment, tmp_path, monkeypatch, run):
    """Except behind the last one, and where a checkpoint (of steps 4 and 6) needs the state itself."""
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    events, rows = train(experiment, tmp_path, monkeypatch, **run)
    read = {step: events.index(("read", step)) for step in range(1, 7)}
    for step in (1, 2, 3, 5):
        assert read[step] > events.index(("started", step + 1)), events
    assert [row["step"] for row in rows][-1] == 6


@pytest.mark.long
def test_behind_a_step_the_host_puts_no_computation_on_the_devices(experiment, tmp_path, monkeypatch, caplog):
    """With all compiled programs forgotten, whatever is computed is compiled first. The steps compute nothing themselves."""
    steps_begin = StopSignal.steps_begin

    def begin(stop):
        steps_begin(stop)
        caplog.clear()

    monkeypatch.setattr(StopSignal, "steps_begin", begin)
    jax.clear_caches()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        train(experiment, tmp_path, monkeypatch)
    compiled = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]
    assert not compiled


@pytest.mark.parametrize("rows", [1, 2, 4, 5])
@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.long
def test_after_whole_epochs_the_log_says_so_however_full_the_last_batch_is(experiment, tmp_path, monkeypatch, rows, epochs):
    batch = {"rows": rows, "slots": 256}
    _, lines = train(experiment, tmp_path, monkeypatch, batch, steps=None, epochs=epochs, checkpoint_every=100)
    said = [line["epoch"] for line in lines]
    assert said[-1] == epochs
    assert said == sorted(said) and len(set(said)) == len(said)


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_the_error_that_ends_a_run_is_the_one_that_is_seen_whatever_the_closes_do(experiment, tmp_path, monkeypatch, kind):
    closed = []

    def failing(name):
        def close(self):
            closed.append(name)
            raise kind(f"{name} cannot be closed")

        return close

    for owner, name in ((Checkpoints, "checkpoints"), (MetricsLog, "logs"), (ProfilerWindow, "profile")):
        monkeypatch.setattr(owner, "close", failing(name))
    monkeypatch.setattr(run_module, "write_run_page", lambda *_, **__: closed.append("page"))
    monkeypatch.setattr(run_module, "record", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("the first error")))
    with pytest.raises(RuntimeError, match="the first error") as raised:
        train(experiment, tmp_path, monkeypatch)
    assert closed == ["profile", "logs", "page", "checkpoints"]
    notes = raised.value.__notes__
    assert len(notes) == 3
    assert all(f"{name} cannot be closed" in note for name, note in zip(("profile", "logs", "checkpoints"), notes, strict=True))
