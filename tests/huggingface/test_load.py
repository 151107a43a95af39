"""What is loaded is the checkpoint that was named, whatever its spelling; what is no such checkpoint is said in one line."""

import json
import os
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.model_config import read_config
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.models.llava_onevision.config import config_from_hf
from mmrlhf_jax.models.llava_onevision.vision_plan import plan_image
from tests import tiny
from tests.families import FAMILIES


def parameters(model) -> dict[tuple, np.ndarray]:
    return {path: np.asarray(variable.get_value()) for path, variable in nnx.to_flat_state(nnx.state(model))}


def rewrite(directory, change) -> None:
    """Change the tensors of a single-file checkpoint."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def reconfigure(directory, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(directory, **load) -> str:
    """The message of the UserError that loading raises; every one is a single line."""
    with pytest.raises(UserError) as error:
        tiny.on_one_device(directory, **load)
    assert "\n" not in str(error.value)
    return str(error.value)


# Spellings


@pytest.mark.parametrize("naming", ["legacy", "saved", "original"])
def test_every_naming_of_the_same_weights_is_the_same_model(tmp_path, naming):
    expected = parameters(tiny.model(tmp_path / "hf"))
    twin = parameters(tiny.on_one_device(tiny.checkpoint(tmp_path / naming, naming=naming)))
    assert expected.keys() == twin.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(value, twin[path], err_msg=str(path))


def test_the_original_naming_gives_the_same_config_except_for_its_own_pixel_statistics(tmp_path):
    hf = tiny.model(tmp_path / "hf").config
    twin = tiny.on_one_device(tiny.checkpoint(tmp_path / "original", naming="original")).config
    assert twin.text == hf.text
    assert twin.geometry.pinpoints == hf.geometry.pinpoints
    assert twin.vision.image_mean == twin.vision.image_std == (0.5, 0.5, 0.5)
    for field in ("hidden_size", "intermediate_size", "layers", "heads", "image_size", "patch_size", "feature_layers"):
        assert getattr(twin.vision, field) == getattr(hf.vision, field), field


def test_shards_are_read_through_their_index(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    expected = parameters(tiny.on_one_device(directory))
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for filename, part in shards.items():
        save_file({name: tensors[name] for name in part}, directory / filename)
    index = {"metadata": {}, "weight_map": {name: filename for filename, part in shards.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = parameters(tiny.on_one_device(directory))
    assert all(np.array_equal(expected[path], sharded[path]) for path in expected)

    (directory / "b.safetensors").unlink()
    assert "1 of 2 weight files are missing, first b.safetensors" in refusal(directory)


@pytest.mark.parametrize("dtype", [tiny.BFLOAT16, np.dtype(np.float16)])
def test_stored_half_precision_reaches_float32_parameters_exactly(tmp_path, dtype):
    directory = tiny.checkpoint(tmp_path, dtype=dtype)
    model = tiny.on_one_device(directory)
    stored = load_file(directory / "model.safetensors")["model.language_model.layers.1.mlp.up_proj.weight"]
    kernel = np.asarray(model.language.layers.mlp.up.kernel[...])[1]
    assert stored.dtype == dtype and kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, stored.astype(np.float32).T)


def test_parameters_take_the_dtype_asked_for(tmp_path):
    model = tiny.model(tmp_path, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert {value.dtype for value in parameters(model).values()} == {tiny.BFLOAT16}


# Tied embeddings


def test_a_tied_checkpoint_may_store_the_projection_once_more(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    expected = parameters(tiny.on_one_device(directory))
    rewrite(directory, lambda t: t.update({"lm_head.weight": t["model.language_model.embed_tokens.weight"]}))
    model = tiny.on_one_device(directory)
    assert model.config.text.tied
    assert parameters(model).keys() == expected.keys()


def test_a_tied_config_with_another_projection_is_loaded_untied_as_transformers_does(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    rewrite(directory, lambda t: t.update({"lm_head.weight": 2 * t["model.language_model.embed_tokens.weight"]}))
    model = tiny.on_one_device(directory)
    assert not model.config.text.tied
    np.testing.assert_array_equal(model.language.head.kernel[...], 2 * model.language.embedding.embedding[...].T)


def test_tying_may_be_said_in_the_text_config_alone(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    reconfigure(directory, tie_word_embeddings=False)
    assert tiny.on_one_device(directory).config.text.tied


def test_an_untied_checkpoint_without_its_projection_is_refused(tmp_path):
    directory = tiny.checkpoint(tmp_path, tiny.config(text={"tie_word_embeddings": False}))
    rewrite(directory, lambda t: t.pop("lm_head.weight"))
    assert "1 tensors missing (language_model.lm_head.weight)" in refusal(directory)


# Reward heads


@pytest.mark.parametrize("naming", ["hf", "original"])
def test_upstreams_reward_head_is_found_by_its_tensors(tmp_path, naming):
    directory = tiny.checkpoint(tmp_path, naming=naming, reward_head=True)
    model = tiny.on_one_device(directory)
    stored = load_file(directory / "model.safetensors")
    hidden = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
    dense = np.tanh(hidden @ stored["rm_head.dense.weight"].T + stored["rm_head.dense.bias"])
    expected = dense @ stored["rm_head.out_proj.weight"].T + stored["rm_head.out_proj.bias"]
    assert model.config.reward_head == "tanh"
    np.testing.assert_allclose(model.reward_head(jnp.asarray(hidden)), expected[:, 0], atol=1e-6)


def test_a_fresh_reward_head_is_drawn_as_pytorch_draws_linear_layers(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    head = tiny.on_one_device(directory, reward_head="tanh", seed=3).reward_head
    bound = 48**-0.5
    for value in (head.dense.kernel[...], head.dense.bias[...], head.out.kernel[...]):
        assert 0.8 * bound < np.abs(value).max() <= bound
        assert abs(float(value.mean())) < 0.3 * bound
    again = tiny.on_one_device(directory, reward_head="tanh", seed=3).reward_head
    other = tiny.on_one_device(directory, reward_head="tanh", seed=4).reward_head
    assert np.array_equal(head.dense.kernel[...], again.dense.kernel[...])
    assert not np.array_equal(head.dense.kernel[...], other.dense.kernel[...])


def test_a_reward_head_is_not_replaced_silently(tmp_path):
    directory = tiny.checkpoint(tmp_path, reward_head=True)
    assert "has a 'tanh' reward head, not 'silu'" in refusal(directory, reward_head="silu")
    assert "is not one of tanh, silu, linear" in refusal(directory, reward_head="mlp")


# Sharding

SHARDED = """
import sys, jax, numpy as np
from flax import nnx
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.load import load_model
from mmrlhf_jax.sharding.mesh import make_mesh
one = load_model(sys.argv[1], mesh=make_mesh({}, jax.devices()[:1]), reward_head="tanh")
four = load_model(sys.argv[1], mesh=make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), reward_head="tanh")
for (path, a), (_, b) in zip(nnx.to_flat_state(nnx.state(one)), nnx.to_flat_state(nnx.state(four)), strict=True):
    assert np.array_equal(a.get_value(), b.get_value()), path
