"""What can be known early is refused before the model is loaded, in words."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
from etils import epath

from mmrlhf_jax import config, faults
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.training import base, loop, planned, preflight
from mmrlhf_jax.training import run as run_module
from mmrlhf_jax.training.directory import CONFIG_FILE
from mmrlhf_jax.training.identity import CONFIGURATION, DATA, ENCODER, EXAMPLES, MODEL, PLAN, STEPS, difference, known_identity
from mmrlhf_jax.training.metrics import MetricsLog
from tests import ranked, tiny
from tests.training.pretended import PretendedStep

LAUNCH = config.Launch(mesh=config.Mesh(data=1, fsdp=1))
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Of a run that has stopped behind its second step."""
    root = tmp_path_factory.mktemp("experiment")
    made = config.Experiment(
        model=config.Model(path=str(tiny.checkpoint(root / "model")), dtype="float32", remat="none"),
        data=config.Data(path=str(ranked.write(root / "data", [(1, 2), (1, 2, 3), (2, 1)], [[(30, 30)], [], []]))),
        objective=config.Supervised(),
        batch=config.Batch(rows=1, slots=512, logprob_chunk=64),
        run=config.Run(directory=str(root / "run"), seed=3, steps=2),
    )
    with pytest.MonkeyPatch.context() as patched:
        step = PretendedStep()
        patched.setattr(run_module, "make_train_step", lambda *_, **__: step)
        loop.train(made, LAUNCH)
    return made


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(base, "load_base", lambda *_: pytest.fail("the model is loaded"))


def changed(experiment, section: str, **values):
    return experiment.model_copy(update={section: getattr(experiment, section).model_copy(update=values)})


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("data", {"pairs": "extreme"}, r"data\.pairs all, this run has extreme"),
        ("data", {"weighting": "group"}, r"data\.weighting pair, this run has group"),
        ("data", {"learn": "best"}, r"data\.learn all, this run has best"),
        ("batch", {"slots": 640}, r"batch\.slots 512, this run has 640"),
        ("batch", {"rows": 2}, r"batch\.rows 1, this run has 2"),
        ("run", {"seed": 4}, r"run\.seed 3, this run has 4"),
        ("run", {"steps": 9}, r"run\.steps 2, this run has 9"),
        ("optimizer", {"beta2": 0.95}, r"optimizer\.beta2 0\.999, this run has 0\.95"),
        ("trains", {"vision_tower": True}, r"trains projector .*, this run has vision_tower projector"),
    ],
)
def test_a_setting_that_makes_another_run_is_named_before_data_or_model_are_read(
    experiment, monkeypatch, section, values, said
):
    monkeypatch.setattr(planned, "open_training_examples", lambda *_: pytest.fail("the data is read"))
    with pytest.raises(UserError, match=rf"the checkpoint at step 2 has {said}.*--fresh"):
        loop.train(changed(experiment, section, **values), LAUNCH)


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("batch", {"tiles": 40}, r"batch\.tiles none, this run has 40"),
        ("batch", {"targets": 256}, r"batch\.targets none, this run has 256"),
        ("run", {"steps": None, "epochs": 7}, r"run\.steps 2, this run has none"),
    ],
)
def test_a_setting_that_turns_out_to_make_other_rows_is_named_before_the_model_is_loaded(experiment, section, values, said):
    with pytest.raises(UserError, match=said):
        loop.train(changed(experiment, section, **values), LAUNCH)


def test_data_that_has_changed_since_is_said_with_its_path_and_moved_data_is_no_other(experiment, tmp_path):
    source = epath.Path(experiment.data.path)
    moved = tmp_path / "moved"
    shutil.copytree(source.parent, moved)
    with pytest.raises(pytest.fail.Exception, match="the model is loaded"):  # so far nothing is wrong
        loop.train(changed(experiment, "data", path=str(moved / source.name)), LAUNCH)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    rows[1]["responses"][0]["text"] += " Indeed."
    before = source.read_text()
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=rf"other data: the data at {source} has changed since"):
        loop.train(experiment, LAUNCH)
    source.write_text(before)


def test_another_model_in_the_same_place_is_said(experiment, tmp_path):
    place = epath.Path(experiment.model.path)
    shutil.copytree(place, tmp_path / "kept")
    tiny.checkpoint(place, seed=9)
    with pytest.raises(UserError, match=rf"another model: what is at {place} has changed since"):
        loop.train(experiment, LAUNCH)
    shutil.copytree(tmp_path / "kept", place, dirs_exist_ok=True)


