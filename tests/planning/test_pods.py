"""The train step compiled for pods that are not here: it fits, scatters its gradients and gathers no activation.

For TPUs by libtpu, whose compiler runs on any machine; for GPUs by CPU devices in their place. Most programs are compiled
without their machine code.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mmrlhf_jax.models.llava_onevision.published import published_config
from mmrlhf_jax.models.registry import DEFAULT
from tests import tiny
from tests.families import FAMILIES, by_default

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (`pip install libtpu`)")

ROOT = Path(__file__).parents[2]
SMALL = """
model: {path: MODEL, dtype: bfloat16, param_dtype: float32}
data: {path: not there, video_frames: 1}
objective: {kind: preference}
trains: {vision_tower: false}
batch: {rows: 16, slots: 8192}
run: {directory: not made}
"""
COMMAND = "from mmrlhf_jax.cli import main; main()"
STEP_ALONE = ("--no-generation", "--no-passes")


def plan(*arguments: str | Path, cache: Path) -> dict:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)  # the tests' own flags are for CPUs: libtpu ends at those that it does not know
    command = [sys.executable, "-c", COMMAND, "plan", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture
def small(tmp_path, family):
    """Matrices of megabytes and tiles of the published size; of weights there are none."""
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 2}
    tower = {"hidden_size": 144, "intermediate_size": 288, "num_attention_heads": 2, "num_hidden_layers": 3}
    (tmp_path / "model").mkdir()
    published = FAMILIES[family].PUBLISHED_GEOMETRY
    parts = {"text": text | {"vocab_size": 4096, "tie_word_embeddings": False}, "vision": published["vision"] | tower}
    (tmp_path / "model" / "config.json").write_text(json.dumps(FAMILIES[family].config(**published | parts)))
    (tmp_path / "small.yaml").write_text(SMALL.replace("MODEL", str(tmp_path / "model")))
    return tmp_path / "small.yaml"


@pytest.fixture
def family():
    """Of the small model, where a test does not say another."""
    return DEFAULT


def cpu_seconds() -> float:
    """Of all commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check(made: dict) -> None:
    """What holds for every plan of a pod."""
    assert made["fits"] and made["hbm_peak_bytes"] < made["hbm_capacity_bytes"]
    assert made["flops"] == pytest.approx(made["analytic_flops"], rel=0.05)
    assert made["gathered_activations"] == []
    assert 0 < sent(made, "all-reduce") < sent(made, "reduce-scatter") / 2


def longest_part(roofline: dict) -> float:
    return max(roofline[f"{part}_seconds"] for part in ("compute", "hbm", "interconnect"))


def sent(made: dict, kind: str) -> int:
    return sum(each["bytes"] for each in made["collectives"] if each["kind"] == kind and "fsdp" in each["axis"])


@needs_libtpu
@pytest.mark.parametrize("family", by_default(DEFAULT))
@pytest.mark.long
def test_a_small_model_on_a_pod(small, tmp_path):
    """Attention's kernels are counted too. At this size some small gradients are still summed whole."""
    made = plan(small, "--launch", ROOT / "launch" / "v5e-16.yaml", "--quick", *STEP_ALONE, cache=tmp_path)
    check(made)
    assert made["skipped_flops"] > 0 and not made["machine_code"]


@pytest.mark.long
def test_gpus_are_planned_by_stand_ins(small, tmp_path):
    made = plan(small, "--launch", ROOT / "launch" / "h100-8.yaml", "--no-passes", cache=tmp_path)
    assert made["fits"] and made["stand_in"] and not made["machine_code"]
    assert made["flops"] == pytest.approx(made["analytic_flops"], rel=0.05)
    assert sent(made, "all-gather") > 0 and sent(made, "all-reduce") > 0
    assert made["generation"]["hbm_peak_bytes"] < made["hbm_peak_bytes"]
    assert made["generation"]["gathered_bytes"] == 0 and made["generation"]["tokens_per_second_bound"] > 0


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("pod", "hosts", "tensor"), [("v5e-16", 4, 2), ("v6e-16", 4, 1), ("h100-8", 1, 1)])
def test_a_token_of_the_7b_model_gathers_no_weights(tmp_path, pod, hosts, tensor):
    """A step reads the weights of its chip once, which bounds the tokens/s; over `tensor` it gathers its logits."""
    files = ROOT / "configs" / "reward_llava_ov_7b.yaml", "--launch", ROOT / "launch" / f"{pod}.yaml"
    made = plan(*files, "--quick", "--no-passes", cache=tmp_path)["generation"]
    assert made["hosts"] == hosts and made["mesh"]["tensor"] == tensor and made["gathered_bytes"] == 0
    assert made["roofline"]["bound"] == "hbm" and made["roofline"]["hbm_seconds"] > 15e9 / tensor / 3.4e12
    assert made["tokens_per_second_bound"] == pytest.approx(
        hosts * made["sequences_per_host"] / longest_part(made["roofline"]), rel=1e-6
    )
    gathered = [each for each in made["collectives"] if each["kind"] == "all-gather"]
    assert sum(each["bytes"] for each in gathered) <= made["logits_bytes"]


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("pod", ["v5e-16", "v5p-32", "v6e-16"])
def test_generation_on_one_host_is_compiled_to_machine_code(small, tmp_path, pod):
    """libtpu makes none for some devices of a larger topology."""
    made = plan(small, "--launch", ROOT / "launch" / f"{pod}.yaml", "--no-passes", cache=tmp_path)
    assert made["machine_code"] and made["generation"]["hbm_peak_bytes"] > 0 and made["generation"]["hosts"] > 1


