"""A PEFT adapter becomes a model with its update in it, or is refused by the setting that a merged model cannot express."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.export import export_checkpoint
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.training.trained import export_run
from tests import tiny

Q, UP = "model.language_model.layers.1.self_attn.q_proj", "model.multi_modal_projector.linear_1"
OTHER = "language_model.model.layers.1.self_attn.q_proj"  # Q in another spelling
RNG = np.random.default_rng(0)
TENSORS = {
    f"base_model.model.{Q}.lora_A.weight": RNG.normal(size=(4, 48)).astype(np.float32),
    f"base_model.model.{Q}.lora_B.weight": RNG.normal(size=(48, 4)).astype(np.float32),
    f"base_model.model.{UP}.lora_A.weight": RNG.normal(size=(2, 36)).astype(np.float32),
    f"base_model.model.{UP}.lora_B.weight": RNG.normal(size=(48, 2)).astype(np.float32),
}
SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj", "linear_1"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("base"))


def adapter(folder, base, tensors=TENSORS, **settings):
    folder.mkdir()
    settings = SETTINGS | {"base_model_name_or_path": str(base)} | settings
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merged(folder, base, tmp_path, **options) -> dict[str, np.ndarray]:
    """What has changed of the base's tensors."""
    export_checkpoint(folder, tmp_path / "out", **options)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    return {name: after[name] - before[name] for name in before if not np.array_equal(before[name], after[name])}


def product(module: str) -> np.ndarray:
    return TENSORS[f"base_model.model.{module}.lora_B.weight"] @ TENSORS[f"base_model.model.{module}.lora_A.weight"]


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({}, (6 / 4, 6 / 2)),
        ({"use_rslora": True}, (6 / 4**0.5, 6 / 2**0.5)),
        ({"alpha_pattern": {"linear_1": 5}, "rank_pattern": {"linear_1": 2}}, (6 / 4, 5 / 2)),
        ({"alpha_pattern": {r"layers\.\d+\.self_attn\.q_proj": 8}}, (8 / 4, 6 / 2)),
        ({"init_lora_weights": "gaussian", "lora_dropout": 0.1}, (6 / 4, 6 / 2)),
    ],
)
def test_the_merged_model_has_the_updates_of_its_adapter_and_no_others(base, tmp_path, settings, scales):
    changes = merged(adapter(tmp_path / "adapter", base, **settings), base, tmp_path)
    assert changes.keys() == {f"{Q}.weight", f"{UP}.weight"}
    for module, scale in zip((Q, UP), scales, strict=True):
        np.testing.assert_allclose(changes[f"{module}.weight"], scale * product(module), atol=1e-5)


@pytest.mark.parametrize("spelling", ["original", "legacy"])
def test_an_adapter_is_merged_into_a_base_of_another_naming(tmp_path, spelling):
    """The tensors mean the same, however either spells them."""
    base = tiny.checkpoint(tmp_path / "base", naming=spelling)
    changes = merged(adapter(tmp_path / "adapter", base), base, tmp_path, naming="original" if spelling == "original" else "hf")
    names = {
        "original": ("model.layers.1.self_attn.q_proj.weight", "model.mm_projector.0.weight"),
        "legacy": ("language_model.model.layers.1.self_attn.q_proj.weight", "multi_modal_projector.linear_1.weight"),
    }[spelling]
    assert set(changes) == set(names)
    np.testing.assert_allclose(changes[names[0]], 1.5 * product(Q), atol=1e-5)


def test_modules_and_biases_that_the_adapter_stores_as_a_whole_take_the_place_of_the_bases(base, tmp_path):
    norm, bias = np.full(48, 3, np.float32), np.full(48, 5, np.float32)
    whole = {
        "base_model.model.model.language_model.norm.modules_to_save.default.weight": norm,
        f"base_model.model.{Q}.base_layer.bias": bias,
    }
    folder = adapter(tmp_path / "adapter", base, TENSORS | whole, bias="lora_only", modules_to_save=["norm"])
    assert merged(folder, base, tmp_path).keys() == {
        f"{Q}.weight",
        f"{UP}.weight",
        f"{Q}.bias",
        "model.language_model.norm.weight",
    }
    out = load_file(tmp_path / "out/model.safetensors")
    np.testing.assert_array_equal(out["model.language_model.norm.weight"], norm)
    np.testing.assert_array_equal(out[f"{Q}.bias"], bias)


