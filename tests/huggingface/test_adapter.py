"""A LoRA run taken away: the merged model and the PEFT directory are, in transformers, the model that was trained."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.adapter import export_adapter
from mmrlhf_jax.huggingface.export import export_model
from mmrlhf_jax.models.lora import adapted_layers, merge_lora
from mmrlhf_jax.models.media import Tiles
from mmrlhf_jax.training.state import with_adapters
from tests import tiny

LORA = config.Lora(parts=("vision_tower", "projector", "language_model"), rank=4, alpha=6.0)
TILES = np.random.default_rng(0).integers(0, 256, (1, 1, tiny.SIDE, tiny.SIDE, 3), np.uint8)
TOKENS = np.concatenate([[[5, 9]], np.full((1, 16), tiny.IMAGE_TOKEN), [[7, 3, 1, 8]]], axis=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapted(base):
    """A model whose adapters all do something."""
    model = with_adapters(tiny.on_one_device(base), LORA, seed=0)
    rng = np.random.default_rng(1)
    for _, layer in adapted_layers(model):
        layer.lora_b[...] = jnp.asarray(rng.normal(size=layer.lora_b.shape) * 0.1, jnp.float32)
    return model


def logits(model):
    """With one square tile, in patch order, at the places of its 16 image tokens."""
    taps = np.tile(np.arange(16)[None, :, None], (1, 1, 4))
    weights = np.tile(np.eye(4, dtype=np.float32)[0], (1, 16, 1))
    visual = Tiles(TILES, np.arange(2, 18)[None], taps, weights)
    length = TOKENS.shape[1]
    hidden = model(TOKENS, np.arange(length)[None], np.full((1, length), length), visual)
    return np.asarray(hidden @ model.language.vocabulary())


def test_new_adapters_change_nothing_at_all_and_every_linear_layer_has_one(base):
    plain, fresh = tiny.on_one_device(base), with_adapters(tiny.on_one_device(base), LORA, seed=0)
    np.testing.assert_array_equal(logits(fresh), logits(plain))
    names = {".".join(path) for path, _ in adapted_layers(fresh)}
    assert len(names) == 7 + 6 + 2  # Qwen2's, SigLIP's, the projector's
    assert "language.layers.mlp.gate" in names and "vision.patch" not in names


def test_the_merged_model_computes_what_the_adapted_one_does(adapted, base):
    assert np.abs(logits(adapted) - logits(tiny.on_one_device(base))).max() > 0.1
    np.testing.assert_allclose(logits(merge_lora(adapted)), logits(adapted), atol=2e-5)


def transformers_logits(model):
    torch = pytest.importorskip("torch")
    processor = tiny.image_processor(tiny.config())
    mean, std = np.float32(processor["image_mean"]), np.float32(processor["image_std"])
    pixels = torch.tensor((TILES[0, 0].astype(np.float32) / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        inner = model.model
        embedded = inner.get_input_embeddings()(torch.tensor(TOKENS))
        features = inner.multi_modal_projector(inner.vision_tower(pixels, output_hidden_states=True).hidden_states[-1])
        embedded[0, 2:18] = features[0]
        return model(inputs_embeds=embedded).logits.numpy()


def test_the_merged_export_is_the_trained_model_in_transformers(adapted, base, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    export_model(merge_lora(adapted), base, tmp_path / "merged")
    loaded = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    np.testing.assert_allclose(transformers_logits(loaded), logits(adapted), atol=1e-4)


def test_the_adapter_files_are_the_update_that_was_trained(adapted, base, tmp_path):
    """Applied by hand to transformers' own modules, by the names in the file: W + (alpha / r) · B A."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    export_adapter(adapted, str(base), tmp_path / "adapter", rank=LORA.rank, alpha=LORA.alpha)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    model = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(base).eval()
    modules = dict(model.named_modules())
    names = {name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for name in tensors}
    assert len(names) == 2 * 7 + 3 * 6 + 2
    for name in names:
        a, b = (torch.tensor(tensors[f"base_model.model.{name}.lora_{x}.weight"]) for x in "AB")
        modules[name].weight.data += settings["lora_alpha"] / settings["r"] * b @ a
    np.testing.assert_allclose(transformers_logits(model), logits(adapted), atol=1e-4)


def test_the_adapter_of_the_vocabulary_is_pefts_lm_head(tmp_path):
    """By its name in the file, in transformers' own module; the regular expression of the targets finds it and nothing else."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    raw = tiny.config(text={"tie_word_embeddings": False}, tie_word_embeddings=False)
    base = tiny.checkpoint(tmp_path / "base", raw)
    lora = config.Lora(parts=("language_model",), layers=("head",), rank=4, alpha=6.0)
    model = with_adapters(tiny.on_one_device(base), lora, seed=0)
    head = model.language.head
    head.lora_b[...] = jnp.asarray(np.random.default_rng(1).normal(size=head.lora_b.shape) * 0.1, jnp.float32)
    export_adapter(model, str(base), tmp_path / "adapter", rank=lora.rank, alpha=lora.alpha)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert set(tensors) == {f"base_model.model.lm_head.lora_{x}.weight" for x in "AB"}
    theirs = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(base).eval()
    assert [name for name, _ in theirs.named_modules() if re.fullmatch(settings["target_modules"], name)] == ["lm_head"]
    a, b = (torch.tensor(tensors[f"base_model.model.lm_head.lora_{x}.weight"]) for x in "AB")
    before = transformers_logits(theirs)
    theirs.lm_head.weight.data += settings["lora_alpha"] / settings["r"] * b @ a
    assert np.abs(transformers_logits(theirs) - before).max() > 0.1
    np.testing.assert_allclose(transformers_logits(theirs), logits(model), atol=1e-4)


def test_peft_loads_the_adapter_directory(adapted, base, tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    export_adapter(adapted, str(base), tmp_path / "adapter", rank=LORA.rank, alpha=LORA.alpha)
    plain = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(base)
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    np.testing.assert_allclose(transformers_logits(loaded.get_base_model()), logits(adapted), atol=1e-4)


def test_a_layer_that_is_nowhere_is_named(base):
    with pytest.raises(UserError, match=r"lora\.layers: this model has no 'query'.*down, gate, k, o, q, up, v"):
        with_adapters(tiny.on_one_device(base), config.Lora(layers=("q", "query")), seed=0)


def test_adapters_are_drawn_alike_wherever_they_are_drawn(base):
    models = [with_adapters(tiny.on_one_device(base), LORA, seed=seed) for seed in (3, 3, 4)]
    drawn = [models[i].language.layers.attention.q.lora_a.get_value() for i in range(3)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    bound = tiny.config()["text_config"]["hidden_size"] ** -0.5
    assert 0.9 * bound < float(jnp.abs(drawn[0]).max()) <= bound
    assert all(isinstance(leaf, jax.Array) for leaf in drawn)
