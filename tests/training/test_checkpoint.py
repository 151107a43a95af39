"""Checkpoints survive what happens to them: a newest one that cannot be read, a disk that is full, another mesh."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from etils import epath
from flax import nnx

from mmrlhf_jax import faults
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding.mesh import make_mesh, replicated
from mmrlhf_jax.training.checkpoint import Checkpoints
from mmrlhf_jax.training.identity import CONFIGURATION
from mmrlhf_jax.training.state import TrainState, init_state
from mmrlhf_jax.training.stored import Criterion, StoredCheckpoints
from tests.damage import HARM, damage, files

IDENTITY = {"data": "d", "seed": 1}
MESH = make_mesh({}, jax.devices()[:1])


def state_at(step: int, size: int = 8) -> TrainState:
    values = jax.device_put(jnp.full(size, float(step)), replicated(MESH))
    state = init_state(nnx.State({"w": nnx.Param(values)}), nnx.State({}), optax.adam(1e-3), MESH)
    return TrainState(state.step + step, state.params, state.frozen, state.opt_state, None)


def save(directory: Path, *steps: int) -> None:
    checkpoints = Checkpoints(directory, keep=3)
    for step in steps:
        checkpoints.save(state_at(step), IDENTITY)
        checkpoints.wait()
    checkpoints.close()


def restored(directory: Path) -> tuple[int, float]:
    checkpoints = Checkpoints(directory, keep=3)
    state = checkpoints.restore(state_at(0), IDENTITY)
    checkpoints.close()
    return int(state.step), float(state.params["w"].get_value()[0])


def test_a_newest_checkpoint_that_cannot_be_read_gives_way_to_the_one_before(tmp_path, capfd):
    save(tmp_path, 1, 2, 3)
    damage(tmp_path / "3")
    assert restored(tmp_path) == (2, 2.0)
    assert "checkpoint at step 3 cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize("harm", [pytest.param(h, marks=[] if h in ("half", "gone") else pytest.mark.slow) for h in HARM])
@pytest.mark.long
def test_whichever_file_of_the_newest_is_damaged_the_run_goes_on_from_it_or_from_the_one_before(tmp_path, capfd, harm):
    save(tmp_path / "whole", 1, 2)
    untouched = []
    for path in files(tmp_path / "whole" / "2"):
        name = str(path.relative_to(tmp_path / "whole" / "2"))
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        damage(tmp_path / "run" / "2", name, harm)
        step, value = restored(tmp_path / "run")
        assert (step, value) in ((1, 1.0), (2, 2.0)), name
        said, aside = capfd.readouterr().err, (tmp_path / "run" / "2.unreadable").exists()
        assert aside == ("checkpoint at step 2 cannot be read" in said) == (step == 1), name
        untouched += [name] * (step == 2)
        shutil.rmtree(tmp_path / "run")
    # What holds numbers or says which there are is needed; Orbax has copies of some of it, and notes that nobody reads.
    needed = {
        "params/_METADATA",
        "params/manifest.ocdbt",
        "opt_state/_METADATA",
        "identity/_METADATA",
        "identity/_strings.json",
    }
    assert not needed & set(untouched)


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("best", [1, 3])
def test_a_best_checkpoint_whose_score_is_damaged_is_no_best_and_is_kept_all_the_same(tmp_path, capfd, harm, best):
    scores = {step: 0.5 + 0.1 * step for step in (1, 2, 3)} | {best: 0.9}
    judged(tmp_path, ACCURACY, scores, keep=3).close()
    damage(tmp_path / str(best), "_CHECKPOINT_METADATA", harm)
    second = 2 if best == 3 else 3
    assert StoredCheckpoints(tmp_path, ACCURACY).best == second
    said = f"{tmp_path / str(best)}: its score, if it has one, cannot be read"
    assert said in capfd.readouterr().err
    checkpoints = Checkpoints(tmp_path, keep=1, criterion=ACCURACY)
    assert checkpoints.best == second and capfd.readouterr().err.count(said) == 1
    checkpoints.save(state_at(4), IDENTITY)
    checkpoints.wait()
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([str(second), "4", f"{best}.unreadable"])


@pytest.mark.parametrize(
    "content",
    [
        [],
        None,
        {"custom_metadata": [1]},
        {"custom_metadata": {"judgement": "good"}},
        {"custom_metadata": {"judgement": {"score": "0.9", "metric": "eval_accuracy", "best_is": "highest"}}},
        {"custom_metadata": {"judgement": {"score": True, "metric": "eval_accuracy", "best_is": "highest"}}},
        {"custom_metadata": {"judgement": {"score": 0.9, "metric": "eval_accuracy"}}},
        {"custom_metadata": {"judgement": {"score": 0.9, "metric": ["eval_accuracy"], "best_is": "highest"}}},
    ],
    ids=json.dumps,
)
def test_a_score_that_is_none_by_its_shape_is_said_and_not_compared(tmp_path, capfd, content):
    judged(tmp_path, ACCURACY, {1: 0.5, 2: 0.4}, keep=2).close()
    path = tmp_path / "2" / "_CHECKPOINT_METADATA"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | content if isinstance(content, dict) else content))
    checkpoints = Checkpoints(tmp_path, keep=2, criterion=ACCURACY)
    assert checkpoints.scores == {1: 0.5} and checkpoints.steps == [1, 2]
    assert "2: its score, if it has one, cannot be read" in capfd.readouterr().err
    checkpoints.close()


def test_a_checkpoint_that_is_removed_meanwhile_has_no_score_and_nothing_is_said_of_it(tmp_path, capfd):
    judged(tmp_path, ACCURACY, {1: 0.5, 2: 0.4}, keep=2).close()
    stored = StoredCheckpoints(tmp_path, ACCURACY)
    shutil.rmtree(tmp_path / "2")
    assert stored._judgement(2) is None and stored.scores == {1: 0.5}
    assert "cannot be read" not in capfd.readouterr().err


def test_an_unreadable_checkpoint_is_written_anew_when_the_run_comes_there_again(tmp_path):
    save(tmp_path, 1, 2)
    damage(tmp_path / "2")
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert int(checkpoints.restore(state_at(0), IDENTITY).step) == 1
    checkpoints.save(state_at(2), IDENTITY)
    checkpoints.wait()
    checkpoints.close()
    assert restored(tmp_path) == (2, 2.0)


def test_a_checkpoint_that_was_never_finished_is_not_taken_for_one(tmp_path):
    save(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    assert restored(tmp_path) == (2, 2.0)


def test_where_none_can_be_read_the_user_is_told_what_to_do(tmp_path):
    save(tmp_path, 1)
    damage(tmp_path / "1")
    with pytest.raises(UserError, match=r"none of the checkpoints \[1\] can be read \(of step 1: .+\); nothing is removed"):
        restored(tmp_path)


def test_another_experiments_checkpoint_is_refused_not_skipped(tmp_path):
    save(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path, keep=3)
    with pytest.raises(UserError, match="seed 1, this run has 2"):
        checkpoints.restore(state_at(0), IDENTITY | {"seed": 2})
    checkpoints.close()


FULL = """
import signal, resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.training.checkpoint import Checkpoints
from tests.training.test_checkpoint import IDENTITY, state_at
import numpy as np
checkpoints = Checkpoints(Path({directory!r}), keep=3)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))  # a write beyond fails, as on a full disk
state = state_at(9)
state.params["w"].set_value(np.random.default_rng(0).normal(size=1 << 18).astype(np.float32))
try:
    checkpoints.save(state, IDENTITY)
    checkpoints.wait()
