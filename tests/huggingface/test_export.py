"""What is exported is what was loaded, byte for byte, in files that other programs read; nothing is half written."""

import json
import weakref
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mmrlhf_jax.data.templates import qwen_1_5
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.export import export_checkpoint, export_model, new_checkpoint
from mmrlhf_jax.huggingface.model_files import exported_config, with_dtype
from mmrlhf_jax.huggingface.tensors import StoredTensors
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.models.llava_onevision.processors import CHAT_TEMPLATE
from mmrlhf_jax.models.llava_onevision.vision_plan import plan_image
from tests import tiny
from tests.families import FAMILIES, WITH_ORIGINAL

SPELLINGS = [(family, naming) for family, tests in FAMILIES.items() for naming in tests.NAMINGS]
DTYPES = [np.dtype(np.float32), tiny.BFLOAT16, np.dtype(np.float16)]


def stored(directory) -> dict[str, np.ndarray]:
    return {name: value for path in sorted(directory.glob("*.safetensors")) for name, value in load_file(path).items()}


def assert_same_tensors(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape), name
        assert actual[name].tobytes() == value.tobytes(), name


def read_json(path) -> dict:
    return json.loads(path.read_text())


# Round trips


@pytest.mark.parametrize(("family", "naming"), SPELLINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_round_trip_is_byte_equal_in_the_stored_dtype_and_the_sources_own_names(tmp_path, dtype, family, naming):
    source = FAMILIES[family].checkpoint(tmp_path / "in", naming=naming, dtype=dtype)
    model = tiny.on_one_device(source)
    export_model(model, source, tmp_path / "out", naming="original" if naming == "original" else "hf")
    assert_same_tensors(stored(tmp_path / "out"), stored(source))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied_models_make_the_round_trip_with_a_reward_head(tmp_path, tied, family):
    raw = FAMILIES[family].config(text={"tie_word_embeddings": tied, "num_attention_heads": 3, "num_key_value_heads": 1})
    source = FAMILIES[family].checkpoint(tmp_path / "in", raw, dtype=tiny.BFLOAT16, reward_head=True)
    export_model(tiny.on_one_device(source), source, tmp_path / "out")
    assert_same_tensors(stored(tmp_path / "out"), stored(source))
    assert read_json(tmp_path / "out/config.json")["reward_head"] == "tanh"


def test_every_tensor_keeps_its_own_dtype(tmp_path):
    source = tiny.checkpoint(tmp_path / "in", dtype=tiny.BFLOAT16)
    tensors = stored(source)
    norms = [name for name in tensors if "norm" in name]
    save_file(tensors | {name: tensors[name].astype(np.float32) for name in norms}, source / "model.safetensors")
    export_model(tiny.on_one_device(source), source, tmp_path / "out")
    assert_same_tensors(stored(tmp_path / "out"), stored(source))


def test_a_tied_source_that_stores_its_projection_gets_the_models_embedding_for_it(tmp_path):
    source = tiny.checkpoint(tmp_path / "in")
    tensors = stored(source)
    embedding = "model.language_model.embed_tokens.weight"
    save_file(tensors | {"lm_head.weight": tensors[embedding]}, source / "model.safetensors")
    model = tiny.on_one_device(source)
    model.language.embedding.embedding[...] *= 2
    export_model(model, source, tmp_path / "out")
    out = stored(tmp_path / "out")
    np.testing.assert_array_equal(out[embedding], 2 * tensors[embedding])
    np.testing.assert_array_equal(out["lm_head.weight"], out[embedding])


def test_tensors_that_the_model_does_not_use_are_copied(tmp_path):
    source = tiny.checkpoint(tmp_path / "in", tiny.config(vision_feature_layer=-2))
    pooling = {"model.vision_tower.vision_model.head.probe": np.ones((1, 1, 36), np.float32)}
    save_file(stored(source) | pooling, source / "model.safetensors")
    export_model(tiny.on_one_device(source), source, tmp_path / "out")
    assert_same_tensors(stored(tmp_path / "out"), stored(source))


def test_what_was_trained_is_what_is_written(tmp_path):
    source = tiny.checkpoint(tmp_path / "in")
    model = tiny.on_one_device(source)
    model.language.layers.mlp.up.kernel[...] += jnp.arange(2.0)[:, None, None]
    export_model(model, source, tmp_path / "out")
    before, after = stored(source), stored(tmp_path / "out")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"model.language_model.layers.1.mlp.up_proj.weight"}
    np.testing.assert_array_equal(after[changed.pop()], before["model.language_model.layers.1.mlp.up_proj.weight"] + 1)


