"""A model that would answer NaN is refused before anything runs, and none is written; the tensor or token is named."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.export import export_checkpoint, export_model
from mmrlhf_jax.huggingface.tensors import all_finite
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from tests import tiny


def spoil(directory, *names, value=np.nan):
    tensors = load_file(directory / "model.safetensors")
    for name in names:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] = value
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


TOWER = "model.vision_tower.vision_model."
UP = "model.language_model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    [UP, "model.image_newline", "model.vision_tower.vision_model.embeddings.patch_embedding.weight", "rm_head.out_proj.bias"],
)
def test_a_weight_that_is_not_finite_is_refused_by_its_name(tmp_path, name, value):
    directory = tiny.checkpoint(tmp_path, reward_head=True)
    spoil(directory, name, value=value)
    with pytest.raises(UserError) as error:
        tiny.on_one_device(directory)
    assert str(error.value) == (
        f"{directory}: 1 tensors hold NaN or infinity ({name}) as float32; a model with such weights cannot be used"
    )


@pytest.mark.parametrize("dtype", [tiny.BFLOAT16, np.dtype(np.float16)])
def test_so_it_is_in_half_precision_and_all_are_counted(tmp_path, dtype):
    directory = tiny.checkpoint(tmp_path, dtype=dtype, naming="original")
    spoil(directory, "model.norm.weight", "model.image_newline")
    with pytest.raises(UserError, match=r"2 tensors hold NaN or infinity \(model.image_newline, model.norm.weight\)"):
        tiny.on_one_device(directory, param_dtype=jnp.bfloat16)


def test_a_number_that_the_parameters_dtype_cannot_hold_is_not_finite(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    spoil(directory, UP, value=3.4e38)
    tiny.on_one_device(directory)
    with pytest.raises(UserError, match=f"{UP}.* as bfloat16"):
        tiny.on_one_device(directory, param_dtype=jnp.bfloat16)


def test_tensors_that_no_model_uses_may_hold_anything(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    spoil(directory, f"{TOWER}post_layernorm.weight")
    tiny.on_one_device(directory)


def test_a_model_that_is_not_finite_is_not_written(tmp_path):
    source = tiny.checkpoint(tmp_path / "in")
    model = tiny.on_one_device(source)
    model.language.layers.mlp.up.kernel[1, 0, 0] = jnp.nan
    with pytest.raises(UserError, match=f"^{UP} holds NaN or infinity as float32: such a model is not written$"):
        export_model(model, source, tmp_path / "out")
    spoil(source, "model.image_newline", value=np.inf)
    with pytest.raises(UserError, match=r"^model\.image_newline holds NaN or infinity"):
        export_checkpoint(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, tiny.BFLOAT16, np.float16])
def test_one_value_among_many_is_found_wherever_it_is(dtype):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 70_000)).astype(dtype)
    most = float(np.finfo(np.float16).max) if dtype is np.float16 else 3e38
    values[1, :4] = [most, -most, 0, -0.0]
    assert all_finite(values) and all_finite(values[:, :0]) and all_finite(values.T)
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        for place in (0, 65_535, 65_536, values.size - 1):
            spoilt = values.copy()
            spoilt.flat[place] = value
            assert not all_finite(spoilt)


def tokenizer_with(directory, tokens, **kinds):
    tokenizer = load_tokenizer(directory)
    tokenizer.add_tokens([AddedToken(token, normalized=False, **kinds) for token in tokens])
    tokenizer.save_pretrained(directory)


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused_by_the_token(tmp_path):
    directory = tiny.checkpoint(tmp_path)  # 264 rows, tokens up to 260
    tokenizer_with(directory, ["<a>", "<b>", "<c>"])
    load_tokenizer(directory)
    tokenizer_with(directory, ["<d>", "<e>"], special=True)
    with pytest.raises(UserError) as error:
        load_tokenizer(directory)
    assert "embeddings for 264 tokens, the tokenizer has 2 beyond them, first '<d>' (264)" in str(error.value)


@pytest.mark.parametrize("naming", ["hf", "original"])
def test_so_is_a_model_that_was_cut_to_fewer_rows(tmp_path, naming):
    directory = tiny.checkpoint(tmp_path, tiny.config(text={"vocab_size": 258}), naming=naming)
    first = re.escape("'<|im_end|>' (258)")
    with pytest.raises(UserError, match=rf"embeddings for 258 tokens, the tokenizer has \d beyond them, first {first}"):
        load_tokenizer(directory)


def test_an_image_token_beyond_the_embedding_is_refused_where_it_is_the_checkpoints_own(tmp_path):
    directory = tiny.checkpoint(tmp_path, tiny.config(text={"vocab_size": 259}))
    with pytest.raises(UserError, match="2 beyond them, first '<image>' "):
        load_tokenizer(directory)


def test_the_original_codes_image_token_needs_no_row_but_transformers_would(tmp_path):
    """The original code has no such token in its vocabulary, and pictures take its place here."""
    directory = tiny.checkpoint(tmp_path / "in", tiny.config(text={"vocab_size": 259}), naming="original")
    assert load_tokenizer(directory).convert_tokens_to_ids("<image>") == tiny.IMAGE_TOKEN
    export_checkpoint(directory, tmp_path / "out", naming="original")
    with pytest.raises(UserError, match="rows end before the image token"):
        export_checkpoint(directory, tmp_path / "hf")


def test_a_config_without_a_size_of_its_vocabulary_has_transformers_default(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    raw = json.loads((directory / "config.json").read_text())
    del raw["text_config"]["vocab_size"]
    (directory / "config.json").write_text(json.dumps(raw))
    load_tokenizer(directory)