except UserError as error:
    print(error)
"""


@pytest.mark.long
def test_a_full_disk_is_said_and_leaves_the_last_good_checkpoint(tmp_path):
    save(tmp_path, 1, 2)
    code = FULL.format(root=str(Path(__file__).parents[2]), directory=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "no room for a checkpoint" in done.stdout, done.stderr[-2000:]
    assert "the checkpoint at step 2 is complete" in done.stdout
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert restored(tmp_path) == (2, 2.0)


@pytest.mark.long
def test_checkpoints_go_to_a_bucket_and_come_back(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(bucket / "run" / "checkpoints", 1, 2)
    assert restored(bucket / "run" / "checkpoints") == (2, 2.0)
    assert not list(tmp_path.iterdir())  # and not into a folder of the name gs:


# Names that a glob, a pattern, a URL or a shell would read as more than a name.
NAMES = ["a[1]", "[!x]*", "**", "a?b", "back\\slash", "{a,b}/100%25/a#b?c/ spaces /new\nline/ä'\"$x`/-x/~/gs:"]


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_in_a_directory_of_any_name_are_read_again(tmp_path, name):
    save(tmp_path / name / "checkpoints", 1, 2)
    assert restored(tmp_path / name / "checkpoints") == (2, 2.0)
    assert [path.name for path in tmp_path.iterdir()] == [name.split("/")[0]]


def test_a_directory_whose_name_is_a_pattern_has_nothing_to_do_with_those_that_it_matches(tmp_path):
    save(tmp_path / "axb", 1, 2)
    save(tmp_path / "a*b", 5)
    assert restored(tmp_path / "a*b") == (5, 5.0) and restored(tmp_path / "axb") == (2, 2.0)


@pytest.mark.parametrize("name", ["gs://bucket/a[1]", "gs://bucket/run#2", "gs://bucket/a?b", "/tmp/\udce4"])
def test_names_that_cannot_work_are_refused_in_words(name):
    with pytest.raises(UserError, match="choose another"):
        Checkpoints(name)


def snapshot(directory: Path) -> dict[str, tuple]:
    found = {}
    for path in sorted([directory, *directory.rglob("*")]):
        status = path.lstat()
        found[str(path)] = status.st_size, status.st_mtime_ns, status.st_ino, path.read_bytes() if path.is_file() else None
    return found


@pytest.mark.parametrize("half", ["3.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-1700000000"])
def test_a_reader_changes_nothing_beside_a_checkpoint_that_is_being_written(tmp_path, half):
    save(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "2", tmp_path / half)
    before = snapshot(tmp_path)
    stored = StoredCheckpoints(tmp_path)
    assert (stored.steps, stored.latest, stored.best) == ([1, 2], 2, None)
    assert stored.load(2, {"identity": None})["identity"] == IDENTITY
    assert float(stored.load(1, {"params": {"w": jax.ShapeDtypeStruct((8,), jnp.float32)}})["params"]["w"][0]) == 1.0
    assert snapshot(tmp_path) == before


def test_a_reader_makes_no_folder(tmp_path):
    assert StoredCheckpoints(tmp_path / "none" / "checkpoints").steps == []
    assert not list(tmp_path.iterdir())


def test_a_reader_is_told_that_a_checkpoint_was_removed_or_is_damaged(tmp_path):
    save(tmp_path, 1, 2)
    stored = StoredCheckpoints(tmp_path)
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(Exception) as error:
        stored.load(1, {"identity": None})
    assert "the checkpoint at step 1 is not there any more; there are [2]" in str(stored.explained(1, error.value))
    damage(tmp_path / "2")
    with pytest.raises(Exception) as error:
        stored.load(2, {"params": {"w": jax.ShapeDtypeStruct((8,), jnp.float32)}})
    assert "the checkpoint at step 2 cannot be read" in str(stored.explained(2, error.value))


@pytest.mark.parametrize("name", ["3.orbax-checkpoint-tmp", "1.removed"])
def test_what_a_killed_trainer_was_writing_or_removing_is_cleared_away_by_the_next_one(tmp_path, name):
    save(tmp_path, 2)
    shutil.copytree(tmp_path / "2", tmp_path / name)
    assert restored(tmp_path) == (2, 2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_the_newest_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in ((1, 0.5), (2, 0.9), (3, None), (4, 0.1), (5, None)):
        checkpoints.save(state_at(step), IDENTITY, score=score)
    checkpoints.wait()
    assert checkpoints.steps == [2, 4, 5] and checkpoints.best == 2
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5"]
    assert StoredCheckpoints(tmp_path).scores == {2: 0.9, 4: 0.1}


def test_a_score_counts_while_its_checkpoint_is_being_written(tmp_path):
    """Or a worse one in the meantime would be taken for the best."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state_at(1), IDENTITY, score=0.9)
    assert (checkpoints.scores, checkpoints.steps) == ({1: 0.9}, [])
    checkpoints.wait()
    assert (checkpoints.scores, checkpoints.steps) == ({1: 0.9}, [1])
    checkpoints.close()


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.long
def test_a_checkpoint_that_cannot_be_read_back_does_not_count_and_removes_no_other(tmp_path, monkeypatch, keep):
    save(tmp_path, 1, 2, 3)
    checkpoints = Checkpoints(tmp_path, keep=keep)
    checkpoints.save(state_at(4), IDENTITY)
    checkpoints._pending.writing.result()
    damage(tmp_path / "4")
    with pytest.raises(UserError, match=r"at step 4 was written but cannot be read back .*at step 3 is complete"):
        checkpoints.wait()
    checkpoints.close()
    assert StoredCheckpoints(tmp_path).steps == [1, 2, 3, 4]
    assert restored(tmp_path) == (3, 3.0)


