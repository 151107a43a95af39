"""Sizes of a Qwen2 or Qwen3 language model, read from the `text_config` of a vision-language model's config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.models.decoder import TextConfig
from mmrlhf_jax.models.stated import Stated

# The defaults of transformers' Qwen2Config for keys that a config.json lacks.
TEXT_DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
# Keys of the language model, which some families' published files have at the top of config.json, and newer ones in
# `text_config`.
KEYS = (
    *TEXT_DEFAULTS,
    "rms_norm_eps",
    "rope_theta",
    "head_dim",
    "hidden_act",
    "rope_scaling",
    "rope_parameters",
    "use_sliding_window",
    "max_position_embeddings",
)


# Sizes in which the published models of a family differ, as `config.json` names them.
TEXT_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def text_sizes(sizes: Sequence[int]) -> dict[str, int]:
    """Sizes in the order of `TEXT_KEYS`, by these names."""
    return dict(zip(TEXT_KEYS, sizes, strict=True))


def with_text_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the language model's settings in `text_config`, from one that may have them at the top."""
    if raw.get("text_config") is not None:
        return dict(raw)
    return {**raw, "text_config": {key: raw[key] for key in KEYS if key in raw}}


def read_text_config(
    top: Stated,
    where: str,
    title: str,
    *,
    tied: bool | None = None,
    defaults: Mapping[str, Any] = TEXT_DEFAULTS,
    model_types: tuple[str, ...] = ("qwen2",),
    axes: tuple[int, ...] | None = None,
    interleaved: bool = False,
    is_qwen3: bool = False,
    deepstack: int = 0,
) -> TextConfig:
    """The language model's sizes, from a whole config.json. `where` is its path and `title` the family's name, for messages.

    `tied`: whether embeddings and vocabulary projection are tied; None: if either the outer or the inner config says so, as in
    transformers for most families. `defaults` and `model_types` are those of the family's class in transformers. `axes` is for
    families whose positions have several axes: how many pairs of dimensions each axis rotates, if `mrope_section` does not say
    it; `interleaved`: the axes take turns. `is_qwen3`: the layers are Qwen3's, with norms of queries and keys and no biases.
    `deepstack` is `TextConfig`'s. Raises UserError for a language model that `models.decoder` does not implement.
    """
    raw = top.part("text_config", defaults)
    if raw.get("model_type", model_types[0]) not in model_types:
        raise UserError(
            f"{where}: text_config.model_type is {raw.get('model_type')!r}; this project runs"
            f" {'Qwen3' if is_qwen3 else 'Qwen2'} language models"
        )
    if is_qwen3 and raw.truth("attention_bias", False):
        raise UserError(f"{where}: text_config: attention_bias is not supported for Qwen3 language models")
    if raw.get("use_sliding_window") or raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: text_config has a sliding window or an activation other than silu, which is not supported")
    rope = raw.part("rope_scaling" if raw.get("rope_scaling") else "rope_parameters")  # the former counts, as in transformers
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "dynamic" if axes is None else "mrope"):
        raise UserError(f"{where}: rope_type {kind!r} is not supported; {title} uses plain rotary embeddings")
    if kind == "dynamic":
        rope.positive("factor")  # transformers needs it, although embeddings are plain up to max_position_embeddings
    hidden, heads = raw.integer("hidden_size", least=1), raw.integer("num_attention_heads", least=1)
    kv_heads = heads if raw.get("num_key_value_heads") is None else raw.integer("num_key_value_heads", least=1)
    if heads % kv_heads:
        raise UserError(f"{where}: text_config: {heads} attention heads are no multiple of num_key_value_heads {kv_heads}")
    head_dim = hidden // heads if raw.get("head_dim") is None else raw.integer("head_dim", least=1)
    if axes is not None and not is_qwen3 and head_dim != hidden // heads:  # transformers takes no notice of it there
        raise UserError(f"{where}: text_config: head_dim {head_dim} is not {hidden // heads}, the width of a head")
    return TextConfig(
        vocab_size=raw.integer("vocab_size", least=1),
        hidden_size=hidden,
        intermediate_size=raw.integer("intermediate_size", least=1),
        layers=raw.integer("num_hidden_layers", least=1),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=rope.positive("rope_theta") if rope.get("rope_theta") is not None else raw.positive("rope_theta", 1e4),
        rms_norm_eps=raw.positive("rms_norm_eps", 1e-6),
        tied=any([each.truth("tie_word_embeddings", False) for each in (top, raw)]) if tied is None else tied,
        attention_bias=not is_qwen3,
        qk_norm=is_qwen3,
        deepstack=deepstack,
        rope_axes=None if axes is None else _rope_axes(rope, axes, head_dim, interleaved=interleaved),
        max_positions=raw.integer("max_position_embeddings", 32768, least=1) if kind == "dynamic" else None,
    )


def _rope_axes(rope: Stated, default: tuple[int, ...], head_dim: int, *, interleaved: bool) -> tuple[int, ...]:
    """The axis that rotates each pair of dimensions. In blocks, the first `mrope_section[0]` pairs are the first axis's, and so
    on. Interleaved, of every three pairs one is each axis's: the second's up to three times `mrope_section[1]`, the third's up
    to three times `mrope_section[2]`, and all others are the first axis's."""
    sections = rope.get("mrope_section", list(default))
    if not isinstance(sections, list) or not all(isinstance(size, int) and size >= 0 for size in sections):
        raise UserError(f"{rope.where}: mrope_section must be a list of whole numbers, found {shown(sections)}")
    if len(sections) != len(default) or 2 * sum(sections) != head_dim:
        raise UserError(f"{rope.where}: mrope_section {sections} is not {len(default)} numbers with the sum {head_dim // 2}")
    # transformers' classes have one order each, whatever the key says, so another one there would be a silent difference.
    stated = rope.get("mrope_interleaved")
    if stated is not None and rope.truth("mrope_interleaved", interleaved) != interleaved:
        order = "interleaved" if interleaved else "in blocks"
        raise UserError(f"{rope.where}: mrope_interleaved is {stated}; the axes of this model are {order}")
    if interleaved:
        return tuple(i % 3 if i < 3 * sections[i % 3] else 0 for i in range(head_dim // 2))
    return tuple(axis for axis, size in enumerate(sections) for _ in range(size))