kernel = four.language.layers.mlp.up.kernel[...]
assert kernel.sharding.spec == jax.P(None, "fsdp", "tensor") and kernel.addressable_shards[0].data.shape == (2, 24, 36)
try:
    load_model(sys.argv[1], mesh=make_mesh({"tensor": 5}, jax.devices()[:5]))
except UserError as error:
    assert "language.layers.attention.k.bias (2, 16) cannot be split over mesh {'tensor': 5}; change `mesh`" in f"{error}"
else:
    raise AssertionError("a mesh that does not divide the model")
"""


@pytest.mark.long
def test_a_mesh_splits_the_parameters_and_changes_none_or_is_refused(tmp_path):
    tiny.checkpoint(tmp_path)
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What is no such model


def test_a_path_that_is_nothing_is_refused_without_asking_the_hub(tmp_path):
    with pytest.raises(UserError, match="no such directory; give a model directory or a hub id"):
        local_directory(tmp_path / "absent")


def test_the_hub_is_asked_for_ids_only(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda id, **_: asked.append(id) or str(tmp_path))
    assert local_directory("org/name-7b.v1") == tmp_path
    assert local_directory(tmp_path) == tmp_path
    assert asked == ["org/name-7b.v1"]


def test_a_download_that_fails_is_one_line(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host\nand a traceback")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(UserError, match=r"^org/name: no such directory, and the hub does not give it \(no route to host\)$"):
        local_directory("org/name")


def test_a_directory_without_weights_is_refused(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    (directory / "model.safetensors").unlink()
    assert f"{directory}: no weights (model.safetensors or model.safetensors.index.json)" in refusal(directory)
    (directory / "pytorch_model.bin").touch()
    assert "convert pytorch_model*.bin to safetensors" in refusal(directory)


def test_a_directory_without_config_is_refused(tmp_path):
    assert "no config.json" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tiny.checkpoint(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: truncated or not a safetensors file" in refusal(tmp_path)


def test_a_corrupt_header_is_refused(tmp_path):
    path = tiny.checkpoint(tmp_path) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[:8] = struct.pack("<Q", 1 << 60)
    path.write_bytes(data)
    assert "truncated or not a safetensors file" in refusal(tmp_path)


def test_missing_tensors_are_named_and_counted(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    rewrite(directory, lambda t: [t.pop(name) for name in list(t) if "language_model.layers.1" in name])
    message = refusal(directory)
    assert "12 tensors missing (" in message and "and 9 more)" in message and "language_model.model.layers.1." in message


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_is_missing_is_named_in_every_family(family, tmp_path):
    directory, gone = FAMILIES[family].checkpoint(tmp_path), []

    def drop(tensors):
        gone.extend(name for name in tensors if ".layers.1." in name and ".vis" not in f".{name}")
        for name in gone:
            del tensors[name]

    rewrite(directory, drop)
    message = refusal(directory)
    assert len(gone) > 8 and f"{len(gone)} tensors missing (" in message and f"and {len(gone) - 3} more)" in message


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_under_another_name_is_refused_in_every_family(family, tmp_path):
    """Nothing is left at its initial values, and nothing that is stored is passed over."""
    directory, moved = FAMILIES[family].checkpoint(tmp_path), []

    def rename(tensors):
        for name in [name for name in tensors if name.removeprefix("model.").startswith("vis")]:
            moved.append(name)
            tensors[f"tower.{name.partition('vis')[2]}"] = tensors.pop(name)

    rewrite(directory, rename)
    message = refusal(directory)
    assert len(moved) > 20
    assert "tensors missing (" in message and f"{len(moved)} tensors unexpected (tower." in message


def test_unexpected_tensors_are_named(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    rewrite(directory, lambda t: t.update({"model.language_model.layers.2.self_attn.q_proj.bias": np.zeros(48, np.float32)}))
    assert "1 tensors unexpected (model.language_model.layers.2.self_attn.q_proj.bias)" in refusal(directory)
    rewrite(directory, lambda t: t.update({"adapter.weight": np.zeros(48, np.float32)}))
    assert "2 tensors unexpected" in refusal(directory)


def test_misshapen_tensors_are_named(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    rewrite(directory, lambda t: t.update({"model.image_newline": np.zeros(47, np.float32)}))
    assert "1 tensors of another shape than config.json says (model.image_newline (47,) for (48,))" in refusal(directory)


def test_tensors_that_are_no_weights_are_refused(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    rewrite(directory, lambda t: t.update({"model.image_newline": np.zeros(48, np.int8)}))
    assert "tensor model.image_newline is I8" in refusal(directory)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "llava_next"}, "model_type is 'llava_next'"),
        ({"text_config": {"model_type": "llama"}}, "text_config.model_type is 'llama'"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "vision_config.model_type is 'clip_vision_model'"),
        ({"vision_feature_layer": [-2, -1]}, "is not one number"),
        ({"vision_feature_layer": -5}, "outside the tower's 3 layers"),
        ({"vision_feature_select_strategy": "default"}, "is not 'full'"),
        ({"vision_aspect_ratio": "crop_split"}, "'crop_split' is not one of 'anyres', 'anyres_max_N', 'pad', 'square'"),
    ],
)
def test_configs_of_another_architecture_are_refused(tmp_path, changes, complaint):
    directory = tiny.checkpoint(tmp_path)
    reconfigure(directory, **changes)
    assert complaint in refusal(directory)


# Tokenizers


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"resample": 2}, "has resample 2; only 3 is supported"),
        ({"do_normalize": False}, "has do_normalize False; only True"),
        (
            {"size": {"height": 31, "width": 31}},
            "size {'height': 31, 'width': 31} is not 30, that of config.json's vision tower",
        ),
        (
            {"image_grid_pinpoints": [[30, 30], [30, 60]]},
            "image_grid_pinpoints of the image processor and of config.json differ",
        ),
    ],
)
def test_preprocessing_that_this_project_does_not_do_is_refused(tmp_path, changes, complaint):
    """A quiet mismatch in pixels would spoil every number that follows."""
    directory = tiny.checkpoint(tmp_path)
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert complaint in refusal(directory)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"image_std": [0, 0, 0]}, "image_std must be three positive numbers, found [0, 0, 0]"),
        ({"image_std": [0.2, 0.2, -1]}, "image_std must be three positive numbers"),
        ({"image_std": [1e-320] * 3}, "image_std must be three positive numbers"),  # 0 on devices
        ({"image_std": [1, 1]}, "image_std must be three finite numbers, found [1, 1]"),
        ({"image_mean": [0.5]}, "image_mean must be three finite numbers"),
        ({"image_mean": [True, 0, 0]}, "image_mean must be three finite numbers"),
        ({"image_mean": [1e39, 0, 0]}, "image_mean must be three finite numbers"),
        ({"rescale_factor": 0}, "rescale_factor must be a positive, finite number, found 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor must be a positive, finite number"),
        ({"size": 31}, "size 31 is not 30, that of config.json's vision tower"),
        ({"image_grid_pinpoints": [[30]]}, "image_grid_pinpoints must be pairs of whole numbers"),
    ],
)
def test_pixel_statistics_that_make_no_finite_pixels_of_the_towers_size_are_refused(tmp_path, changes, complaint):
    directory = tiny.checkpoint(tmp_path)
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    message = refusal(directory)
    assert complaint in message and str(path) in message


@pytest.mark.parametrize(
    ("part", "key", "value", "complaint"),
    [
        ("text_config", "rope_theta", 0, "rope_theta must be a positive, finite number, found 0"),
        ("text_config", "rope_theta", "1e6", "rope_theta must be a positive, finite number"),
        ("text_config", "rms_norm_eps", -1, "rms_norm_eps must be a positive, finite number"),
        ("text_config", "hidden_size", 48.0, "hidden_size must be a whole number of at least 1, found 48.0"),
        ("text_config", "vocab_size", "264", "vocab_size must be a whole number of at least 1"),
        ("text_config", "num_attention_heads", 0, "num_attention_heads must be a whole number of at least 1"),
        ("text_config", "num_key_value_heads", 4, "6 attention heads are no multiple of num_key_value_heads 4"),
        ("text_config", "tie_word_embeddings", "false", "tie_word_embeddings must be true or false, found 'false'"),
        ("text_config", "rope_parameters", "x", "rope_parameters must be an object, found 'x'"),
        ("vision_config", "num_hidden_layers", True, "num_hidden_layers must be a whole number"),
        ("vision_config", "num_attention_heads", 5, "hidden_size 36 is no multiple of num_attention_heads 5"),
        ("vision_config", "hidden_act", "relu", "hidden_act must be one of 'gelu', 'gelu_pytorch_tanh', found 'relu'"),
        ("vision_config", "patch_size", 0, "patch_size must be between 1 and"),
        (None, "projector_hidden_act", "relu", "projector_hidden_act must be one of"),
        (None, "text_config", [1], "text_config must be an object, found [1]"),
        (None, "image_grid_pinpoints", [[30.5, 30]], "image_grid_pinpoints must be pairs of whole numbers"),
        (None, "image_token_index", "259", "image_token_index must be a whole number of at least 0"),
        (None, "vision_aspect_ratio", None, "vision_aspect_ratio None is not one of"),
        (None, "vision_aspect_ratio", "anyres_max_0", "needs N >= 1"),
    ],
)
def test_a_value_of_config_json_that_is_of_no_use_is_refused_by_file_and_key(tmp_path, part, key, value, complaint):
    directory = tiny.checkpoint(tmp_path)
    raw = json.loads((directory / "config.json").read_text())
    (raw if part is None else raw[part])[key] = value
    (directory / "config.json").write_text(json.dumps(raw))
    message = refusal(directory)
    assert complaint in message and message.startswith(f"{directory}/config.json: ")


@pytest.mark.parametrize("pinpoints", [[[30]], [[30.5, 30]], [["30", 30]], 30])
def test_so_are_pinpoints_of_the_original_naming(tmp_path, pinpoints):
    directory = tiny.checkpoint(tmp_path, naming="original")
    reconfigure(directory, image_grid_pinpoints=pinpoints)
    assert "image_grid_pinpoints must be pairs of whole numbers" in refusal(directory)


def test_keys_that_published_configs_leave_out_are_transformers_defaults():
    """llava-hf files written by older releases state only what differs from the classes' defaults. Oracle: the classes."""
    transformers = pytest.importorskip("transformers")
    read = config_from_hf({"text_config": {}, "vision_config": {}, "image_grid_pinpoints": [[224, 224]]}, None, "config")
    text, vision = transformers.Qwen2Config(), transformers.SiglipVisionConfig()
    assert (read.text.vocab_size, read.text.hidden_size, read.text.layers) == (
        text.vocab_size,
        text.hidden_size,
        text.num_hidden_layers,
    )
    assert (read.text.heads, read.text.kv_heads, read.text.intermediate_size) == (
        text.num_attention_heads,
        text.num_key_value_heads,
        text.intermediate_size,
    )
    assert (read.text.rms_norm_eps, read.text.rope_theta) == (text.rms_norm_eps, text.rope_parameters["rope_theta"])
    assert (read.vision.hidden_size, read.vision.layers, read.vision.heads) == (
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.num_attention_heads,
    )
    assert (read.vision.image_size, read.vision.patch_size, read.vision.intermediate_size) == (
        vision.image_size,
        vision.patch_size,
        vision.intermediate_size,
    )
    both = {"vision_config": {"image_size": 384, "patch_size": 14}, "text_config": {}}
    pinpoints = transformers.LlavaOnevisionConfig().image_grid_pinpoints
    assert config_from_hf(both, None, "config").geometry.pinpoints == tuple(map(tuple, pinpoints))