def test_the_merged_directory_is_a_model_with_the_bases_tokenizer_in_the_bases_dtype(tmp_path):
    base = tiny.checkpoint(tmp_path / "base", dtype=tiny.BFLOAT16)
    export_run(str(adapter(tmp_path / "adapter", base)), str(tmp_path / "out"))
    assert {value.dtype for value in load_file(tmp_path / "out/model.safetensors").values()} == {tiny.BFLOAT16}
    tiny.on_one_device(tmp_path / "out")
    load_tokenizer(tmp_path / "out")


# Refusals


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_adapter_as_the_model_names_the_command_that_makes_one_of_it(base, tmp_path):
    folder = adapter(tmp_path / "adapter", base)
    for load in (local_directory, load_tokenizer, tiny.on_one_device):
        message = refusal(load, folder)
        assert message.startswith(
            f"{folder}: a PEFT adapter, not a model: `mmrlhf export {folder} OUT` merges it into its base"
        )


def test_a_directory_with_a_model_and_an_adapter_is_neither(tmp_path):
    base = tiny.checkpoint(tmp_path / "base")
    (base / "adapter_config.json").write_text(json.dumps(SETTINGS))
    assert "holds a model and a PEFT adapter" in refusal(local_directory, base)
    assert "holds a model and a PEFT adapter" in refusal(export_checkpoint, base, tmp_path / "out")