class Broken:
    """`ocp.load_checkpointables` that fails for one step, so many times."""

    def __init__(self, monkeypatch, step: int, error: Exception, times: int):
        self.calls, load = 0, ocp.load_checkpointables

        def failing(path, *arguments, **options):
            if path.name == str(step):
                self.calls += 1
                if self.calls <= times:
                    raise error
            return load(path, *arguments, **options)

        monkeypatch.setattr(ocp, "load_checkpointables", failing)
        monkeypatch.setattr(faults, "FIRST_DELAY", 0.001)


PASSING = [
    OSError(503),
    OSError(503, "Service Unavailable"),
    OSError(errno.ETIMEDOUT, "Connection timed out"),
    ConnectionResetError("Connection reset by peer"),
    ValueError('UNAVAILABLE: Error reading "manifest.ocdbt": CURL error: Couldn\'t resolve host name'),
    RuntimeError("DEADLINE_EXCEEDED: request took too long"),
    OSError("HTTP 429: Too Many Requests"),
]


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_a_passing_error_is_tried_again_and_the_newest_checkpoint_is_taken(tmp_path, monkeypatch, capfd, error):
    save(tmp_path, 1, 2)
    Broken(monkeypatch, 2, error, times=2)
    assert restored(tmp_path) == (2, 2.0)
    assert capfd.readouterr().err.count("trying again in") == 2