@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_an_original_model_without_anyres_sees_one_square_tile(tmp_path, aspect):
    directory = tiny.checkpoint(tmp_path, naming="original")
    reconfigure(directory, image_aspect_ratio=aspect)
    geometry = tiny.on_one_device(directory).config.geometry
    assert (geometry.anyres, geometry.plain) == (False, aspect)
    assert plan_image(40, 95, geometry).tokens == geometry.patches + 1


def test_the_tokenizer_is_the_directorys(tmp_path):
    tokenizer = load_tokenizer(tiny.checkpoint(tmp_path))
    assert tokenizer("a<image>").input_ids[-1] == tiny.IMAGE_TOKEN
    assert tokenizer.decode(tokenizer("gr\u00fcn <|im_end|>").input_ids) == "gr\u00fcn <|im_end|>"
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE


@pytest.mark.parametrize(
    "changes", [{"mm_spatial_pool_mode": "average"}, {"mm_spatial_pool_stride": 4}, {"add_faster_video": True}]
)
def test_an_original_model_that_pools_videos_otherwise_is_refused(tmp_path, changes):
    directory = tiny.checkpoint(tmp_path, naming="original")
    path, ((key, value),) = directory / "config.json", changes.items()
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | changes))
    assert f"{key} {value!r} is not supported" in refusal(directory)
    ours = {"mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2, "add_faster_video": False}
    path.write_text(json.dumps(raw | ours))
    tiny.on_one_device(directory)


def test_a_tokenizer_of_the_original_naming_gets_its_image_token(tmp_path):
    tokenizer = load_tokenizer(tiny.checkpoint(tmp_path, naming="original"))
    assert tokenizer.convert_tokens_to_ids(["<image>", "<video>"]) == [tiny.IMAGE_TOKEN, tiny.VIDEO_TOKEN]


def test_a_tokenizer_without_image_token_is_refused(tmp_path):
    directory = tiny.checkpoint(tmp_path, with_tokenizer=False)
    tiny.tokenizer(vision_tokens=False).save_pretrained(directory)
    with pytest.raises(UserError, match="the tokenizer has no <image> token"):
        load_tokenizer(directory)


@pytest.mark.parametrize(("key", "value"), [("dtype", "bf16"), ("torch_dtype", "torch.bfloat16")])
def test_a_dtype_that_does_not_exist_is_not_blamed_on_the_tokenizer(tmp_path, key, value):
    directory = tiny.checkpoint(tmp_path)
    reconfigure(directory, **{key: value})
    with pytest.raises(UserError, match=rf"config\.json: {key} '{value}' is not one of float32, bfloat16"):
        load_tokenizer(directory)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    reconfigure(directory, image_token_index=12)
    with pytest.raises(UserError, match="<image> is token 259 of the tokenizer, but config says 12"):
        load_tokenizer(directory)


def test_a_missing_or_broken_tokenizer_is_refused(tmp_path):
    directory = tiny.checkpoint(tmp_path, with_tokenizer=False)
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        load_tokenizer(directory)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("named", ["image_processor_type", "feature_extractor_type", None])
def test_an_image_processor_whose_class_is_not_named_is_read_as_well(tmp_path, family, named):
    """transformers takes the class that belongs to the model's type."""
    directory = FAMILIES[family].checkpoint(tmp_path)
    path = directory / "preprocessor_config.json"
    stated = json.loads(path.read_text())
    kind = stated.pop("image_processor_type")
    stated = stated if named is None else stated | {named: kind}
    path.write_text(json.dumps(stated | {"image_mean": [0.25, 0.5, 0.75]}))
    assert read_config(directory).vision.image_mean == (0.25, 0.5, 0.75)
    path.write_text(json.dumps(stated | {"resample": 2}))
    assert f"{path}: the image processor has resample 2" in refusal(directory)
    joint = {"processor_class": "Joint", "image_processor": stated | {"image_mean": [0.5, 0.5, 0.5]}}
    (directory / "processor_config.json").write_text(json.dumps(joint))
    assert read_config(directory).vision.image_mean == (0.5, 0.5, 0.5)


CLIP = (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("nested", [False, True])
def test_an_image_processor_without_settings_has_its_classs(tmp_path, family, nested):
    """Unlike one that is not there; and one inside processor_config.json counts before the other file, as in transformers."""
    raw = FAMILIES[family].config(**FAMILIES[family].PUBLISHED_GEOMETRY)
    if family == "internvl":  # its class's size is not that of its tower
        raw["vision_config"] |= {"image_size": [384, 384], "patch_size": [16, 16]}
    if family == "qwen3_vl":  # nor are its class's patches those of its tower
        raw["vision_config"] |= {"patch_size": 14}
    # Its class has patches of two frames.
    settings = {"temporal_patch_size": 1} if family == "llavaonevision1_5" else {}
    directory = FAMILIES[family].checkpoint(tmp_path, raw)
    assert read_config(directory).vision.image_mean != CLIP
    if nested:
        joint = json.loads((directory / "processor_config.json").read_text()) if family == "internvl" else {}
        (directory / "processor_config.json").write_text(json.dumps(joint | {"image_processor": settings}))
    else:
        (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    assert read_config(directory).vision.image_mean == CLIP


# A value of another type for a key of config.json, in either naming of either family.
ODD = [
    ("architectures", 5), ("architectures", True), ("architectures", [5, None]), ("template", ["x"]), ("template", {}),
    ("llm_config", 5), ("llm_config", {"vocab_size": "x"}), ("text_config", 5), ("text_config", {"vocab_size": "x"}),
    ("vision_config", 5), ("vision_config", "x"), ("image_token_index", "x"), ("image_token_index", 1.5), ("vocab_size", "x"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "naming"),
    [(name, naming) for name, tests in FAMILIES.items() for naming in ("hf", "original") if naming in tests.NAMINGS],
)
def test_values_of_another_type_are_refused_in_words_or_not_read(tmp_path, family, naming):
    directory = FAMILIES[family].checkpoint(tmp_path, naming=naming)
    stated = json.loads((directory / "config.json").read_text())
    for key, value in ODD:
        (directory / "config.json").write_text(json.dumps(stated | {key: value}))
        for read in (read_config, load_tokenizer):
            try:
                read(directory)
            except UserError as error:
                assert str(error).startswith(str(directory)) and "\n" not in str(error), (key, value)


@pytest.mark.parametrize(
    ("family", "naming", "name"),
    [(family, *unread) for family, tests in FAMILIES.items() for unread in tests.UNREAD_FILES.items()],
)
def test_a_processor_file_that_no_size_depends_on_is_not_opened(tmp_path, family, naming, name):
    directory = FAMILIES[family].checkpoint(tmp_path, naming=naming)
    wanted = read_config(directory)
    (directory / name).write_text("{ not JSON")
    assert read_config(directory) == wanted
