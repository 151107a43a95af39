"""What a step writes to memory is judged by its size: scores, whole logits, features of every tap, float32 copies are named."""

from __future__ import annotations

import gzip

import pytest

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.models.attention import kernels_gpu
from mmrlhf_jax.models.llava_onevision.published import published_config
from mmrlhf_jax.planning.hlo import Array, parse
from mmrlhf_jax.planning.lowering import step_arguments
from mmrlhf_jax.planning.spills import FLOAT32, Design, Size, design_of, spills
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from tests.cuda_plugin import needs_cuda_plugin
from tests.planning.planned import ROOT, STEP_ALONE, plan

SLOTS, WIDTH, MLP, VOCABULARY, CHUNK, TAPS, HEADS = 1000, 60, 300, 3000, 50, 4, 6
# A row of 1,000 slots, 60 wide, of a model with 6 heads of 10 and 12 layers.
DESIGN = Design(
    small=SLOTS * WIDTH,
    named={
        "MLP": Size(SLOTS * MLP, FLOAT32),
        "residuals of all layers": Size(12 * SLOTS * WIDTH, FLOAT32),
        "logits of a chunk": Size(CHUNK * VOCABULARY, FLOAT32),
        "gradient of a chunk's logits": Size(2 * CHUNK * VOCABULARY, 2),
        "vocabulary": Size(WIDTH * VOCABULARY, FLOAT32),
    },
    weights=frozenset({WIDTH * VOCABULARY}),
    taps=SLOTS * TAPS * WIDTH,
    heads=HEADS,
    vocabulary=frozenset({VOCABULARY}),
)


def written(result: str, operation: str = 'custom-call(%a), custom_call_target="made"', operand: str = "f32[8]") -> list[str]:
    return spills(parse(f"""HloModule test

ENTRY %main (a: {operand}) -> {result} {{
  %a = {operand} parameter(0)
  ROOT %r = {result} {operation}
}}
"""), DESIGN)  # fmt: skip


@pytest.mark.parametrize(
    ("array", "what"),
    [
        ("f32[6,1000,1000]", "as large as attention scores of 1000000 pairs a head"),
        ("bf16[2,3,128,1000]", "as large as attention scores of 128000 pairs a head"),
        ("pred[1,1000,1000]", "no array of the design"),
        ("f32[1,200,3000]", "logits of more targets than a chunk has"),
        ("bf16[1,1000,4,60]", "the features of every tap"),
        ("f32[1,1000,4,60]", "the features of every tap"),
        ("f32[3,50,3000]", "logits of more targets than a chunk has"),
    ],
)
def test_what_the_design_does_not_have_is_named(array, what):
    (found,) = written(array)
    assert found.endswith(f", {what})") and found.startswith(array.split("[")[0] + "[")


@pytest.mark.parametrize(
    "array",
    [
        "f32[1,1000,60]",
        "bf16[1,1000,300]",
        "bf16[1008,300]",  # padded to whole tiles
        "bf16[12,1,1000,60]",
        "f32[1,50,3000]",
        "bf16[1,100,3000]",
        "f32[60,3000]",
        "f32[6,100,100]",  # no more than the queries
    ],
)
def test_what_the_design_has_and_what_is_small_are_not(array):
    assert written(array) == []


def test_a_librarys_workspace_and_arrays_that_are_only_passed_on_are_not_judged():
    assert written("s8[4000000]") == []
    assert written("f32[6,1000,1000]", "bitcast(%a)", "f32[6000000]") == []
    assert written("(f32[6,1000,1000])", "tuple(%a)", "f32[6,1000,1000]") == []


FUSED = """HloModule test

%inside (p: ORIGIN[60,3000]) -> f32[60,3000] {
  %p = ORIGIN[60,3000] parameter(0)
  %b = ORIGIN[1,60,3000] bitcast(%p)
  %c = f32[1,60,3000] convert(%b)
  ROOT %n = f32[60,3000] bitcast(%c)
}

%body (t: (s32[], ORIGIN[60,3000])) -> (s32[], ORIGIN[60,3000]) {
  %t = (s32[], ORIGIN[60,3000]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %w = ORIGIN[60,3000] get-tuple-element(%t), index=1
  %copy = f32[60,3000] fusion(%w), kind=kLoop, calls=%inside
  ROOT %next = (s32[], ORIGIN[60,3000]) tuple(%i, %w)
}

%condition (t: (s32[], ORIGIN[60,3000])) -> pred[] {
  %t = (s32[], ORIGIN[60,3000]) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (a: (s32[], ORIGIN[60,3000])) -> (s32[], ORIGIN[60,3000]) {
  %a = (s32[], ORIGIN[60,3000]) parameter(0)
  ROOT %loop = (s32[], ORIGIN[60,3000]) while(%a), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(("origin", "count"), [("bf16", 1), ("f32", 0), ("s32", 0)])
def test_a_float32_copy_of_bfloat16_weights_is_one_although_a_gradient_has_its_size(origin, count):
    found = spills(parse(FUSED.replace("ORIGIN", origin)), DESIGN)
    assert found == ["f32[60, 3000] (0.00 GiB, a float32 copy of weights)"] * count


def test_what_is_inside_a_fusion_is_not_written():
    inside = "ENTRY %main (a: f32[8]) -> f32[8] {\n  %a = f32[8] parameter(0)\n  ROOT %r = f32[8] fusion(%a), calls=%i\n}\n"
    text = "HloModule test\n\n%i (p: f32[8]) -> f32[8] {\n  %p = f32[8] parameter(0)\n  %s = f32[6,1000,1000] iota()\n"
    assert spills(parse(f"{text}  ROOT %o = f32[8] copy(%p)\n}}\n\n{inside}"), DESIGN) == []


def test_the_largest_comes_first_and_each_shape_once():
    text = """HloModule test