@pytest.mark.parametrize("error", PASSING[:2] + PASSING[4:5], ids=str)
def test_where_it_does_not_pass_the_run_ends_and_goes_back_to_no_older_one(tmp_path, monkeypatch, error):
    save(tmp_path, 1, 2)
    broken = Broken(monkeypatch, 2, error, times=100)
    with pytest.raises(faults.Unavailable, match="checkpoint at step 2"):
        restored(tmp_path)
    assert broken.calls == faults.TRIES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "the process is out of memory"),
        (
            ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes"),
            "the process is out of memory",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), "may not be read"),
        (RuntimeError("PERMISSION_DENIED: caller has no storage.objects.get"), "may not be read"),
    ],
)
def test_what_is_no_damage_is_called_what_it_is_and_nothing_older_is_taken(tmp_path, monkeypatch, error, said):
    save(tmp_path, 1, 2)
    Broken(monkeypatch, 2, error, times=100)
    with pytest.raises(UserError, match=said) as told:
        restored(tmp_path)
    assert "--fresh" not in str(told.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("steps", [(1, 2), (3, 7, 9)])
def test_a_damaged_checkpoint_is_kept_aside_under_a_name_that_says_so(tmp_path, steps):
    *_, before, last = steps
    save(tmp_path, *steps)
    damage(tmp_path / str(last))
    bytes_before = [path.stat().st_size for path in sorted((tmp_path / str(last)).rglob("*")) if path.is_file()]
    assert restored(tmp_path) == (before, float(before))
    aside = tmp_path / f"{last}.unreadable"
    assert [path.stat().st_size for path in sorted(aside.rglob("*")) if path.is_file()] == bytes_before
    save(tmp_path, last)
    assert aside.exists() and restored(tmp_path) == (last, float(last))


@pytest.mark.long
def test_a_bucket_keeps_no_more_checkpoints_than_a_disk(bucket):
    where = bucket / "older" / "checkpoints"
    checkpoints = Checkpoints(where, keep=1)
    for step in (1, 2):
        checkpoints.save(state_at(step), IDENTITY)
    checkpoints.wait()
    checkpoints.close()
    (where / "3" / "manifest").write_text("")  # as a writer that was killed leaves it
    assert StoredCheckpoints(where).steps == [2]
    assert restored(where) == (2, 2.0)
    assert [path.name for path in where.iterdir()] == ["2"]


@pytest.mark.parametrize("error", PASSING[:3], ids=str)
def test_storage_that_is_away_while_a_checkpoint_is_written_ends_the_run_as_that(tmp_path, monkeypatch, error):
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path, keep=3)

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(ocp, "save_checkpointables_async", fails)
    with pytest.raises(faults.Unavailable, match=r"could not be written .*at step 1 is complete"):
        checkpoints.save(state_at(2), IDENTITY)
    checkpoints.close()