def test_a_runs_directory_says_in_how_many_pieces_it_took_its_rows(experiment):
    """The number, so that a replay takes the same ones whatever the launch file says by then."""
    kept = config.load_experiment(epath.Path(experiment.run.directory) / CONFIG_FILE)
    assert experiment.batch.accumulation is None and kept.batch.accumulation == 1


def identity(experiment, **fingerprints):
    same = {DATA: "d", EXAMPLES: "e", ENCODER: "t", PLAN: "p", MODEL: "m", STEPS: 2}
    return known_identity(experiment) | same | fingerprints


def test_fingerprints_that_no_setting_explains_say_what_has_changed(experiment):
    first = identity(experiment)
    assert difference(first, identity(experiment)) is None
    assert "another version of mmrlhf_jax packed them" in difference(first, identity(experiment, **{PLAN: "other"}))
    assert "tokenizer" in difference(first, identity(experiment, **{DATA: "x", ENCODER: "x", PLAN: "x"}))
    assert "made smaller or left out" in difference(first, identity(experiment, **{DATA: "x", PLAN: "x"}))


def test_a_template_that_only_one_run_names_explains_other_tokens(experiment):
    named = changed(experiment, "data", template="upstream_train")
    assert experiment.data.template is None
    other = {DATA: "x", ENCODER: "x", PLAN: "x"}
    assert "data.template upstream_train, this run has none" in difference(identity(named), identity(experiment, **other))
    assert "data.template none, this run has upstream_train" in difference(identity(experiment), identity(named, **other))
    assert difference(identity(experiment), identity(changed(experiment, "data", template="qwen_1_5"))) is None
    both = difference(identity(named), identity(changed(experiment, "data", template="qwen_1_5"), **other))
    assert both == "data.template upstream_train, this run has qwen_1_5"


def test_a_checkpoint_of_a_version_that_kept_less_is_accepted_or_refused_in_words(experiment):
    older = {name: value for name, value in identity(experiment).items() if name not in (EXAMPLES, ENCODER)}
    assert difference(older, identity(experiment)) is None
    assert "has changed since" in difference(older, identity(experiment, **{DATA: "x", EXAMPLES: "x", PLAN: "x"}))
    oldest = {name: value for name, value in older.items() if name != CONFIGURATION}
    assert difference(oldest, identity(experiment)) is None
    assert difference(oldest, identity(changed(experiment, "run", seed=8))) == "run.seed 3, this run has 8"


def test_what_newer_versions_would_pass_over_is_left_to_fresh_runs(experiment):
    with pytest.raises(pytest.fail.Exception, match="the model is loaded"):
        loop.train(changed(experiment, "data", pairs="extreme"), LAUNCH, fresh=True)


@pytest.mark.parametrize("below", [(), ("deep", "er")])
def test_a_file_in_the_place_of_the_run_directory_is_refused(experiment, tmp_path, below):
    (tmp_path / "file").write_text("mine")
    directory = tmp_path.joinpath("file", *below)
    with pytest.raises(UserError, match=rf"run\.directory {directory}: .*file is a file"):
        loop.train(changed(experiment, "run", directory=str(directory)), LAUNCH)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_directory_that_cannot_be_written_is_refused_and_nothing_is_left_of_the_trial(experiment, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"run\.directory /proc/run: nothing can be written there \("):
        loop.train(changed(experiment, "run", directory="/proc/run"), LAUNCH)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(preflight.os, "fsync", full)
    with pytest.raises(UserError, match=r"nothing can be written there \(No space left on device\)"):
        loop.train(changed(experiment, "run", directory=str(tmp_path / "new" / "run")), LAUNCH)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("passing", [1, 3])