def test_a_run_as_the_model_names_the_command_as_well(tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").touch()
    assert "a run, not a model: `mmrlhf export" in refusal(local_directory, tmp_path / "run")


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "IA3"},
        {"use_dora": True},
        {"fan_in_fan_out": True},
        {"init_lora_weights": "pissa"},
        {"lora_bias": True},
        {"trainable_token_indices": [1]},
        {"lora_alpha": None},
        {"lora_alpha": "16"},
        {"lora_alpha": True},
        {"lora_alpha": 1e39},
        {"alpha_pattern": {"q_proj": "8"}},
        {"alpha_pattern": {"q_proj": True}},
        {"alpha_pattern": {"q_proj": 1e39}},
        {"alpha_pattern": {"q_(proj": 8}},
        {"alpha_pattern": ["q_proj"]},
        {"base_model_name_or_path": None},
        {"base_model_name_or_path": "/nowhere"},
    ],
)
def test_what_a_merged_model_cannot_express_is_refused_by_its_setting(base, tmp_path, settings):
    message = refusal(export_checkpoint, adapter(tmp_path / "adapter", base, **settings), tmp_path / "out")
    assert f"adapter_config.json: {next(iter(settings))}" in message or "names no base_model_name_or_path" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({f"base_model.model.{Q}.lora_A.weight": np.zeros((4, 47), np.float32)}, "A and B of"),
        ({f"base_model.model.{Q}.lora_magnitude_vector": np.zeros(48, np.float32)}, "belongs to no tensor"),
        ({"base_model.model.lm_head.lora_A.weight": np.zeros((4, 48), np.float32)}, "belongs to no tensor"),  # tied base
        ({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": np.zeros((4, 48), np.float32)}, "belongs to no tensor"),
        ({"base_model.model.model.language_model.norm.weight": np.zeros(47, np.float32)}, "the base has (48,)"),
        ({f"base_model.model.{Q}.lora_A.weight": np.full((4, 48), np.nan, np.float32)}, f"{Q}.lora_A.weight holds NaN"),
        ({f"base_model.model.{Q}.lora_A.weight": np.ones((4, 48), np.int32)}, "is int32; weights must be one of"),
        # Twice, of which one would be lost: in another spelling, and beside the whole.
        ({f"base_model.model.{OTHER}.lora_A.weight": np.ones((4, 48), np.float32)}, "both say what becomes of"),
        ({f"base_model.model.{Q}.modules_to_save.default.weight": np.ones((48, 48), np.float32)}, "both say what becomes of"),
    ],
)
def test_tensors_that_do_not_fit_the_base_are_refused_by_name(base, tmp_path, changes, complaint):
    assert complaint in refusal(export_checkpoint, adapter(tmp_path / "adapter", base, TENSORS | changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_update_of_rank_0_is_refused(base, tmp_path):
    none = {name: value[:0] if "lora_A" in name else value[:, :0] for name, value in TENSORS.items()}
    assert "A and B of" in refusal(export_checkpoint, adapter(tmp_path / "adapter", base, none), tmp_path / "out")


@pytest.mark.parametrize(
    "tensors",
    [
        {"lm_head.lora_A.weight": np.ones((4, 48), np.float32), "lm_head.lora_B.weight": np.ones((264, 4), np.float32)},
        {"lm_head.modules_to_save.default.weight": np.ones((264, 48), np.float32)},
        {"model.language_model.embed_tokens.modules_to_save.default.weight": np.ones((264, 48), np.float32)},
    ],
)
def test_a_change_of_one_of_two_tied_tensors_is_refused_also_where_both_are_stored(tmp_path, tensors):
    """PEFT would leave the other one as it is; a merged model that is still called tied has one array for both."""
    base = tiny.checkpoint(tmp_path / "base")
    stored = load_file(base / "model.safetensors")
    projection = {"lm_head.weight": stored["model.language_model.embed_tokens.weight"]}
    save_file(stored | projection, base / "model.safetensors", metadata={"format": "pt"})
    folder = adapter(tmp_path / "adapter", base, {f"base_model.model.{name}": value for name, value in tensors.items()})
    message = refusal(export_checkpoint, folder, tmp_path / "out")
    assert next(iter(tensors)) in message and "tie_word_embeddings" in message
    assert not (tmp_path / "out").exists()


def test_what_only_a_run_has_is_not_asked_of_a_model_or_an_adapter(base, tmp_path):
    for source in (base, adapter(tmp_path / "adapter", base)):
        for options, option in (({"step": 3}, "--step"), ({"step": "best"}, "--step"), ({"adapter": True}, "--adapter")):
            message = refusal(lambda options=options, source=source: export_run(str(source), str(tmp_path / "out"), **options))
            assert option in message and "this is not a run directory" in message


def test_half_an_update_or_none_is_refused(base, tmp_path):
    half = {name: value for name, value in TENSORS.items() if "lora_A" in name}
    assert "A and B of" in refusal(export_checkpoint, adapter(tmp_path / "half", base, half), tmp_path / "out")
    assert "holds no tensors" in refusal(export_checkpoint, adapter(tmp_path / "none", base, {}), tmp_path / "out")
    (tmp_path / "none/adapter_model.safetensors").rename(tmp_path / "none/adapter_model.bin")
    assert "there is adapter_model.bin; save it as safetensors" in refusal(
        export_checkpoint, tmp_path / "none", tmp_path / "out"
    )


@pytest.mark.parametrize(
    ("stored", "asked", "rounded"),
    [
        (np.float32, None, None),
        (tiny.BFLOAT16, None, "bfloat16, as the base model is stored."),
        (np.float16, None, "float16, as the base model is stored."),
        (np.float32, "bfloat16", "bfloat16."),
        (tiny.BFLOAT16, "float32", None),
    ],
)
def test_what_a_dtype_rounds_of_an_adapters_updates_is_said(tmp_path, capsys, stored, asked, rounded):
    base = tiny.checkpoint(tmp_path / "base", dtype=stored)
    export_run(str(adapter(tmp_path / "adapter", base)), str(tmp_path / "out"), dtype=asked)
    said = [line for line in capsys.readouterr().err.splitlines() if "rounded" in line]
    assert len(said) == (rounded is not None)
    assert not said or f"the updates of the adapter are rounded to {rounded} Small updates are lost by this rounding" in said[0]


def test_modules_that_an_adapter_stores_as_the_base_does_are_not_rounded(tmp_path, capsys):
    base = tiny.checkpoint(tmp_path / "base", dtype=tiny.BFLOAT16)
    whole = {"base_model.model.model.language_model.norm.modules_to_save.default.weight": np.full(48, 3, tiny.BFLOAT16)}
    export_run(str(adapter(tmp_path / "adapter", base, whole)), str(tmp_path / "out"))
    assert "rounded" not in capsys.readouterr().err