@pytest.mark.parametrize("fails", [1, 2])
def test_a_removal_that_fails_for_a_moment_is_done_all_the_same(tmp_path, monkeypatch, fails):
    save(tmp_path, 1, 2, 3)
    rmtree, left = type(epath.Path(tmp_path)).rmtree, [fails]

    def failing(path, *arguments, **options):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EBUSY, "Device or resource busy")
        rmtree(path, *arguments, **options)

    monkeypatch.setattr(type(epath.Path(tmp_path)), "rmtree", failing)
    monkeypatch.setattr(faults, "FIRST_DELAY", 0.001)
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(state_at(4), IDENTITY)
    checkpoints.wait()
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "4"]


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done all the same"])
@pytest.mark.parametrize("name", ["rename", "rmtree"])
def test_a_damaged_checkpoint_is_kept_aside_where_the_storage_is_busy(tmp_path, monkeypatch, name, done):
    save(tmp_path, 1, 2)
    damage(tmp_path / "2")
    (tmp_path / "2.unreadable").mkdir()
    (tmp_path / "2.unreadable" / "of an earlier time").write_text("x")
    inside = [path.relative_to(tmp_path / "2") for path in files(tmp_path / "2")]
    real, left = getattr(type(epath.Path(tmp_path)), name), [2]

    def failing(path, *arguments, **options):
        if "2" not in path.name or not left[0]:
            return real(path, *arguments, **options)
        left[0] -= 1
        if done:
            real(path, *arguments, **options)
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(type(epath.Path(tmp_path)), name, failing)
    monkeypatch.setattr(faults, "FIRST_DELAY", 0.001)
    assert restored(tmp_path) == (1, 1.0)
    assert left[0] < 2
    assert [path.relative_to(tmp_path / "2.unreadable") for path in files(tmp_path / "2.unreadable")] == inside
    assert not (tmp_path / "2").exists()


LOSS, ACCURACY = Criterion("eval_loss", "lowest"), Criterion("eval_accuracy", "highest")


def judged(directory: Path, criterion: Criterion, scores: dict[int, float | None], keep: int = 1) -> Checkpoints:
    checkpoints = Checkpoints(directory, keep=keep, criterion=criterion)
    for step, score in scores.items():
        checkpoints.save(state_at(step), IDENTITY, score=score)
        checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scores", [[-2.0, None, -3.0], [None, -2.0], [-2.0, None]])
@pytest.mark.long
def test_a_score_that_is_not_finite_is_none_and_never_costs_the_best_one(tmp_path, bad, scores):
    given = {step: bad if score is None else score for step, score in enumerate(scores, 1)}
    checkpoints = judged(tmp_path, LOSS, given | {len(scores) + 1: None})
    best = scores.index(-2.0) + 1
    assert checkpoints.best == best and checkpoints.steps == [best, len(scores) + 1]
    assert StoredCheckpoints(tmp_path, LOSS).scores == {best: -2.0}
    checkpoints.close()


@pytest.mark.long
def test_scores_of_two_criteria_are_not_compared_and_the_best_of_each_stays(tmp_path):
    """Losses are below 0 as scores, accuracies above: compared, every accuracy would beat every loss."""
    judged(tmp_path, LOSS, {1: -0.5, 2: -0.9}).close()
    checkpoints = judged(tmp_path, ACCURACY, {3: 0.4, 4: 0.7, 5: 0.6})
    assert checkpoints.best == 4 and checkpoints.scores == {4: 0.7, 5: 0.6} and checkpoints.steps == [1, 4, 5]
    assert checkpoints.other_scores == "the scores of checkpoints 1 are by eval_loss (lowest is best)"
    checkpoints.close()
    assert StoredCheckpoints(tmp_path, LOSS).best == 1 and StoredCheckpoints(tmp_path, ACCURACY).best == 4
    assert StoredCheckpoints(tmp_path, Criterion("eval_loss", "highest")).best is None
    again = judged(tmp_path, LOSS, {6: -0.7})  # back to the first one
    assert again.best == 1 and again.steps == [1, 4, 6]
    again.close()


