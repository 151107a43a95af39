"""Several processes act as one: whatever one of them alone finds or suffers, all do the same, and none is left waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmrlhf_jax.sharding import agreement
from tests import tiny
from tests.sharding.loopback import ROOT, free_port

# Two processes with a device each. What process 1 alone suffers is in `broken`; each prints what became of it.
PROGRAM = """
import json, os, sys
from pathlib import Path
os.environ["JAX_PLATFORMS"] = "cpu"
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
me = int(sys.argv[1])
jax.distributed.initialize(sys.argv[2], 2, me, initialization_timeout=60)
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from mmrlhf_jax import faults
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding import agreement
from mmrlhf_jax.sharding.mesh import make_mesh, replicated
from mmrlhf_jax.training import owner
from mmrlhf_jax.training.checkpoint import Checkpoints
from mmrlhf_jax.training.reference import _kept_logps
from mmrlhf_jax.training.state import TrainState, init_state
faults.FIRST_DELAY = 0.01
root = Path(sys.argv[3])
mesh = make_mesh({"fsdp": 2}, jax.devices())

def state_at(step):
    places = NamedSharding(mesh, PartitionSpec("fsdp"))
    values = jax.make_array_from_callback((8,), places, lambda index: np.full(8, float(step), np.float32)[index])
    state = init_state(nnx.State({"w": nnx.Param(values)}), nnx.State({}), optax.adam(1e-3), mesh)
    number = jax.device_put(jnp.asarray(step, jnp.int32), replicated(mesh))
    return TrainState(number, state.params, state.frozen, state.opt_state, None)

def saved(name, *steps):
    checkpoints = Checkpoints(root / name, keep=3)
    for step in steps:
        checkpoints.save(state_at(step), {"data": "d"})
    checkpoints.wait()
    return checkpoints

def report(name, act):
    try:
        found = act()
    except Exception as error:
        found = [type(error).__name__, str(error).splitlines()[0]]
    print(json.dumps([name, found]), flush=True)

load, broken = ocp.load_checkpointables, {}
def loading(path, *arguments, **options):
    if me == 1 and path.name in broken:
        raise broken[path.name]
    return load(path, *arguments, **options)
ocp.load_checkpointables = loading

def restored(name, **errors):
    broken.clear()
    broken.update({step.strip("_"): error for step, error in errors.items()})
    state = Checkpoints(root / name, keep=3).restore(state_at(0), {"data": "d"})
    return [int(state.step), float(state.params["w"].get_value().addressable_shards[0].data[0])]

def all_steps(name):
    return sorted(path.name for path in (root / name).iterdir())

for name in ("damaged", "passing", "memory", "listing", "blind"):
    saved(name, 1, 2, 3)
report("damaged", lambda: restored("damaged", _3=FileNotFoundError("no manifest")))
report("after damaged", lambda: all_steps("damaged"))
report("passing", lambda: restored("passing", _3=OSError(503)))
report("memory", lambda: restored("memory", _3=MemoryError()))
report("after memory", lambda: all_steps("memory"))
gone = FileNotFoundError("no such directory")
report("blind", lambda: restored("blind", _1=gone, _2=gone, _3=gone))
report("after blind", lambda: all_steps("blind"))
broken.clear()

# One host's listing is out of date: it does not see the newest.
own = agreement.first_process()
from mmrlhf_jax.training import stored
entries = stored.entries
stored.entries = lambda folder: [path for path in entries(folder) if own or path.name != "3"]
report("listing", lambda: restored("listing"))
stored.entries = entries

def fails(error, who):
    def act():
        if me == who:
            raise error
        return "done"
    return act

report("together, 0", lambda: agreement.together(fails(OSError(28, "No space left on device"), 0)))
report("together, 1", lambda: agreement.together(fails(UserError("one line"), 1)))
report("unavailable", lambda: agreement.together(fails(faults.Unavailable("away"), 1)))
report("first acts", lambda: agreement.first_acts(fails(ValueError("bad"), 0)))
report("first decides", lambda: agreement.first_decides(lambda: f"said by {me}"))
report("same", lambda: agreement.same_everywhere({"rows": 3, "data": f"digest {me}"}, "the data"))

