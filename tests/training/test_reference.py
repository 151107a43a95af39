"""The cached reference: computed once per content and model, kept while it is made, and read where nothing has changed."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.scored_rows import scored_rows
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import write_arrays
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry
from mmrlhf_jax.objectives.outputs import Outputs
from mmrlhf_jax.sharding.mesh import make_mesh
from mmrlhf_jax.training import reference
from tests import ranked, tiny

RANKS = [(1, 2), (1, 2, 3), (1, 1, 2), (2, 1), (1, 2)]


@pytest.fixture
def source(tmp_path):
    return ranked.write(tmp_path / "data", RANKS, [[]] * len(RANKS))


def rows(source, left_out=()):
    geometry = VisionGeometry(tiny.SIDE, 7, pinpoints=((tiny.SIDE, tiny.SIDE),), max_patches=9)
    encoder = GroupEncoder(PieceTokenizer(tiny.tokenizer(), tiny.IMAGE_TOKEN), geometry, "qwen_1_5")
    (found,) = scored_rows(open_examples(source), encoder)
    keep = ~np.isin(found.index.groups, left_out)
    return dataclasses.replace(found, index=found.index.keep(keep, [f"group {g}" for g in left_out]))


class Model:
    """Stands in for a model: a response's log-prob is minus the sum of its target tokens. Counts its batches; may fail."""

    def __init__(self, fails_at: int = 1000):
        self.batches, self.fails_at = 0, fails_at

    def __call__(self, params, frozen, batch):
        if self.batches == self.fails_at:
            raise KeyboardInterrupt
        self.batches += 1
        batch = jax.tree.map(np.asarray, batch)
        count = batch.ends.shape[1]
        logps, lengths = np.zeros((2, *batch.ends.shape), np.float32)
        for b in range(len(logps)):
            used = batch.responses[b] < count
            np.add.at(logps[b], batch.responses[b][used], -batch.targets[b][used])
            np.add.at(lengths[b], batch.responses[b][used], 1)
        logps, lengths = jnp.asarray(logps), jnp.asarray(lengths)
        return Outputs(logps, logps, logps, logps, logps, batch.targets), lengths


def logps(model, source, cache, fingerprint="model", left_out=()):
    mesh = make_mesh({"fsdp": -1})
    chosen = rows(source, left_out)
    return reference.reference_logps(model, None, None, chosen, fingerprint, batch_rows=1, mesh=mesh, cache=cache)


@pytest.fixture(autouse=True)
def keep_every_batch(monkeypatch):
    monkeypatch.setattr(reference, "score_responses", functools.partial(reference.score_responses, keep_seconds=0.0))


@pytest.fixture
def cache(tmp_path):
    return epath.Path(tmp_path / "cache")


def test_every_response_has_its_own_log_prob(source, cache):
    found = logps(Model(), source, cache)
    tokenizer, expected = tiny.tokenizer(), []
    for line in source.read_text().splitlines():
        for response in json.loads(line)["responses"]:
            expected.append(-float(sum(tokenizer(response["text"] + "<|im_end|>").input_ids)))
    np.testing.assert_array_equal(found, expected)


def test_a_pass_that_was_cut_off_continues_where_it_stopped(source, cache):
    whole = Model()
    expected = logps(whole, source, cache / "whole")
    with pytest.raises(KeyboardInterrupt):
        logps(Model(fails_at=3), source, cache)  # the one before is still under way
    continued = Model()
    np.testing.assert_array_equal(logps(continued, source, cache), expected)
    assert continued.batches == whole.batches - 2 > 0
    assert [path.name for path in cache.glob("*partial*")] == []


def test_the_same_data_and_model_are_not_computed_again_and_others_are(source, cache):
    first = logps(Model(), source, cache)
    again = Model()
    np.testing.assert_array_equal(logps(again, source, cache), first)
    assert again.batches == 0
    other_model = Model()
    logps(other_model, source, cache, fingerprint="another model")
    assert other_model.batches > 0
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    lines[1]["responses"][0]["text"] = "Something else."
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed = Model()
    assert (logps(changed, source, cache) != first).sum() == 1
    assert changed.batches > 0