# Namings and dtypes


@pytest.mark.parametrize("feature_layer", [-1, -2])
def test_from_one_naming_to_the_other_and_back_is_the_same_model(tmp_path, feature_layer):
    source = tiny.checkpoint(tmp_path / "in", tiny.config(vision_feature_layer=feature_layer), naming="legacy")
    export_model(tiny.on_one_device(source), source, tmp_path / "original", naming="original")
    export_model(tiny.on_one_device(tmp_path / "original"), tmp_path / "original", tmp_path / "back")
    names = set(stored(tmp_path / "original"))
    assert "model.mm_projector.2.bias" in names and "model.layers.1.self_attn.k_proj.bias" in names
    # The original code runs all of a tower, so a layer behind the feature layer has no place in its naming.
    unused = {name for name in stored(source) if feature_layer == -2 and "encoder.layers.2." in name}
    assert_same_tensors(stored(tmp_path / "back"), {n: v for n, v in stored(source).items() if n not in unused})
    twin = tiny.on_one_device(tmp_path / "back").config
    assert twin.geometry == tiny.on_one_device(source).config.geometry
    assert twin.vision.feature_layers == 4 + feature_layer


@pytest.mark.parametrize("family", WITH_ORIGINAL)
@pytest.mark.parametrize("to", ["hf", "original"])
def test_there_and_back_again_every_byte_is_the_same(tmp_path, to, family):
    start = FAMILIES[family].PUBLISHED if to == "original" else "original"
    source = FAMILIES[family].checkpoint(tmp_path / "in", naming=start, dtype=tiny.BFLOAT16, reward_head=True)
    export_checkpoint(source, tmp_path / "other", naming=to)
    export_checkpoint(tmp_path / "other", tmp_path / "back", naming="hf" if to == "original" else "original")
    assert stored(source).keys() != stored(tmp_path / "other").keys()
    assert_same_tensors(stored(tmp_path / "back"), stored(source))


@pytest.mark.parametrize("kind", [{"projector_hidden_act": "gelu_pytorch_tanh"}, {"multimodal_projector_bias": False}])
def test_a_projector_that_the_original_naming_cannot_say_is_refused(tmp_path, kind):
    source = tiny.checkpoint(tmp_path / "in", tiny.config(**kind))
    with pytest.raises(UserError, match=r"gelu with biases.*--naming at hf"):
        export_checkpoint(source, tmp_path / "out", naming="original")
    assert not (tmp_path / "out").exists()


def renamed(raw: dict) -> dict:
    """As transformers 5 writes it: `image_token_id`, for which older releases wrote `image_token_index`."""
    return {key.replace("_token_index", "_token_id"): value for key, value in raw.items()}


def without_defaults(raw: dict) -> dict:
    """As older releases wrote it: without what equals the classes' defaults."""
    tower = {key: value for key, value in raw["vision_config"].items() if key not in ("patch_size", "num_attention_heads")}
    return {key: value for key, value in raw.items() if key != "image_grid_pinpoints"} | {"vision_config": tower}


@pytest.mark.parametrize(
    ("stated", "vision"),
    [(renamed, {}), (without_defaults, {"image_size": 384, "patch_size": 16, "num_attention_heads": 12})],
    ids=["image_token_id", "defaults left out"],
)
def test_however_a_config_says_it_the_original_naming_is_the_same_model(tmp_path, stated, vision):
    pinpoints = {"image_grid_pinpoints": [[384 * h, 384 * w] for h in range(1, 7) for w in range(1, 7)]} if vision else {}
    source = tiny.checkpoint(tmp_path / "in", tiny.config(vision=vision, **pinpoints), naming="legacy")
    (source / "config.json").write_text(json.dumps(stated(read_json(source / "config.json"))))
    before = tiny.on_one_device(source).config
    assert before.image_token == tiny.IMAGE_TOKEN
    export_checkpoint(source, tmp_path / "original", naming="original")
    export_checkpoint(tmp_path / "original", tmp_path / "back")
    for directory in (tmp_path / "original", tmp_path / "back"):
        twin = tiny.on_one_device(directory).config
        assert (twin.image_token, twin.video_token) == (before.image_token, before.video_token)
        assert twin.text == before.text and twin.geometry.pinpoints == before.geometry.pinpoints
        assert (twin.vision.heads, twin.vision.patch_size) == (before.vision.heads, before.vision.patch_size)
        assert load_tokenizer(directory).convert_tokens_to_ids("<image>") == before.image_token
    assert_same_tensors(stored(tmp_path / "back"), stored(source))