@pytest.mark.long
def test_scores_of_two_held_out_sets_are_not_compared_nor_those_that_do_not_say_of_which(tmp_path):
    sets = {name: LOSS._replace(held_out=name) for name in ("first", "second")}
    judged(tmp_path, LOSS, {1: -0.1, 2: -0.2}).close()  # as versions before wrote them
    judged(tmp_path, sets["first"], {3: -0.5, 4: -0.9}).close()
    checkpoints = judged(tmp_path, sets["second"], {5: -8.0, 6: -7.0, 7: -9.0})
    assert checkpoints.steps == [1, 3, 6, 7] and checkpoints.best == 6
    assert checkpoints.other_scores == (
        "the scores of checkpoints 1, 3 are by eval_loss (lowest is best) on held-out data that they do not name, eval_loss"
        " (lowest is best) on other held-out data"
    )
    checkpoints.close()
    reader = StoredCheckpoints(tmp_path, LOSS).on_newest_data()
    assert reader.best == 6 and reader.scores == {6: -7.0, 7: -9.0}
    assert StoredCheckpoints(tmp_path, ACCURACY).on_newest_data().best is None
    again = judged(tmp_path, sets["first"], {8: -0.6})  # back to the first one
    assert again.best == 3 and again.steps == [1, 3, 6, 8]
    again.close()


def test_a_score_that_does_not_say_of_what_is_one_of_the_configuration_that_was_kept_with_it(tmp_path):
    """As versions before wrote them."""
    configured = {CONFIGURATION: "run:\n  best: eval_accuracy\n  best_is: highest\n"}
    checkpoints = Checkpoints(tmp_path, keep=3, criterion=ACCURACY)
    for step, identity in ((1, IDENTITY | configured), (2, IDENTITY)):
        checkpoints.save(state_at(step), identity)
        checkpoints.wait()
        path = tmp_path / str(step) / "metrics" / "metrics"
        path.parent.mkdir()
        path.write_text(json.dumps({"score": 0.5 * step}))
    checkpoints.close()
    assert StoredCheckpoints(tmp_path, ACCURACY).scores == {1: 0.5}
    assert StoredCheckpoints(tmp_path, LOSS).best is None
    assert "2 are by" in StoredCheckpoints(tmp_path, ACCURACY).other_scores


def with_statistics(step: int, **statistics: float) -> TrainState:
    values = {name: jax.device_put(jnp.float32(value), replicated(MESH)) for name, value in statistics.items()}
    return dataclasses.replace(state_at(step), statistics=values)


def test_running_statistics_are_kept_and_other_runs_have_the_parts_that_they_had(tmp_path):
    for name, state in (("with", with_statistics(2, mean=0.3, std=1.7)), ("without", state_at(2))):
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(state, IDENTITY)
        checkpoints.wait()
        checkpoints.close()
    parts = {"params", "opt_state", "identity"}
    for name, expected in (("with", parts | {"statistics"}), ("without", parts)):
        assert {path.name for path in (tmp_path / name / "2").iterdir() if path.is_dir()} == expected
    checkpoints = Checkpoints(tmp_path / "with")
    found = checkpoints.restore(with_statistics(0, mean=0.0, std=0.0), IDENTITY)
    checkpoints.close()
    assert found.statistics == {"mean": jnp.float32(0.3), "std": jnp.float32(1.7)} and int(found.step) == 2


@pytest.mark.parametrize("stored", [{}, {"std": 1.0}])
def test_a_checkpoint_without_the_statistics_that_the_loss_needs_is_refused_and_left_alone(tmp_path, stored):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(with_statistics(2, **stored), IDENTITY)
    checkpoints.wait()
    with pytest.raises(UserError, match=r"the checkpoint at step 2 has no running statistics mean\b.*set another") as error:
        checkpoints.restore(with_statistics(0, mean=0.0), IDENTITY)
    checkpoints.close()
    assert "\n" not in str(error.value) and checkpoints.steps == [2]
