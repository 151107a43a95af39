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
from mmrlhf_jax.huggingface.export import export_checkpoint, export_model
from mmrlhf_jax.models.lora import adapted_layers, merge_lora
from mmrlhf_jax.training.state import with_adapters
from tests import tiny
from tests.families import FAMILIES
from tests.prompts import about_pictures, noise

LORA = config.Lora(parts=("vision_tower", "projector", "language_model"), rank=4, alpha=6.0)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def base(family, tmp_path_factory):
    return family.checkpoint(tmp_path_factory.mktemp("base"), family.config(text={"tie_word_embeddings": True}))


@pytest.fixture(scope="module")
def adapted(base):
    """A model whose adapters all do something."""
    model = with_adapters(tiny.on_one_device(base), LORA, seed=0)
    rng = np.random.default_rng(1)
    for _, layer in adapted_layers(model):
        layer.lora_b[...] = jnp.asarray(rng.normal(size=layer.lora_b.shape) * 0.1, jnp.float32)
    return model


PICTURE = noise([(28, 28)])


def logits(model, base):
    """Of a prompt about one picture, with the tokenizer of the base."""
    _, row = about_pictures(model, base, PICTURE)
    return np.asarray(model(*row) @ model.language.vocabulary())


def transformers_logits(theirs, family, model, base):
    """Of the same prompt."""
    torch = pytest.importorskip("torch")
    ids, _ = about_pictures(model, base, PICTURE)
    with torch.no_grad():
        inputs = family.picture_inputs(base, PICTURE) | family.id_inputs(ids[None])
        return theirs(input_ids=torch.tensor(ids[None]), **inputs).logits.numpy()


def transformers_model(directory):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.long
def test_new_adapters_change_nothing_at_all_and_every_linear_layer_has_one(base, family):
    plain, fresh = tiny.on_one_device(base), with_adapters(tiny.on_one_device(base), LORA, seed=0)
    np.testing.assert_array_equal(logits(fresh, base), logits(plain, base))
    names = {".".join(path) for path, _ in adapted_layers(fresh)}
    assert len(names) == 7 + family.TOWER_LINEARS + family.PROJECTOR_LINEARS  # the decoder's, the tower's, the projector's
    assert "language.layers.mlp.gate" in names and "vision.patch" not in names


def test_the_merged_model_computes_what_the_adapted_one_does(adapted, base):
    assert np.abs(logits(adapted, base) - logits(tiny.on_one_device(base), base)).max() > 0.1
    np.testing.assert_allclose(logits(merge_lora(adapted), base), logits(adapted, base), atol=2e-5)


def test_the_merged_export_is_the_trained_model_in_transformers(adapted, base, family, tmp_path):
    export_model(merge_lora(adapted), base, tmp_path / "merged")
    found = transformers_logits(transformers_model(tmp_path / "merged"), family, adapted, base)
    np.testing.assert_allclose(found, logits(adapted, base), atol=1e-4)


def test_the_adapter_files_are_the_update_that_was_trained(adapted, base, family, tmp_path):
    """Applied by hand to transformers' own modules, by the names in the file: W + (alpha / r) · B A."""
    torch = pytest.importorskip("torch")
    export_adapter(adapted, str(base), tmp_path / "adapter", rank=LORA.rank, alpha=LORA.alpha)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    model = transformers_model(base)
    modules = dict(model.named_modules())
    names = {name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for name in tensors}
    assert len(names) == 2 * 7 + 3 * family.TOWER_MODULES + family.PROJECTOR_LINEARS
    for name in names:
        a, b = (torch.tensor(tensors[f"base_model.model.{name}.lora_{x}.weight"]) for x in "AB")
        modules[name].weight.data += settings["lora_alpha"] / settings["r"] * b @ a
    np.testing.assert_allclose(transformers_logits(model, family, adapted, base), logits(adapted, base), atol=1e-4)


def test_exported_adapters_are_merged_into_their_base_again(adapted, base, tmp_path):
    """Also those of modules that the file joins, of which each has its own part here."""
    export_adapter(adapted, str(base), tmp_path / "adapter", rank=LORA.rank, alpha=LORA.alpha)
    export_checkpoint(tmp_path / "adapter", tmp_path / "merged")
    export_model(merge_lora(adapted), base, tmp_path / "model")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "model"))
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_adapter_of_the_vocabulary_is_pefts_lm_head(family, tmp_path):
    """By its name in the file, in transformers' own module; the regular expression of the targets finds it and nothing else."""
    torch = pytest.importorskip("torch")
    base = family.checkpoint(tmp_path / "base", family.config(text={"tie_word_embeddings": False}))
    lora = config.Lora(parts=("language_model",), layers=("head",), rank=4, alpha=6.0)
    model = with_adapters(tiny.on_one_device(base), lora, seed=0)
    head = model.language.head
    head.lora_b[...] = jnp.asarray(np.random.default_rng(1).normal(size=head.lora_b.shape) * 0.1, jnp.float32)
    export_adapter(model, str(base), tmp_path / "adapter", rank=lora.rank, alpha=lora.alpha)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert set(tensors) == {f"base_model.model.lm_head.lora_{x}.weight" for x in "AB"}
    theirs = transformers_model(base)
    assert [name for name, _ in theirs.named_modules() if re.fullmatch(settings["target_modules"], name)] == ["lm_head"]
    a, b = (torch.tensor(tensors[f"base_model.model.lm_head.lora_{x}.weight"]) for x in "AB")
    before = transformers_logits(theirs, family, model, base)
    theirs.lm_head.weight.data += settings["lora_alpha"] / settings["r"] * b @ a
    after = transformers_logits(theirs, family, model, base)
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(after, logits(model, base), atol=1e-4)


def test_peft_loads_the_adapter_directory(adapted, base, family, tmp_path):
    peft = pytest.importorskip("peft")
    export_adapter(adapted, str(base), tmp_path / "adapter", rank=LORA.rank, alpha=LORA.alpha)
    loaded = peft.PeftModel.from_pretrained(transformers_model(base), tmp_path / "adapter").eval()
    found = transformers_logits(loaded.get_base_model(), family, adapted, base)
    np.testing.assert_allclose(found, logits(adapted, base), atol=1e-4)


def test_a_layer_that_is_nowhere_is_named(base):
    with pytest.raises(UserError, match=r"lora\.layers: this model has no 'query'.*down, gate, k, o, q, up, v"):
        with_adapters(tiny.on_one_device(base), config.Lora(layers=("q", "query")), seed=0)


def test_adapters_are_drawn_alike_wherever_they_are_drawn(family, base):
    models = [with_adapters(tiny.on_one_device(base), LORA, seed=seed) for seed in (3, 3, 4)]
    drawn = [models[i].language.layers.attention.q.lora_a.get_value() for i in range(3)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    bound = family.config()["text_config"]["hidden_size"] ** -0.5
    assert 0.9 * bound < float(jnp.abs(drawn[0]).max()) <= bound
    assert all(isinstance(leaf, jax.Array) for leaf in drawn)