def test_storage_that_fails_for_a_moment_is_no_wrong_directory(tmp_path, monkeypatch, passing):
    fsync, left = os.fsync, [passing]

    def busy(descriptor):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EAGAIN, "503 Service Unavailable")
        fsync(descriptor)

    monkeypatch.setattr(preflight.os, "fsync", busy)
    monkeypatch.setattr(faults, "FIRST_DELAY", 0.001)
    preflight.check_directory(epath.Path(tmp_path))
    left[0] = 1000
    with pytest.raises(faults.Unavailable):
        preflight.check_directory(epath.Path(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_hosts_that_try_a_bucket_at_the_same_moment_do_not_meet(tmp_path, monkeypatch):
    """As they do in containers, where all of them are process 1."""
    directory, both_have_written = epath.Path(tmp_path), threading.Barrier(2)
    unlink = type(directory).unlink

    def unlink_later(path, *arguments, **options):
        both_have_written.wait(timeout=30)
        return unlink(path, *arguments, **options)

    monkeypatch.setattr(preflight, "is_remote", lambda path: True)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(type(directory), "unlink", unlink_later)
    with ThreadPoolExecutor(2) as hosts:
        for tried in [hosts.submit(preflight.check_directory, directory) for _ in range(2)]:
            tried.result()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_one_checkpoint_is_refused_with_both_sizes(experiment, tmp_path, monkeypatch):
    import jax.numpy as jnp
    import optax

    usage = namedtuple("usage", "total used free")
    params = {"w": jnp.zeros((1 << 20,), jnp.float32)}  # with two moments 12 MiB
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(1 << 40, 0, 12 << 20))
    with pytest.raises(UserError, match=r"a checkpoint takes 0\.0117 GiB and 0\.0117 GiB are free"):
        preflight.check_room(epath.Path(tmp_path / "run"), params, optax.adam(1e-3))
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(1 << 40, 0, 13 << 20))
    preflight.check_room(epath.Path(tmp_path / "run"), params, optax.adam(1e-3))


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("run", {"wandb": "project"}, r"run\.wandb: wandb is not installed"),
        ("run", {"profile_at": 2}, r"run\.profile_at: the run's steps are 0 to 1, so step 2 is never traced"),
        ("data", {"path": "/nowhere/records.jsonl"}, r"/nowhere/records\.jsonl"),
        ("data", {"media_root": "/nowhere/media"}, r"/nowhere/media: the media root is not a folder"),
        ("data", {"held_out": "/nowhere/held.jsonl"}, r"/nowhere/held\.jsonl"),
    ],
)
def test_what_a_run_would_find_out_late_is_checked_first(experiment, tmp_path, section, values, said):
    fresh = changed(experiment, "run", directory=str(tmp_path / "run"))
    with pytest.raises(UserError, match=said):
        loop.train(changed(fresh, section, **values), LAUNCH)
    assert not (tmp_path / "run" / CONFIG_FILE).exists()


LINES = [
    (b"junk", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b'{"step": 1, "loss": NaN}', "not JSON"),
    (b'{"loss": 1}', r"\{'loss': 1\} is no object with a whole step"),
    (b"[1]", r"\[1\] is no object with a whole step"),
    (b"null", "None is no object with a whole step"),
    (b"7", "7 is no object with a whole step"),
    (b'{"step": "1"}', r"\{'step': '1'\} is no object with a whole step"),
    (b'{"step": 1.5}', ".* is no object with a whole step"),
    (b'{"step": true}', ".* is no object with a whole step"),
    (b'{"step": 1, "loss": "low"}', "loss is 'low', no figure"),
    (b'{"step": 1, "loss": {"mean": 1}}', r"loss is \{'mean': 1\}, no figure"),
]


@pytest.mark.parametrize(("line", "said"), LINES, ids=[line.decode(errors="replace") for line, _ in LINES])
@pytest.mark.parametrize("before", [b"", b'{"step": 1, "loss": 1.0}\n'])
def test_metrics_that_a_run_cannot_go_on_with_are_refused_before_data_or_model_are_read(
    experiment, tmp_path, monkeypatch, line, said, before
):
    monkeypatch.setattr(planned, "open_training_examples", lambda *_: pytest.fail("the data is read"))
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(before + line + b'\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(UserError, match=rf"^{metrics}, line {1 + bool(before)}: {said}.*; delete the line$"):
        loop.train(changed(experiment, "run", directory=str(tmp_path)), LAUNCH)


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b'{"step": 2, "loss": 1.0}'[:-1], b"\0" * 20])
def test_a_last_line_of_the_metrics_that_a_kill_has_torn_is_left_out(experiment, tmp_path, torn):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(b'{"step": 1, "loss": 1.0}\n' + torn)
    preflight.check_metrics(epath.Path(tmp_path))
    assert MetricsLog(tmp_path, resume_step=5).kept == {"step": 1, "loss": 1.0}


def test_a_fresh_run_does_not_look_at_the_metrics_that_it_removes(experiment, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("junk\n[1]\n{}\n")
    with pytest.raises(pytest.fail.Exception, match="the model is loaded"):
        loop.train(changed(experiment, "run", directory=str(tmp_path)), LAUNCH, fresh=True)
