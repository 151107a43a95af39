"""The train step compiled for pods that are not here: it fits, scatters its gradients and gathers no activation.

By libtpu, whose compiler runs on any machine. Most programs are compiled without their machine code.
"""

from __future__ import annotations

import importlib.util
import json
import resource

import pytest

from mmrlhf_jax.models.llava_onevision.published import published_config
from mmrlhf_jax.models.registry import DEFAULT
from tests import tiny
from tests.families import by_default
from tests.planning.planned import ROOT, STEP_ALONE, check, longest_part, plan, write_small

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (`pip install libtpu`)")


@pytest.fixture
def small(tmp_path, family):
    return write_small(tmp_path, family)


@pytest.fixture
def family():
    """Of the small model, where a test does not say another."""
    return DEFAULT


def cpu_seconds() -> float:
    """Of all commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@needs_libtpu
@pytest.mark.parametrize("family", by_default(DEFAULT))
@pytest.mark.long
def test_a_small_model_on_a_pod(small, tmp_path):
    """Attention's kernels are counted too. At this size some small gradients are still summed whole."""
    made = plan(small, "--launch", ROOT / "launch" / "v5e-16.yaml", "--quick", *STEP_ALONE, cache=tmp_path)
    check(made)
    assert made["skipped_flops"] > 0 and not made["machine_code"]


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

PATCHES = ("mmdpo_qwen2_5_vl_7b", "mmdpo_qwen3_vl_8b")
FITTING += [(name, pod) for name in PATCHES for pod in ("v5e-64", "v5p-32", "v6e-32")]
FITTING += [(name, "v5e-64") for name in ("reward_qwen2_5_vl_7b", "reward_qwen3_vl_8b")]


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("experiment", "launch"), FITTING)
def test_published_experiments_fit(experiment, launch, tmp_path):
    files = ROOT / "configs" / f"{experiment}.yaml", "--launch", ROOT / "launch" / f"{launch}.yaml"
    made = plan(*files, "--quick", "--no-generation", cache=tmp_path)
    check(made)
    assert made["reduced_whole"] == []
    assert made["budget"]["slots"] >= 8192


LARGE = ("Qwen2.5-VL-32B", "Qwen2.5-VL-72B", "Qwen3-VL-32B")


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("model", "launch"), [(name, pod) for name in LARGE for pod in ("v5p-128", "v6e-256")])
def test_the_largest_models_of_patches_fit_listed_pods(model, launch, tmp_path):
    experiment = "mmdpo_qwen2_5_vl_7b" if "2.5" in model else "mmdpo_qwen3_vl_8b"
    files = ROOT / "configs" / f"{experiment}.yaml", "--launch", ROOT / "launch" / f"{launch}.yaml"
    made = plan(*files, "--set", f"model.path=Qwen/{model}-Instruct", "--quick", "--no-generation", cache=tmp_path)
    check(made)
    assert made["reduced_whole"] == []


@pytest.mark.slow
@needs_libtpu
def test_a_number_of_blocks_that_the_devices_of_context_do_not_share_evenly_is_filled_up(tmp_path):
    files = ROOT / "configs" / "mmdpo_qwen3_vl_8b.yaml", "--launch", ROOT / "launch" / "v5e-64.yaml"
    even, odd = (
        plan(*files, "--set", f"batch.tiles={tiles}", "--quick", "--no-generation", cache=tmp_path) for tiles in (12676, 12675)
    )
    for made in (even, odd):
        check(made)
        assert made["reduced_whole"] == []
    assert odd["hbm_peak_bytes"] == pytest.approx(even["hbm_peak_bytes"], rel=1e-2)


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