def test_a_converted_checkpoint_has_a_tokenizer_and_processors_of_its_new_naming(tmp_path):
    source = tiny.checkpoint(tmp_path / "in", naming="original")
    export_model(tiny.on_one_device(source), source, tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").convert_tokens_to_ids("<image>") == tiny.IMAGE_TOKEN
    processor = read_json(tmp_path / "out/preprocessor_config.json")
    assert processor["image_mean"] == [0.5, 0.5, 0.5] and processor["image_grid_pinpoints"] == tiny.PINPOINTS
    config = read_json(tmp_path / "out/config.json")
    assert config["model_type"] == "llava_onevision" and config["vision_config"]["num_attention_heads"] == 3


def test_another_dtype_may_be_asked_for(tmp_path):
    source = tiny.checkpoint(tmp_path / "in")
    export_model(tiny.on_one_device(source), source, tmp_path / "out", dtype=jnp.bfloat16)
    expected = {name: value.astype(tiny.BFLOAT16) for name, value in stored(source).items()}
    assert_same_tensors(stored(tmp_path / "out"), expected)
    assert read_json(tmp_path / "out/config.json")["dtype"] == "bfloat16"


@pytest.mark.parametrize("asked", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(
    "stated",
    [
        {"dtype": "float16", "torch_dtype": "float32"},
        {"torch_dtype": "float16"},
        {"dtype": "float16", "text": {"dtype": "float32", "torch_dtype": "float16"}, "vision": {"torch_dtype": "float32"}},
    ],
)
def test_every_name_for_the_dtype_says_the_one_that_is_written(tmp_path, asked, stated):
    """The source's own may disagree with each other and with its weights."""
    raw = tiny.config(text=stated.get("text"), vision=stated.get("vision"))
    source = tiny.checkpoint(tmp_path / "in", raw, dtype=tiny.BFLOAT16)
    top = {name: value for name, value in read_json(source / "config.json").items() if name != "dtype"}
    top |= {name: value for name, value in stated.items() if "dtype" in name}
    (source / "config.json").write_text(json.dumps(top))
    export_checkpoint(source, tmp_path / "out", dtype=asked)
    written, config = np.dtype(asked or tiny.BFLOAT16).name, read_json(tmp_path / "out/config.json")
    parts = {"": (config, top), "text": (config["text_config"], top["text_config"])}
    parts["vision"] = (config["vision_config"], top["vision_config"])
    for out, was in parts.values():
        assert {name: out[name] for name in out if "dtype" in name} == {name: written for name in was if "dtype" in name}


def test_a_family_says_where_its_language_models_config_stands_and_any_parts_config_has_the_dtype():
    config = {"thinker_config": {"dtype": "float32"}, "audio_config": {"torch_dtype": "float16"}, "seen": {"dtype": "float32"}}
    family = SimpleNamespace(convert_config=lambda *_: dict(config), text_configs=("thinker_config",), architecture="Any")
    untied = SimpleNamespace(text=SimpleNamespace(tied=False), reward_head=None)
    exported = exported_config(family, None, untied, "original")
    assert exported["thinker_config"] == {"dtype": "float32", "tie_word_embeddings": False}
    assert "tie_word_embeddings" not in exported["audio_config"]
    assert with_dtype(config, jnp.dtype("bfloat16"), "hf", asked=False) == {
        "thinker_config": {"dtype": "bfloat16"},
        "audio_config": {"torch_dtype": "bfloat16"},
        "seen": {"dtype": "float32"},
    }


@pytest.mark.parametrize("naming", ["hf", "original"])
def test_a_dtype_that_is_asked_for_is_stated_where_the_source_states_none(tmp_path, naming):
    source = tiny.checkpoint(tmp_path / "in", naming=naming)
    config = {name: value for name, value in read_json(source / "config.json").items() if "dtype" not in name}
    (source / "config.json").write_text(json.dumps(config))
    export_checkpoint(source, tmp_path / "out", dtype=jnp.bfloat16, naming=naming)
    found = {name: value for name, value in read_json(tmp_path / "out/config.json").items() if "dtype" in name}
    assert found == {"dtype" if naming == "hf" else "torch_dtype": "bfloat16"}


# File to file


@pytest.mark.parametrize(
    ("family", "naming", "to"),
    [(*each, to) for each in SPELLINGS for to in ("hf", "original") if to == "hf" or each[0] in WITH_ORIGINAL],
)
def test_file_to_file_is_what_the_untouched_model_exports(tmp_path, family, naming, to):
    raw = FAMILIES[family].config(vision_feature_layer=-1 if naming == "original" else -2)
    source = FAMILIES[family].checkpoint(tmp_path / "in", raw, naming=naming, dtype=tiny.BFLOAT16, reward_head=True)
    export_model(tiny.on_one_device(source), source, tmp_path / "model", naming=to)
    export_checkpoint(source, tmp_path / "files", naming=to)
    assert_same_tensors(stored(tmp_path / "files"), stored(tmp_path / "model"))
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {path.name for path in (tmp_path / "files").iterdir()} == names
    for name in names - {"model.safetensors"}:
        assert (tmp_path / "files" / name).read_bytes() == (tmp_path / "model" / name).read_bytes(), name


def test_file_to_file_holds_one_tensor_at_a_time(tmp_path, monkeypatch):
    """Every tensor is read when it is written; before that only headers are."""
    source = tiny.checkpoint(tmp_path / "in", dtype=tiny.BFLOAT16)
    made, alive = [], []

    class Read(np.ndarray):
        pass

    def read(self, name, index=()):
        value = plain(self, name, index).view(Read)
        made.append(weakref.ref(value))
        alive.append(sum(one() is not None for one in made))
        return value

    plain = StoredTensors.read
    monkeypatch.setattr(StoredTensors, "read", read)
    export_checkpoint(source, tmp_path / "out")
    assert len(alive) == len(stored(source)) and max(alive) <= 2  # the one being read, and the one before it


def test_file_to_file_refuses_what_is_not_the_model(tmp_path):
    source = tiny.checkpoint(tmp_path / "in")
    tensors = stored(source)
    tensors.pop("model.image_newline")
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(UserError, match="1 tensors missing"):
        export_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Directories


def test_the_rest_of_the_directory_is_the_sources(tmp_path):
    source = tiny.checkpoint(tmp_path / "in")
    (source / "generation_config.json").write_text('{"eos_token_id": 258}')
    (source / "README.md").write_text("the source's card")
    (source / "optimizer.pt").write_text("not ours")
    export_model(tiny.on_one_device(source), source, tmp_path / "out", card="# Ours\n")
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "generation_config.json",
    ):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name
    assert read_json(tmp_path / "out/config.json") == read_json(source / "config.json")
    assert (tmp_path / "out/README.md").read_text() == "# Ours\n"
    assert not (tmp_path / "out/optimizer.pt").exists()


def test_what_the_source_lacks_is_written(tmp_path):
    """A checkpoint of weights, config and a tokenizer without chat template becomes a directory that is complete."""
    source = tiny.checkpoint(tmp_path / "in")
    for name in ("chat_template.jinja", "preprocessor_config.json"):
        (source / name).unlink()
    export_checkpoint(source, tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").chat_template == CHAT_TEMPLATE
    assert read_json(tmp_path / "out/generation_config.json") == {"eos_token_id": 258, "pad_token_id": 256}
    image, video = (read_json(tmp_path / "out" / f"{kind}preprocessor_config.json") for kind in ("", "video_"))
    assert image["image_mean"] == video["image_mean"] == [0.5, 0.5, 0.5]  # SigLIP's, as the model was run here
    assert image["size"] == video["size"] == {"height": tiny.SIDE, "width": tiny.SIDE}
    assert read_json(tmp_path / "out/processor_config.json")["num_image_tokens"] == 16
    assert tiny.on_one_device(tmp_path / "out").config == tiny.on_one_device(source).config


def test_the_chat_template_written_is_the_conversation_that_models_are_run_with(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    for media in ([], ["image"], ["image", "image"], ["video"]):
        content = [{"type": kind} for kind in media] + [{"type": "text", "text": "What is this?"}]
        found = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        pieces = qwen_1_5("What is this?", len(media), None)
        spelt = [getattr(p, "text", None) or getattr(p, "token", None) or f"<{media[p.index]}>" for p in pieces]
        assert found == "".join(spelt)


def test_large_models_are_sharded_and_indexed(tmp_path):
    source = tiny.checkpoint(tmp_path / "in", dtype=tiny.BFLOAT16)
    export_model(tiny.on_one_device(source), source, tmp_path / "out", shard_bytes=30_000)
    index = read_json(tmp_path / "out/model.safetensors.index.json")
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(shard.stat().st_size < 40_000 for shard in shards)
    for shard in shards:
        with safe_open(shard, "np") as file:
            assert file.metadata() == {"format": "pt"}
            assert {name for name, file_name in index["weight_map"].items() if file_name == shard.name} == set(file.keys())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in stored(source).values())
    assert_same_tensors(stored(tmp_path / "out"), stored(source))


def test_nothing_is_overwritten(tmp_path):
    source = tiny.checkpoint(tmp_path / "in")
    model = tiny.on_one_device(source)
    (tmp_path / "out").mkdir()
    export_model(model, source, tmp_path / "out")  # an empty directory is no loss
    with pytest.raises(UserError, match="exists and is not empty"):
        export_model(model, source, tmp_path / "out")
    with pytest.raises(UserError, match="exists and is not empty"):
        new_checkpoint(tmp_path / "out", tiny.config(), tiny.tokenizer())


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    source = tiny.checkpoint(tmp_path / "in")
    model = tiny.on_one_device(source)
    monkeypatch.setattr("mmrlhf_jax.huggingface.model_files._copy", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_model(model, source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# New checkpoints


@pytest.mark.long
def test_a_new_checkpoint_loads_and_is_a_function_of_its_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        new_checkpoint(tmp_path / name, tiny.config(), tiny.tokenizer(), chat_template=tiny.CHAT_TEMPLATE, seed=seed)
    a, b, c = (stored(tmp_path / name) for name in "abc")
    assert_same_tensors(a, b)
    assert not np.array_equal(a["image_newline"], c["image_newline"])
    loaded = tiny.on_one_device(tmp_path / "a")
    kernels = nnx.to_pure_dict(nnx.state(loaded))["vision"]["layers"]["up"]["kernel"]
    np.testing.assert_array_equal(kernels[2].T, a["vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight"])
    assert load_tokenizer(tmp_path / "a").chat_template == tiny.CHAT_TEMPLATE
    assert read_json(tmp_path / "a/generation_config.json") == {"eos_token_id": 258, "pad_token_id": 256}


# transformers as the reader


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("naming", ["hf", "legacy", "saved", "original"])
def test_transformers_loads_an_export_without_a_missing_or_unexpected_key(tmp_path, naming, tied):
    pytest.importorskip("torch")
    from transformers import LlavaOnevisionForConditionalGeneration

    source = tiny.checkpoint(tmp_path / "in", tiny.config(text={"tie_word_embeddings": tied}), naming=naming)
    export_model(tiny.on_one_device(source), source, tmp_path / "out", shard_bytes=50_000)
    _, info = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info


def test_the_parts_of_transformers_processor_load_from_an_export(tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, GenerationConfig, LlavaOnevisionProcessor

    source = tiny.checkpoint(tmp_path / "in", naming="original")
    export_checkpoint(source, tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "llava_onevision"
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 258
    tokenizer, images = (kind.from_pretrained(tmp_path / "out") for kind in (AutoTokenizer, AutoImageProcessor))
    settings = read_json(tmp_path / "out/processor_config.json")
    settings.pop("processor_class")
    processor = object.__new__(LlavaOnevisionProcessor)  # its constructor wants torchvision, for videos
    vars(processor).update(settings, image_processor=images, tokenizer=tokenizer)
    # 40 x 95 pixels on tiles of 30: transformers counts the visual tokens that this project plans.
    geometry = tiny.on_one_device(tmp_path / "out").config.geometry
    assert processor._get_number_of_features(40, 95, tiny.SIDE, tiny.SIDE) == plan_image(40, 95, geometry).tokens


def test_transformers_loads_a_new_checkpoint_with_its_tokenizer_and_image_processor(tmp_path):
    pytest.importorskip("torch")
    from transformers import (
        AutoTokenizer,
        GenerationConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
    )

    new_checkpoint(tmp_path / "new", tiny.config(), tiny.tokenizer(), chat_template=tiny.CHAT_TEMPLATE)
    _, info = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(info.values()), info
    processor = LlavaOnevisionImageProcessorPil.from_pretrained(tmp_path / "new")
    assert (processor.size.height, tuple(processor.image_mean)) == (tiny.SIDE, (0.5, 0.5, 0.5))
    assert processor.image_grid_pinpoints == tiny.PINPOINTS
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert tokenizer.convert_tokens_to_ids("<image>") == tiny.IMAGE_TOKEN
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert GenerationConfig.from_pretrained(tmp_path / "new").eos_token_id == 258


def test_transformers_reads_a_reward_model_as_a_policy_with_a_head_beside_it(tmp_path):
    pytest.importorskip("torch")
    from transformers import LlavaOnevisionForConditionalGeneration

    source = tiny.checkpoint(tmp_path / "in")
    export_model(tiny.on_one_device(source, reward_head="tanh"), source, tmp_path / "out")
    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    heads = {"rm_head.dense.weight", "rm_head.dense.bias", "rm_head.out_proj.weight", "rm_head.out_proj.bias"}
    assert info["unexpected_keys"] == heads and not info["missing_keys"]
    assert model.config.reward_head == "tanh"
