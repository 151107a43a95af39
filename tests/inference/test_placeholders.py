"""A placeholder of media that a model writes is text: only the slots of media are visual."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.data.tokens import Conversation, token_tree
from mmrlhf_jax.inference.engine import Engine, Prompt
from mmrlhf_jax.inference.prompts import plans_of
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.sharding.mesh import make_mesh
from tests import ranked, tiny
from tests.families import FAMILIES


def writing_placeholders(directory, family: str):
    """A reward model whose hidden states all have a large first entry, of which its logits make the placeholder."""
    raw = FAMILIES[family].config(text={"tie_word_embeddings": False})
    FAMILIES[family].checkpoint(directory, raw, reward_head=True)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    (embedding,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    (head,) = (name for name in tensors if name.endswith("lm_head.weight"))
    placeholder = next(raw[key] for key in ("image_token_id", "image_token_index") if key in raw)
    tensors[embedding][:, 0] += 30
    tensors[head][:] *= 0.01
    tensors[head][placeholder, 0] = 0.9  # so that it is likeliest, and its log-prob is not 0
    save_file(tensors, path, metadata={"format": "pt"})
    return placeholder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [[], [(40, 30), (20, 20)]], ids=str)
@pytest.mark.long
def test_a_written_placeholder_is_text_and_writing_goes_on(tmp_path, family, sizes):
    placeholder = writing_placeholders(tmp_path, family)
    engine = Engine.load(str(tmp_path), batch=1, mesh=make_mesh({}, jax.devices()[:1]))
    images = tuple(ranked.picture(size, seed) for seed, size in enumerate(sizes))
    example = Example(RankedRecord("p", "What is it?", (), tuple(f"{number}.png" for number in range(len(sizes)))), images)
    encoder, plans = engine.encoder("answer"), plans_of(example, engine.encoder("answer"))
    opening = encoder.tokens(encoder.open_pieces(example.record, None, len(plans)), plans)
    assert opening.is_visual.sum() == sum(plan.tokens for plan in plans)

    def with_written(record, response, plans, new) -> Conversation:
        return opening._replace(tokens=np.concatenate([opening.tokens, np.asarray(new, np.int32)]))

    asked = dataclasses.replace(engine.asked(6), rewarded=with_written, stops=frozenset())
    ((written,),) = engine.write([Prompt(example)], asked)
    assert written.tokens == [placeholder] * 6 and written.reason == "length"
    assert np.isfinite(written.logps).all() and np.isfinite(written.reward)

    # As the training rows have it: the same log-probs and reward, with the placeholders among the text's slots.
    count, start = len(opening.tokens), 0 if opening.positions is None else int(opening.positions.max()) + 1
    text = np.arange(start, start + 6)[:, None].repeat(3, axis=1)
    whole = Conversation(
        np.concatenate([opening.tokens, np.full(6, placeholder, np.int32)]),
        np.arange(count + 6) >= count,
        np.concatenate([opening.is_visual, np.zeros(6, bool)]),
        None if opening.positions is None else np.concatenate([opening.positions, text]),
    )
    tree, geometry = token_tree([whole]), encoder.geometry
    tiles = geometry.cut_images([decode_image(data, "") for data in images])
    media = geometry.empty(slots=count + 6, tiles=max(len(tiles), 1), visual=max(len(tree.visual), 1))
    geometry.place(media, geometry.of_group(tiles, plans, tree.visual, tree.trunk), slot=0, tile=0, visual=0)
    row = (tree.tokens, tree.positions, tree.visible_until, media)
    model = tiny.on_one_device(tmp_path, remat="none")
    hidden = jax.jit(lambda model, row: model(*row))(model, jax.tree.map(lambda array: array[None], row))
    logps = jax.nn.log_softmax(hidden[0, count - 1 : -1] @ model.language.vocabulary())[:, placeholder]
    np.testing.assert_allclose(written.logps, logps, atol=1e-4)
    assert max(written.logps) < -0.01
    np.testing.assert_allclose(written.reward, model.reward_head(hidden)[0, -1], atol=1e-4)
