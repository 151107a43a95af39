"""What tests must know of each family of models: a module per family, all with the same names.

    checkpoint, config, tensors, tokenizer   tiny models with random weights, in every spelling of `NAMINGS`
    media_ids                                arguments of `config` for another tokenizer's media tokens
    SHAPES                                   arguments of `config` for unlike models
    TOLERANCE                                absolute, of logits and of what comes before them, against transformers
    PUBLISHED_GEOMETRY, TOKENS, VIDEO_TOKENS arguments of `config` for real tiles; what media are then
    QUICK_PICTURES, QUICK_FRAMES             media at the published geometry that the default suite takes; others are slow
    TOWER_LINEARS, TOWER_MODULES             linear layers of a layer of the tower that take adapters, here and in transformers
    PROJECTOR_LINEARS                        linear layers of the projector
    UNREAD_FILES                             naming -> processor file that no size depends on, if there is one
    PICTURES, FRAMES, ROW                    prompts, and a row that has room for each of them
    picture_inputs, frame_inputs, id_inputs  transformers' inputs for the same media and ids (these need torch, as do the next)
    draw_model, opening                      a random checkpoint that transformers wrote; a conversation as a string

A test that holds for every family is parametrised by the names in `FAMILIES`. Where that takes long, and other tests run the
same code for some families anyway, `by_default` says which of them run without `-m slow`.
"""

import pytest

from mmrlhf_jax.models.registry import DEFAULT
from tests.families import internvl, llava_onevision, llavaonevision1_5, qwen2_5_vl, qwen2_vl, qwen3_vl

FAMILIES = {
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llavaonevision1_5": llavaonevision1_5,
}
WITH_ORIGINAL = tuple(name for name, tests in FAMILIES.items() if "original" in tests.NAMINGS)
WITH_VIDEOS = tuple(name for name, tests in FAMILIES.items() if tests.FRAMES)
OTHERS = tuple(name for name in FAMILIES if name != DEFAULT)  # but the default family


def by_default(*names: str) -> list:
    """Parameters for every family, of which only these run by default; the others are slow."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in FAMILIES]


def other_spellings(name: str) -> list[str]:
    """The namings, but the first, of a family's weights that transformers reads as well."""
    unread = ("original", *getattr(FAMILIES[name], "UNREAD_BY_TRANSFORMERS", ()))
    return [naming for naming in FAMILIES[name].NAMINGS[1:] if naming not in unread]