# What one host's command line or file system has and the other's has not.
from mmrlhf_jax import config
from mmrlhf_jax.training.preflight import check_launch
def launched(model="model", mesh={"fsdp": 2}, lora=None, rows_per_device=None, **run):
    experiment = config.Experiment(
        model=config.Model(path=str(root / model)), data=config.Data(path=f"data of {me}"), objective=config.Supervised(),
        lora=lora, run=config.Run(directory=str(root / "never"), **run),
    )
    _, found = check_launch(experiment, config.Launch(mesh=config.Mesh(**mesh), rows_per_device=rows_per_device))
    return sorted(path.name for path in root.glob("never*")) + [found.shape["fsdp"]]
report("launch", launched)
report("launch, every", lambda: launched(eval_every=None, checkpoint_every=[500, 250][me]))
report("launch, lora", lambda: launched(lora=[None, config.Lora(rank=2)][me]))
report("launch, rows", lambda: launched(rows_per_device=[None, 1][me]))
report("launch, mesh", lambda: launched(mesh=[{"fsdp": 2}, {"fsdp": 1, "data": 2}][me]))
report("launch, model", lambda: launched(model=["model", "none"][me]))
report("launch, wandb", lambda: launched(wandb=[None, "alignment"][me]))

# A cache that only the first process sees, and one that is another file for the second.
scored = np.ones(3, bool)
if me == 0:
    np.savez(root / "cache-0.npz", logps=np.asarray([1, 2, np.inf], np.float32)[[0, 1, 0]])
agreement.together(lambda: None)
report("cache", lambda: _kept_logps(epath.Path(root / f"cache-{me}.npz"), scored).tolist())
report("no cache", lambda: _kept_logps(epath.Path(root / f"cache-{1 - me}.npz"), scored))

def owned():
    with owner.owned(epath.Path(root / "run")):
        agreement.together(lambda: None)
        found = sorted(path.name for path in (root / "run").iterdir())
        agreement.together(lambda: None)  # the directory goes with its owner
        return found
report("owned", owned)
other = root / "taken" / "owner"
if me == 0:
    from mmrlhf_jax.owner import Owner, _process
    import subprocess, dataclasses
    other.parent.mkdir()
    parent = os.getppid()
    other.write_text(dataclasses.replace(Owner.me(), pid=parent, started=_process(parent)[1]).text())
def taken():
    with owner.owned(epath.Path(root / "taken")):
        return "entered"