@pytest.mark.slow
def test_stand_ins_for_gpus_keep_bfloat16(small, tmp_path):
    """XLA would turn bfloat16 into float32 for CPUs, and the bytes of a gather would be those of a float32 model."""
    where = small, "--launch", ROOT / "launch" / "h100-8.yaml", *STEP_ALONE
    made = plan(*where, cache=tmp_path)
    wide = plan(*where, "--set", "model.dtype=float32", cache=tmp_path)
    assert sent(made, "all-gather") < 0.6 * sent(wide, "all-gather")


@pytest.mark.slow
@needs_libtpu
def test_stopping_before_machine_code_changes_no_figure(small, tmp_path):
    where = small, "--launch", ROOT / "launch" / "v5e-16.yaml", *STEP_ALONE
    whole, stopped = plan(*where, cache=tmp_path / "whole"), plan(*where, "--quick", cache=tmp_path / "stopped")
    assert whole.pop("machine_code") and not stopped.pop("machine_code")
    assert stopped.pop("compile_seconds") < whole.pop("compile_seconds")
    # The code itself lies in memory, too: buffers are then laid out anew.
    for memory in ("hbm", "hbm_peak_bytes"):
        assert stopped.pop(memory) == pytest.approx(whole.pop(memory), rel=2e-3)
    assert stopped == whole


FITTING = [(name, pod) for name in ("mmdpo_llava_ov_7b", "reward_llava_ov_7b") for pod in ("v5e-64", "v5p-32", "v6e-32")]
INTERNVL = ("mmdpo_internvl2_1b", "mmdpo_internvl3_8b", "reward_internvl3_8b")
FITTING += [(name, pod) for name in INTERNVL for pod in ("v5p-32", "v6e-32")]


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("experiment", "launch"), FITTING)
def test_published_experiments_fit(experiment, launch, tmp_path):
    files = ROOT / "configs" / f"{experiment}.yaml", "--launch", ROOT / "launch" / f"{launch}.yaml"
    made = plan(*files, "--quick", "--no-generation", cache=tmp_path)
    check(made)
    assert made["reduced_whole"] == []
    assert made["budget"]["slots"] >= 8192


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("launch", ["v5p-128", "v6e-256"])
def test_72b_fits_a_listed_pod(launch, tmp_path):
    """On v6e-256 with `tensor` and `context` both: heads and slots change places in the backward pass too, and `tensor` lies
    between the axes that gradients are scattered over. There the projector's are still summed whole, once a step."""
    files = ROOT / "configs" / "mmdpo_llava_ov_72b.yaml", "--launch", ROOT / "launch" / f"{launch}.yaml"
    made = plan(*files, "--quick", "--no-generation", cache=tmp_path)
    check(made)
    projector = {"f32[8192, 8192] over fsdp+context", "f32[1152, 8192] over fsdp+context"}
    assert set(made["reduced_whole"]) <= (projector if launch == "v6e-256" else set())


@pytest.mark.slow
@needs_libtpu
def test_compile_time_does_not_grow_with_depth(tmp_path):
    """The 7B shape with 28 and with 56 layers, from lowering to machine code: they are stacked, and scanned. In the processor's
    time: the clock's depends on what else runs."""
    sizes, seconds = published_config("llava-onevision-qwen2-7b-ov"), []
    for layers in (28, 56):
        text = {"hidden_size": sizes.text.hidden_size, "intermediate_size": sizes.text.intermediate_size}
        text |= {"num_attention_heads": sizes.text.heads, "num_key_value_heads": sizes.text.kv_heads}
        text |= {"vocab_size": sizes.text.vocab_size, "num_hidden_layers": layers, "tie_word_embeddings": False}
        tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}
        pinpoints = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
        raw = tiny.config(text=text, vision=tower | {"image_size": 384, "patch_size": 14}, image_grid_pinpoints=pinpoints)
        (tmp_path / str(layers)).mkdir()
        (tmp_path / str(layers) / "config.json").write_text(json.dumps(raw))
        files = ROOT / "configs" / "mmdpo_llava_ov_7b.yaml", "--launch", ROOT / "launch" / "v5p-32.yaml"
        overrides = "--set", f"model.path={tmp_path / str(layers)}"
        before = cpu_seconds()
        made = plan(*files, *overrides, "--no-generation", cache=tmp_path)
        assert made["machine_code"] and made["fits"]
        seconds.append(cpu_seconds() - before)
    assert seconds[1] <= 1.3 * seconds[0]
