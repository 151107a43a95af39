"""The train step compiled for GPUs that are not here: by XLA's own compiler for GPUs, or, without it, for CPU devices."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import types

import jax
import pytest
from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import ACCELERATORS, CHIPS, accelerator
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.registry import DEFAULT
from mmrlhf_jax.planning import plugin, program
from mmrlhf_jax.planning.program import Target, optimise
from mmrlhf_jax.planning.topology import chip_of, gpu_target
from mmrlhf_jax.training.work import peak_flops
from tests.cuda_plugin import needs_cuda_plugin
from tests.planning.planned import COMMAND, ROOT, STEP_ALONE, check, plan, sent, write_small

H100 = ROOT / "launch" / "h100-8.yaml"
GPUS = {name: chip for name, chip in CHIPS.items() if chip.target is not None}
STEP = ("--quick", *STEP_ALONE)
# The same step compiled through jax alone. The arguments are the target's text, the experiment, the launch file.
BY_HAND = """
import json, sys
import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
import numpy as np
from mmrlhf_jax import config
from mmrlhf_jax.planning import lowering
from mmrlhf_jax.planning.workload import find_workload
from mmrlhf_jax.training.layout import with_accumulation
from mmrlhf_jax.sharding.mesh import use_mesh

described = topologies.get_topology_desc(platform="cuda", topology_name="", topology="1x1x8", target_config=sys.argv[1])
experiment, launch = config.load_experiment(sys.argv[2]), config.load_launch(sys.argv[3])
axes = ("data", "fsdp", "tensor", "context")
mesh = Mesh(np.reshape(described.devices, (1, 8, 1, 1)), axes, axis_types=(AxisType.Auto,) * 4)
sizes, _ = lowering.model_sizes(experiment)
experiment = lowering.with_budget(experiment, find_workload(experiment, sizes).budget)
with use_mesh(mesh):
    step, *arguments = lowering.step_arguments(with_accumulation(experiment, launch, mesh.shape), sizes, mesh)
    found = step.lower(*arguments).compile(compiler_options={"xla_gpu_enable_triton_gemm": False}).memory_analysis()
names = {"arguments": "argument", "outputs": "output", "temporaries": "temp", "aliased": "alias"}
print(json.dumps({name: getattr(found, f"{each}_size_in_bytes") for name, each in names.items()}))
"""


@pytest.fixture
def small(tmp_path):
    return write_small(tmp_path, DEFAULT)


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    around = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment
    around["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    around.pop("XLA_FLAGS", None) if "XLA_FLAGS" not in environment else None
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=around, cwd=ROOT, timeout=1200)


def launch_file(folder, flags: str):
    path = folder / "launch.yaml"
    path.write_text(f"accelerator: h100-8\nmesh: {{fsdp: 8}}\nrows_per_device: 1\nenvironment: {{XLA_FLAGS: {flags}}}\n")
    return path


@needs_cuda_plugin
@pytest.mark.long
def test_a_small_model_on_eight_gpus(small, tmp_path):
    """Attention's kernels are counted too."""
    made = plan(small, "--launch", H100, *STEP, cache=tmp_path)
    check(made)
    assert not made["stand_in"] and not made["machine_code"] and made["skipped_flops"] > 0
    assert made["reduced_whole"] == [] and made["uncounted_loops"] == 0