report("taken", taken)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of the two processes reports, by name."""
    root = tmp_path_factory.mktemp("two")
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text(json.dumps(tiny.config()))
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    logs = [(root / f"process-{i}.log").open("w") for i in range(2)]
    command = lambda i: [sys.executable, "-c", PROGRAM, str(i), address, str(root)]
    running = [
        subprocess.Popen(command(i), env=environment, stdout=subprocess.PIPE, stderr=logs[i], text=True, cwd=ROOT)
        for i in range(2)
    ]
    try:
        deadline = time.monotonic() + 120
        said = [process.communicate(timeout=max(deadline - time.monotonic(), 1))[0] for process in running]
    finally:
        for process in running:
            process.kill()
    ends = "\n".join(Path(log.name).read_text()[-2000:] for log in logs)
    assert [process.returncode for process in running] == [0, 0], ends
    lines = [[json.loads(line) for line in text.splitlines() if line.startswith('["')] for text in said]
    return [dict(each) for each in lines] + [ends]


@pytest.mark.long
def test_a_newest_checkpoint_that_one_host_cannot_read_gives_way_for_all(found):
    assert found[0]["damaged"] == found[1]["damaged"] == [2, 2.0]
    assert found[0]["after damaged"] == ["1", "2", "3.unreadable"]


@pytest.mark.parametrize(("name", "kind"), [("passing", "Unavailable"), ("memory", "UserError")])
def test_what_is_no_damage_ends_all_and_none_falls_back(found, name, kind):
    assert [each[name][0] for each in found[:2]] == [kind, kind]
    assert "step 3" in found[0][name][1] and found[0]["after memory"] == ["1", "2", "3"]


def test_a_host_that_does_not_see_the_directory_is_named_and_nobody_is_told_to_remove_what_is_good(found):
    assert found[0]["blind"] == found[1]["blind"] and found[0]["blind"][0] == "UserError"
    assert "process 1 can read none of the checkpoints that others can read" in found[0]["blind"][1]
    assert "--fresh" not in found[0]["blind"][1] and found[0]["after blind"] == ["1", "2", "3"]


def test_the_first_processs_listing_counts(found):
    assert found[0]["listing"] == found[1]["listing"] == [3, 3.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "together, 0",
            [["OSError", "[Errno 28] No space left on device"], ["FailedElsewhere", "process 0: OSError: [Errno 28] No space"]],
        ),
        ("together, 1", [["UserError", "one line"]] * 2),
        ("unavailable", [["Unavailable", "away"]] * 2),
        ("first acts", [["ValueError", "bad"], ["FailedElsewhere", "process 0: ValueError: bad"]]),
    ],
)
def test_where_one_fails_all_fail_with_its_words(found, name, expected):
    for process, (kind, line) in enumerate(expected):
        assert found[process][name][0] == kind and found[process][name][1].startswith(line)


def test_one_finds_and_all_have_it(found):
    assert found[0]["first decides"] == found[1]["first decides"] == "said by 0"
    assert found[0]["cache"] == found[1]["cache"] == [1.0, 2.0, 1.0]
    assert found[0]["no cache"] is None and found[1]["no cache"] is None


def test_hosts_with_other_files_are_told(found):
    line = "the data: data is 'digest 0' for process 0 and 'digest 1' for process 1; "
    line += "all hosts must have the same files and settings"
    assert found[0]["same"] == found[1]["same"] == ["UserError", line]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("every", "this launch: run.checkpoint_every is 500 for process 0 and 250 for process 1; all hosts must have the same"),
        ("lora", "this launch: lora.parts is None for process 0 and ['language_model'] for process 1; all hosts must have"),
        ("rows", "this launch: batch.accumulation is 1 for process 0 and 4 for process 1; all hosts must have the same"),
        ("mesh", "this launch: mesh.data is 1 for process 0 and 2 for process 1; all hosts must have the same"),
        ("model", "{root}/none: no such directory"),
        ("wandb", "run.wandb: wandb is not installed"),
    ],
)
def test_what_one_process_was_started_with_alone_ends_all_before_anything_is_made(found, name, line):
    """Else they would part where they first differ, and wait for each other for ever."""
    assert found[0]["launch"] == found[1]["launch"] == [2]
    assert found[0][f"launch, {name}"] == found[1][f"launch, {name}"]
    kind, said = found[0][f"launch, {name}"]
    assert kind == "UserError" and line.replace("{root}", "") in said


def test_a_run_of_two_processes_has_one_owner_and_both_hear_of_another(found):
    assert found[0]["owned"] == found[1]["owned"] == ["owner"]
    assert found[0]["taken"] == found[1]["taken"]
    assert found[0]["taken"][0] == "UserError" and f"process {os.getpid()} on" in found[0]["taken"][1]


def test_alone_everything_is_what_it_is():
    assert agreement.gather({"a": 1}) == [{"a": 1}]
    assert agreement.first_decides(lambda: 3) == agreement.together(lambda: 3) == 3
    agreement.same_everywhere({"a": 1}, "nothing")
    with pytest.raises(KeyError):
        agreement.together(lambda: {}["a"])