def change(directory, name: str, where: int) -> None:
    """Add a little to 64 neighbouring values of a tensor (what a small region of training would do), in place."""
    tensors = load_file(directory / "model.safetensors")
    tensors[name].reshape(-1)[where : where + 64] += 1e-3
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    ["model.multi_modal_projector.linear_1.weight", "model.language_model.norm.weight", "model.image_newline"],
)
def test_checkpoints_that_differ_in_one_tensor_alone_have_other_fingerprints(tmp_path, name):
    """Large enough that what stands between the tensors is many times what is read of them."""
    raw = tiny.config(text={"hidden_size": 192, "vocab_size": 20_000, "num_hidden_layers": 8})
    one, other = (tiny.checkpoint(tmp_path / part, raw) for part in ("one", "other"))
    assert model_fingerprint(one) == model_fingerprint(other)
    change(other, name, where=0)
    assert model_fingerprint(one) != model_fingerprint(other)


def test_the_fingerprint_knows_the_end_of_a_large_tensor_and_how_pictures_are_seen(tmp_path):
    one, other = (tiny.checkpoint(tmp_path / part) for part in ("one", "other"))
    embedding = "model.language_model.embed_tokens.weight"
    change(other, embedding, where=264 * 48 - 64)
    assert model_fingerprint(one) != model_fingerprint(other)
    change(one, embedding, where=264 * 48 - 64)
    assert model_fingerprint(one) == model_fingerprint(other)
    processor = other / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace("0.48", "0.5"))
    assert model_fingerprint(one) != model_fingerprint(other)
    assert model_fingerprint(one) != model_fingerprint(one, dtype="bfloat16")


def test_a_run_that_left_groups_out_leaves_no_hole_for_one_that_keeps_them(source, cache):
    """Both have the same data and encoder: what one did not compute must not be read by the other."""
    fewer = logps(Model(), source, cache, left_out=(1, 3))
    every = logps(Model(), source, cache)
    assert np.isnan(fewer).sum() == 5 and not np.isnan(every).any()
    np.testing.assert_array_equal(every[~np.isnan(fewer)], fewer[~np.isnan(fewer)])
    np.testing.assert_array_equal(logps(Model(fails_at=0), source, cache, left_out=(1, 3)), fewer)  # read, not computed


def damaged(name: str, written) -> bytes | np.ndarray:
    """What a kept file may hold that is not what was written there."""
    match name:
        case "nan":
            return np.where(np.arange(len(written)) == 3, np.nan, written)
        case "infinity":
            return np.where(np.arange(len(written)) == 3, -np.inf, written)
        case "other responses":
            return written[:-1]
    return b"" if name == "empty" else b"PK\x03\x04 no more"


@pytest.mark.parametrize("how", ["nan", "infinity", "other responses", "empty", "torn"])
def test_kept_log_probs_that_are_not_whole_or_not_finite_are_computed_anew(source, cache, capsys, how):
    first = logps(Model(), source, cache)
    (path,) = cache.glob("reference-*.npz")
    wrong = damaged(how, first)
    path.write_bytes(wrong) if isinstance(wrong, bytes) else write_arrays(path, logps=wrong)
    again = Model()
    np.testing.assert_array_equal(logps(again, source, cache), first)
    assert again.batches > 0 and path.name in capsys.readouterr().err
    np.testing.assert_array_equal(logps(Model(fails_at=0), source, cache), first)


@pytest.mark.parametrize("how", ["empty", "torn"])
def test_a_pass_whose_kept_part_is_damaged_starts_over(source, cache, how):
    with pytest.raises(KeyboardInterrupt):
        logps(Model(fails_at=2), source, cache)
    (partial,) = cache.glob("*partial*")
    partial.write_bytes(damaged(how, None))
    whole = Model()
    np.testing.assert_array_equal(logps(whole, source, cache), logps(Model(), source, cache / "whole"))
    assert whole.batches > 2


class Overflowing(Model):
    """A model whose log-probs of long responses are not finite."""

    def __call__(self, params, frozen, batch):
        outputs, lengths = super().__call__(params, frozen, batch)
        return outputs._replace(logps=jnp.where(lengths == lengths.max(), jnp.nan, outputs.logps)), lengths


def test_a_reference_that_is_not_finite_is_an_error_that_names_the_record_and_is_not_kept(source, cache):
    with pytest.raises(UserError, match=r"reference log-probs are not finite, the first is of record '"):
        logps(Overflowing(), source, cache)
    assert not [path for path in cache.glob("*.npz") if "partial" not in path.name]
