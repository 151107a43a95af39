"""Every tensor is read from the file that the index names; whatever else lies in a directory is not the model, and is said."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface import weight_files
from mmrlhf_jax.huggingface.checkpoint import check_checkpoint
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.huggingface.tensors import StoredTensors
from tests import tiny

INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def said_anew():
    weight_files.say_once.cache_clear()


def split(directory, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), index=True):
    """The single file as shards, every second tensor in each; the tensors by name."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    places = {name: names[i % len(names)] for i, name in enumerate(sorted(tensors))}
    for filename in names:
        save_file({name: tensors[name] for name in tensors if places[name] == filename}, directory / filename)
    if index:
        (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return tensors


def assert_reads(directory, tensors):
    stored = StoredTensors(directory)
    assert stored.shapes.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(stored.read(name), value, err_msg=name)


def refusal(directory) -> str:
    with pytest.raises(UserError) as error:
        check_checkpoint(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("stale", ["model.safetensors", "model-00001-of-00003.safetensors", "consolidated.safetensors"])
def test_a_stale_copy_beside_the_files_of_the_index_is_ignored_and_said_once(tmp_path, capsys, stale):
    directory = tiny.checkpoint(tmp_path)
    tensors = split(directory)
    before = model_fingerprint(directory)
    save_file({name: value + 1 for name, value in tensors.items()}, directory / stale)
    assert_reads(directory, tensors)
    assert_reads(directory, tensors)
    assert model_fingerprint(directory) == before
    said = [line for line in capsys.readouterr().err.splitlines() if "ignored" in line]
    assert said == [f"{directory}: the weights are those of {INDEX}; ignored: {stale} (remove what is stale)"]


def test_a_copy_of_a_tensor_in_another_file_of_the_index_is_ignored_and_said(tmp_path, capsys):
    """The last file would win if files were simply read one after the other; here the stale copy is in the last."""
    directory = tiny.checkpoint(tmp_path)
    tensors = split(directory)
    last = directory / "model-00002-of-00002.safetensors"
    first = next(
        name for name, filename in json.loads((directory / INDEX).read_text())["weight_map"].items() if "1-of" in filename
    )
    save_file(load_file(last) | {first: tensors[first] + 1}, last)
    assert_reads(directory, tensors)
    assert f"ignored: 1 tensors of {last.name}" in capsys.readouterr().err
    before = model_fingerprint(directory)
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"][first] = last.name
    (directory / INDEX).write_text(json.dumps(index))
    assert_reads(directory, tensors | {first: tensors[first] + 1})
    assert model_fingerprint(directory) != before, "the same files, but another model"


@pytest.mark.parametrize("index", [True, False])
def test_an_index_that_decides_nothing_does_not_count_in_a_fingerprint(tmp_path, index):
    directory = tiny.checkpoint(tmp_path)
    split(directory, index=index)
    before = model_fingerprint(directory)
    if index:
        (directory / INDEX).unlink()
    else:
        places = {name: path.name for path in directory.glob("*.safetensors") for name in load_file(path)}
        (directory / INDEX).write_text(json.dumps({"weight_map": places}))
    assert model_fingerprint(directory) == before


@pytest.mark.parametrize("folder", ["weights", "./weights", "deep/er"])
def test_an_index_may_name_files_in_a_folder(tmp_path, capsys, folder):
    directory = tiny.checkpoint(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    (directory / folder).mkdir(parents=True)
    (directory / "model.safetensors").rename(directory / folder / "model.safetensors")
    places = dict.fromkeys(tensors, f"{folder}/model.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": places}))
    assert_reads(directory, tensors)
    assert "ignored" not in capsys.readouterr().err
    save_file({name: value + 1 for name, value in tensors.items()}, directory / "model.safetensors")
    assert_reads(directory, tensors)
    assert "ignored: model.safetensors (remove what is stale)" in capsys.readouterr().err


def test_what_lies_beside_a_single_file_is_ignored_and_said_but_an_adapter_is_no_model(tmp_path, capsys):
    directory = tiny.checkpoint(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors, directory / "adapter_model.safetensors")
    assert_reads(directory, tensors)
    assert capsys.readouterr().err == ""
    save_file({name: value + 1 for name, value in tensors.items()}, directory / "model-00001-of-00001.safetensors")
    assert_reads(directory, tensors)
    assert "those of model.safetensors; ignored: model-00001-of-00001.safetensors" in capsys.readouterr().err


def test_a_tensor_that_its_file_lacks_is_named_with_the_file(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    split(directory)
    path = directory / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    lost = sorted(tensors)[0]
    tensors.pop(lost)
    save_file(tensors, path)
    assert f"{path}: {INDEX} says that it holds {lost}, but it does not" in refusal(directory)


def test_a_file_that_is_missing_is_named_even_if_another_copy_of_its_tensors_is_there(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    tensors = split(directory)
    save_file(tensors, directory / "model.safetensors")
    (directory / "model-00002-of-00002.safetensors").unlink()
    assert "1 of 2 weight files are missing, first model-00002-of-00002.safetensors" in refusal(directory)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": null}', "{}"]
)
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tiny.checkpoint(tmp_path) / INDEX).write_text(text)
    assert f"{INDEX}: not a safetensors index" in refusal(tmp_path)


def test_an_index_that_names_two_files_for_one_tensor_is_refused(tmp_path):
    (tiny.checkpoint(tmp_path) / INDEX).write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    assert f"{INDEX}: a is given twice" in refusal(tmp_path)


def test_numbered_shards_without_an_index_are_read_if_all_are_there(tmp_path, capsys):
    directory = tiny.checkpoint(tmp_path)
    tensors = split(directory, index=False)
    assert_reads(directory, tensors)
    check_checkpoint(directory)
    assert capsys.readouterr().err == f"{directory}: no {INDEX}; all tensors of its 2 numbered shards are read\n"


def test_numbered_shards_without_an_index_are_refused_by_the_number_that_is_missing(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    names = [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    split(directory, names, index=False)
    (directory / names[2]).unlink()
    assert "no model.safetensors.index.json, and of model-*-of-00004.safetensors number 00003 is missing" in refusal(directory)
    (directory / names[3]).unlink()
    assert "number 00003, 00004 is missing" in refusal(directory)


def test_two_sets_of_shards_without_an_index_are_refused(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    tensors = split(directory, index=False)
    save_file(tensors, directory / "model-00001-of-00001.safetensors")
    assert "shards of several sets (model-*-of-00001.safetensors, model-*-of-00002.safetensors)" in refusal(directory)


def test_a_tensor_in_two_shards_without_an_index_is_refused_with_both_files(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    tensors = split(directory, index=False)
    path = directory / "model-00002-of-00002.safetensors"
    twice = sorted(tensors)[0]
    save_file(load_file(path) | {twice: tensors[twice] + 1}, path)
    message = f"tensor {twice} is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors; remove one"
    assert message in refusal(directory)


def test_safetensors_of_another_name_alone_are_named(tmp_path):
    directory = tiny.checkpoint(tmp_path)
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    assert "no weights (model.safetensors or model.safetensors.index.json); there is weights.safetensors" in refusal(directory)


@pytest.mark.parametrize("naming", ["hf", "legacy", "original"])
def test_a_missing_projection_names_the_cure(tmp_path, naming):
    directory = tiny.checkpoint(tmp_path, tiny.config(text={"tie_word_embeddings": False}), naming=naming)
    tensors = load_file(directory / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith("lm_head.weight")))
    save_file(tensors, directory / "model.safetensors")
    message = refusal(directory)
    assert "1 tensors missing (" in message and "lm_head.weight" in message
    assert 'set "tie_word_embeddings": true in config.json' in message


def test_the_cure_is_one_and_is_not_offered_for_what_else_is_missing(tmp_path):
    directory = tiny.checkpoint(tmp_path, tiny.config(text={"tie_word_embeddings": False}))
    tensors = load_file(directory / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, directory / "model.safetensors")
    raw = json.loads((directory / "config.json").read_text())
    raw["text_config"]["tie_word_embeddings"] = raw["tie_word_embeddings"] = True
    (directory / "config.json").write_text(json.dumps(raw))
    assert check_checkpoint(directory)[0].text.tied
    tensors.pop("model.image_newline")
    save_file(tensors, directory / "model.safetensors")
    assert "tie_word_embeddings" not in refusal(directory)