ENTRY %main (a: f32[8]) -> f32[6,1000,1000] {
  %a = f32[8] parameter(0)
  %s = bf16[6,500,1000] copy(%a)
  %t = bf16[6,500,1000] copy(%s)
  ROOT %r = f32[6,1000,1000] copy(%t)
}
"""
    found = spills(parse(text), DESIGN)
    assert [each.split(" ")[0] for each in found] == ["f32[6,", "bf16[6,"] and len(found) == 2


def seven_b(remat: str = "full", **batch) -> Design:
    """The design of MM-DPO of the 7B model on one device."""
    sizes = dict(rows=1, accumulation=1, slots=8192, tiles=20, visual=9000, targets=3000, responses=16, pairs=16)
    experiment = config.Experiment(
        model=config.Model(path="published", dtype="bfloat16", remat=remat),
        data=config.Data(path="none"),
        objective=config.Preference(),
        trains=config.Trains(vision_tower=False),
        batch=config.Batch(**sizes | batch),
        run=config.Run(directory="none"),
    )
    model, mesh = published_config("llava-onevision-qwen2-7b-ov"), make_mesh({})
    with use_mesh(mesh):
        _, state, _ = step_arguments(experiment, model, mesh)
    return design_of(model, experiment, state, mesh)


@pytest.mark.parametrize("slots", [8192, 16384])
def test_the_7b_models_design_has_its_activations_and_no_scores(slots):
    design = seven_b(slots=slots)

    def has(dtype: str, *shape: int) -> bool:
        return design.has(Array(dtype, shape))

    assert has("bf16", 28, 1, slots, 3584) and has("bf16", slots, 18944) and has("bf16", 1, slots, 2 * 18944)
    assert has("f32", 256, 152128) and has("bf16", 1, 512, 152128) and not has("f32", 1, 512, 152128)
    assert has("f32", 3584, 152128) and has("bf16", 3584, 18944) and has("f32", 28, 18944, 3584)
    assert has("bf16", 20 * 729, 4304) and has("bf16", 1, 9000, 3584) and not has("bf16", 1, 9000, 4, 3584)
    assert not any(has("f32", 28, block, slots) for block in (256, 512, 1024, slots))
    assert not any(has("bf16", 28, block, slots) for block in (256, 512, 1024, slots)) and not has("bf16", 1, slots, slots)
    assert not has("f32", 20, 16, 729, 729) and not has("f32", 1, 3000, 152128) and not has("pred", slots, slots)


def test_the_mlp_of_all_layers_is_kept_only_where_it_is_not_rematerialised():
    products = Array("bf16", (28, 1, 8192, 18944))
    assert not seven_b().has(products) and seven_b("dots").has(products) and seven_b("none").has(products)


H100 = ROOT / "launch" / "h100-8.yaml"
SEVEN_B = (ROOT / "configs" / "mmdpo_llava_ov_7b.yaml", "--launch", H100, "--quick", *STEP_ALONE)


@needs_cuda_plugin
@pytest.mark.long
@pytest.mark.parametrize("slots", [8192, 16384])
def test_the_7b_step_has_the_kernels_and_writes_nothing_that_the_design_does_not_have(slots, tmp_path):
    made = plan(*SEVEN_B, "--set", f"batch.slots={slots}", cache=tmp_path)
    assert not made["stand_in"] and made["spilled"] == []
    (kept,) = (tmp_path / "mmrlhf_jax" / "programs").iterdir()
    text = strict_json.loads(gzip.decompress(kept.read_bytes()))["text"]
    calls = [line for line in text.splitlines() if 'custom_call_target="__gpu$xla.gpu.triton"' in line]
    for kernel in (kernels_gpu.attention_forward, kernels_gpu.attention_queries_gradient, kernels_gpu.attention_keys_gradient):
        assert any(f'name = "{kernel.__name__}"' in call for call in calls)


@needs_cuda_plugin
@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "mesh"),
    [
        ("internvl2_1b", "fsdp: 2, tensor: 2, context: 2"),  # whose vocabulary is odd
        ("llava_ov_0.5b", "fsdp: 4, tensor: 2"),
        ("llava_ov_0.5b", "fsdp: 2, context: 4"),  # which does not divide its key/value heads
    ],
)
def test_what_every_device_of_a_mesh_has_is_of_the_design(model, mesh, tmp_path):
    launch = tmp_path / "launch.yaml"
    launch.write_text(H100.read_text().replace("mesh: {fsdp: 8}", f"mesh: {{{mesh}}}"))
    made = plan(ROOT / "configs" / f"mmdpo_{model}.yaml", "--launch", launch, "--quick", *STEP_ALONE, cache=tmp_path)
    assert not made["stand_in"] and made["spilled"] == [] and made["mesh"]["fsdp"] < 8


@needs_cuda_plugin
@pytest.mark.slow
def test_attention_without_the_kernels_writes_its_scores(tmp_path):
    made = plan(*SEVEN_B, "--set", "batch.slots=8192", "--set", "model.attention=xla", cache=tmp_path)
    assert made["spilled"][0] == "f32[4, 4, 7, 512, 8192] (1.75 GiB, as large as attention scores of 4194304 pairs a head)"
