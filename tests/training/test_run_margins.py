"""A run of mode `margin` says before its first step what β(δ) does to its pairs, and its page shows it."""

from __future__ import annotations

import json
import xml.etree.ElementTree

import numpy as np
import pytest
from etils import epath

from mmrlhf_jax import config
from mmrlhf_jax.data.margin_summary import summarise
from mmrlhf_jax.dynamic_scaling import Scale
from mmrlhf_jax.training import loop
from mmrlhf_jax.training import run as run_module
from mmrlhf_jax.training.goodput import Goodput
from mmrlhf_jax.training.page import MARGINS, PAGE, write_run_page
from mmrlhf_jax.training.planned import plan_run, say_margins
from tests import tiny
from tests.training.pretended import PretendedStep

LAUNCH = config.Launch(mesh=config.Mesh(data=1, fsdp=1))
UNBOUNDED = [15.0, 14.0, -13.0, 17.0, 12.0, 18.0, 16.0, 11.0, -15.0, 13.0, 15.5]
CALIBRATED = [1.4, 0.3, -0.8, 2.5, 1.1, 3.0, 1.9, 0.7, -0.2, 1.6, 1.3]
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture
def experiment(model, tmp_path):
    """An experiment on pairs of these margins."""

    def made(margins, **scaling):
        rows = [
            {
                "id": f"{i}",
                "prompt": f"{i}?",
                "responses": [{"text": "a", "rank": 1, "reward": margin}, {"text": "b", "rank": 2, "reward": 0.0}],
            }
            for i, margin in enumerate(margins)
        ]
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return config.Experiment(
            model=config.Model(path=model, dtype="float32", remat="none"),
            data=config.Data(path=str(tmp_path / "data.jsonl")),
            objective=config.Preference(scaling=config.Scaling(**scaling), reference="live"),
            batch=config.Batch(rows=1, slots=512, logprob_chunk=64),
            run=config.Run(directory=str(tmp_path / "run"), steps=2),
        )

    return made


GATE = "warning: β is a gate, not a scale: for 100.0 % of the pairs"


@pytest.mark.parametrize(
    ("margins", "scaling", "said", "warned"),
    [
        (UNBOUNDED, {}, "β of 18.2 % of 11 pairs is within 2 % of the rise from the floor 0.1, and of 81.8 % from", True),
        (UNBOUNDED, {"k": "median"}, "β of 18.2 % of 11 pairs is within", False),
        (UNBOUNDED, {"negative_margins": "drop"}, "β of 0.0 % of 9 pairs is within", True),
        (CALIBRATED, {}, "β of 18.2 % of 11 pairs is within 2 % of the rise from the floor 0.1, and of 0.0 % from", False),
        (UNBOUNDED, {"w": 0.0}, "β of every pair is 0.1, because w is 0", False),
        (UNBOUNDED, {"k": 0.0}, "β of every pair is 0.1, because k is 0", False),
        (UNBOUNDED, {"mode": "fixed"}, None, False),
        (UNBOUNDED, {"mode": "batch_implicit"}, None, False),
    ],
)
def test_the_shares_at_both_ends_are_said_and_a_gate_is_warned_of(experiment, capsys, margins, scaling, said, warned):
    plan = plan_run(experiment(margins, **scaling))
    capsys.readouterr()
    say_margins(plan.margins)
    heard = capsys.readouterr().err
    assert (GATE in heard) == warned and (not heard if said is None else heard.startswith(said))
    assert "set objective.scaling.k: median" in heard or not warned


def test_margins_that_overflow_are_counted(capsys):
    say_margins(summarise(np.asarray([np.inf, -np.inf]), Scale(0.1, 0.5, 0.5)))
    assert capsys.readouterr().err == "margins: left out: 2 margins are not finite\n"


def test_a_runs_page_shows_its_margins_and_one_without_them_is_still_made(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_module, "make_train_step", lambda *_, **__: PretendedStep())
    made = experiment(UNBOUNDED)
    loop.train(made, LAUNCH)
    assert GATE in capsys.readouterr().err
    directory = epath.Path(made.run.directory)
    found = json.loads((directory / MARGINS).read_text())
    assert found == summarise(np.asarray(UNBOUNDED, np.float32), Scale(0.1, 0.5, 0.5))
    page = (directory / PAGE).read_text()
    xml.etree.ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    section = page.split('<section id="margins">')[1].split("</section>")[0]
    assert "β is a gate, not a scale" in section and "81.8 %" in section and "β(δ) over the margins" in section
    assert section.count('class="bar c0"') == 40 + 1 and section.count('class="dot c1"') == len(found["reliability"])
    figures = dict(done=2, steps=2, goodput=Goodput().figures())
    (directory / MARGINS).unlink()  # as in a run of an earlier version
    write_run_page(directory, made, **figures)
    page = (directory / PAGE).read_text()
    assert 'id="margins"' not in page and "2 of 2 steps are done" in page
    (directory / MARGINS).write_text(json.dumps(found))
    loop.train(experiment(CALIBRATED, mode="fixed"), LAUNCH, fresh=True)
    assert not (directory / MARGINS).exists()
    assert "β of" not in capsys.readouterr().err