@needs_cuda_plugin
@pytest.mark.slow
def test_memory_is_that_of_a_whole_compilation_through_jax_alone(small, tmp_path):
    """To the byte."""
    made = plan(small, "--launch", H100, *STEP, cache=tmp_path)
    flags = config.load_launch(H100).environment["XLA_FLAGS"]
    done = run(BY_HAND, gpu_target(CHIPS["h100"]), str(small), str(H100), XLA_FLAGS=flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert made["hbm"] == json.loads(done.stdout)


@needs_cuda_plugin
@pytest.mark.slow
def test_what_is_compiled_beside_the_step_and_what_triton_would_take(small, tmp_path):
    made = plan(small, "--launch", H100, cache=tmp_path)
    assert made["fits"] and not made["machine_code"]
    assert made["hbm_peak_bytes_by_triton"] not in (made["hbm"], None)
    assert made["reference"]["hbm_peak_bytes"] < made["hbm_peak_bytes"]
    assert made["generation"]["hbm_peak_bytes"] < made["hbm_peak_bytes"]
    assert made["generation"]["gathered_bytes"] == 0 and made["generation"]["tokens_per_second_bound"] > 0


@needs_cuda_plugin
@pytest.mark.slow
def test_flags_of_the_launch_file_reach_the_compiler(small, tmp_path):
    """Gathers are not combined if there is a limit on what may be combined."""
    combined = plan(small, "--launch", H100, *STEP, cache=tmp_path)
    apart = launch_file(tmp_path, "--xla_gpu_all_gather_combine_threshold_bytes=1")
    gathers = [
        sum(each["count"] for each in made["collectives"] if each["kind"] == "all-gather")
        for made in (combined, plan(small, "--launch", apart, *STEP, cache=tmp_path))
    ]
    assert gathers[0] < gathers[1]


@needs_cuda_plugin
@pytest.mark.long
def test_a_flag_that_xla_does_not_know_is_named_in_one_line(small, tmp_path):
    launch = launch_file(tmp_path, "--xla_gpu_no_such_flag=true")
    done = run(COMMAND, "plan", str(small), "--launch", str(launch), *STEP, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: XLA_FLAGS: this XLA does not know --xla_gpu_no_such_flag")


TARGETS = """
import sys
from mmrlhf_jax.accelerators import accelerator
from mmrlhf_jax.planning.topology import _gpu_devices
for name in sys.argv[1:]:
    devices = _gpu_devices(accelerator(name), 4)
    print(name, len(devices), devices[-1].process_index, devices[0].device_kind, sep="|")
"""


@needs_cuda_plugin
@pytest.mark.long
def test_every_gpu_is_described_so_that_xla_can_compile_for_it():
    """Four hosts of each; the kind of the devices is the one by which a run knows its chip."""
    hosts = [found for found in ACCELERATORS.values() if not found.is_tpu]
    done = run(TARGETS, *(found.name for found in hosts))
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split("|") for line in done.stdout.splitlines()]
    for found, (name, devices, process, kind) in zip(hosts, lines, strict=True):
        assert (name, int(devices), int(process)) == (found.name, 4 * found.chips, 3)
        assert next(chip for chip in CHIPS.values() if kind.startswith(chip.kind)) == found.chip


UNREADABLE = """
from mmrlhf_jax.accelerators import accelerator
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.planning import topology
topology.gpu_target = lambda chip: "no_such_field: 1"
try:
    topology._gpu_devices(accelerator("h100-8"), 1)
except UserError as error:
    print(error)
"""


@needs_cuda_plugin
@pytest.mark.long
def test_a_description_that_xla_cannot_read_is_an_error_in_one_line():
    (line,) = run(UNREADABLE).stdout.splitlines()
    assert line.startswith("h100-8: cannot compile for GPUs here (") and "GpuTargetConfigProto" in line


@pytest.mark.parametrize("name", GPUS)
def test_a_chip_has_the_memory_that_its_description_gives(name):
    (size,) = re.findall(r"device_memory_size: (\d+)", gpu_target(GPUS[name]))
    assert int(size) == GPUS[name].hbm_bytes


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_run_on_the_card_of_this_machine_knows_its_peak_by_its_name_or_not_at_all(kind, peak):
    """Names of some cards begin with those of others."""
    assert peak_flops([types.SimpleNamespace(device_kind=kind)]) == peak


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}, 0.92),
        ({"XLA_CLIENT_MEM_FRACTION": ".5"}, 0.5),
        ({}, 0.75),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ""}, 0.75),
    ],
)
def test_a_process_gets_the_share_of_a_gpu_that_xla_reserves(environment, share):
    launch = config.Launch(accelerator="h100-8", mesh=config.Mesh(fsdp=8), environment=environment)
    assert chip_of(launch).hbm_bytes == int(share * 84942979072)
    assert accelerator("h100-8").chip.hbm_bytes == 84942979072


@pytest.mark.parametrize("share", ["all", "0", "-1", "1.5", "nan"])
def test_what_is_no_share_of_the_memory_is_refused(share):
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": share}
    with pytest.raises(UserError, match="is no share of the memory"):
        chip_of(config.Launch(accelerator="h100-8", mesh=config.Mesh(fsdp=8), environment=environment))


