"""What the weights of models of patches are called in published files. It imports no jax."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mmrlhf_jax.models.weight_names import CONVOLUTION_3D, DECODER, LINEAR, NORM, REWARD, Kind, Part, Row

# Of files with the language model's names at the top. The projector is a module of the tower there, so its prefix comes first.
AT_TOP = {
    "projector": Part("visual.merger.", None, ("model.visual.merger.",), "model.visual.merger."),
    "vision": Part("visual.", None, ("model.visual.",), "model.visual."),
    "language": Part("model.", None, ("model.language_model.",), "model.language_model."),
    "vocabulary": Part("lm_head.", None, (), "lm_head."),
    "reward": REWARD,
}


def as_modules(language: str, vocabulary: tuple[str, ...] = ()) -> dict[str, Part]:
    """The parts of files with the names of transformers' modules. Files of older programs, which are read as well, begin the
    language model's names with `language`, and those of its vocabulary projection with one of `vocabulary`."""
    return {
        "projector": Part("model.visual.merger.", None, ("visual.merger.",), "model.visual.merger."),
        "vision": Part("model.visual.", None, ("visual.",), "model.visual."),
        "language": Part("model.language_model.", None, (language,), "model.language_model."),
        "vocabulary": Part("lm_head.", None, vocabulary, "lm_head."),
        "reward": REWARD,
    }


def patch_rows(mlp: Mapping[str, str], merger: tuple[str, str, str], *, embedding: Kind = CONVOLUTION_3D) -> tuple[Row, ...]:
    """The modules of tower, projector and language model. `mlp`: stored name -> name here of the matrices of the tower's MLPs;
    `merger`: the projector's norm and its two matrices."""
    names = zip(merger, ("norm", "up", "down"), (NORM, LINEAR, LINEAR), strict=True)
    return (
        Row("vision", "patch_embed.proj", "vision.patch", embedding),
        Row("vision", "blocks.{}.norm1", "vision.layers.attention_norm", NORM),
        Row("vision", "blocks.{}.attn.qkv[0/3]", "vision.layers.attention.q", LINEAR),
        Row("vision", "blocks.{}.attn.qkv[1/3]", "vision.layers.attention.k", LINEAR),
        Row("vision", "blocks.{}.attn.qkv[2/3]", "vision.layers.attention.v", LINEAR),
        Row("vision", "blocks.{}.attn.proj", "vision.layers.attention.o", LINEAR),
        Row("vision", "blocks.{}.norm2", "vision.layers.mlp_norm", NORM),
        *(Row("vision", f"blocks.{{}}.mlp.{stored}", f"vision.layers.mlp.{here}", LINEAR) for stored, here in mlp.items()),
        *(Row("projector", stored, f"projector.{here}", kind) for stored, here, kind in names),
        *DECODER,
    )


UNUSED = {  # buffers that old releases of transformers write
    "vision": re.compile(r"rotary_pos_emb\.inv_freq"),
    "language": re.compile(r".*rotary_emb\.inv_freq"),
}