def test_a_plugin_of_another_version_is_refused_with_what_to_install(monkeypatch):
    versions = {"jaxlib": "0.10.2", "jax-cuda13-plugin": "0.10.1", "jax-cuda13-pjrt": "0.10.2"}
    monkeypatch.setattr(plugin, "_found", lambda module: module == "jax_plugins.xla_cuda13")
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(UserError, match=r"jax-cuda13-plugin 0\.10\.1 does not work with jaxlib 0\.10\.2; pip install"):
        plugin.check_plugin()
    versions["jax-cuda13-plugin"] = "0.10.2"
    plugin.check_plugin()


def test_the_process_that_compiles_has_the_flags_in_the_order_of_a_run_and_then_the_plans(monkeypatch):
    """Of two settings of one flag the later wins: in a run that of the environment (`distributed.prepare`)."""
    monkeypatch.setenv("XLA_FLAGS", "--here")
    flags = [Target("gpu", "--a --b", triton=triton).environment()["XLA_FLAGS"] for triton in (False, True)]
    assert flags == ["--a --b --here --xla_gpu_enable_triton_gemm=false", "--a --b --here"]
    assert Target("tpu").environment() == {}


def broken():
    raise RuntimeError("no such layer")


@pytest.mark.long
def test_what_the_compilers_process_said_is_shown_if_it_ends_without_a_result(capfd):
    with pytest.raises(UserError, match="ended without a result"):
        optimise(broken, target=Target("gpu"))
    assert "RuntimeError: no such layer" in capfd.readouterr().err


def test_a_program_for_another_gpu_or_with_other_flags_is_another_program(monkeypatch):
    mesh = Mesh(jax.devices()[:1], ("data",))
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    monkeypatch.setattr(program, "plugin_packages", lambda: ())
    found = [program._fingerprint(lowered, mesh, description) for description in ("", "one", "another")]
    monkeypatch.setenv("XLA_FLAGS", "--other")
    assert len({*found, program._fingerprint(lowered, mesh, "one")}) == 4


# In every process of a command, also in those that it starts: no plugin.
WITHOUT_PLUGIN = """
import sys
sys.modules |= {"jax_plugins.xla_cuda13": None, "jax_plugins.xla_cuda12": None}
"""


@pytest.fixture
def no_plugin(tmp_path, monkeypatch):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT_PLUGIN)
    return {"path": str(tmp_path / "without")}


@pytest.mark.long
def test_without_the_plugin_cpu_devices_stand_in(small, tmp_path, no_plugin):
    made = plan(small, "--launch", H100, "--no-passes", cache=tmp_path, **no_plugin)
    assert made["fits"] and made["stand_in"] and not made["machine_code"]
    assert made["flops"] == pytest.approx(made["analytic_flops"], rel=0.05)
    assert sent(made, "all-gather") > 0 and sent(made, "all-reduce") > 0
    assert made["reduced_whole"] is None and made["hbm_peak_bytes_by_triton"] is None
    assert made["generation"]["hbm_peak_bytes"] < made["hbm_peak_bytes"]
    assert made["generation"]["gathered_bytes"] == 0 and made["generation"]["tokens_per_second_bound"] > 0


@pytest.mark.slow
def test_stand_ins_for_gpus_keep_bfloat16(small, tmp_path, no_plugin):
    """XLA would turn bfloat16 into float32 for CPUs, and the bytes of a gather would be those of a float32 model."""
    where = small, "--launch", H100, *STEP_ALONE
    made = plan(*where, cache=tmp_path, **no_plugin)
    wide = plan(*where, "--set", "model.dtype=float32", cache=tmp_path, **no_plugin)
    assert sent(made, "all-gather") < 0.6 * sent(wide, "all-gather")


@needs_cuda_plugin
@pytest.mark.slow
@pytest.mark.parametrize("host", ["h100-8", "h200-8", "a100-8"])
def test_7b_fits_eight_gpus(host, tmp_path):
    made = plan(
        ROOT / "configs" / "mmdpo_llava_ov_7b.yaml", "--launch", ROOT / "launch" / f"{host}.yaml", *STEP, cache=tmp_path
    )
    check(made)
    assert made["reduced_whole"] == [] and made["uncounted_loops"] == 0
    assert made["flops"] == pytest.approx(made["analytic_flops"], rel=0.01)
