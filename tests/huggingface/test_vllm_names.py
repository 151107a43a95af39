"""vLLM finds a parameter for every tensor of an export, and a tensor for every parameter.

Its loader maps prefixes of names and then looks each name up among the parameters of its own modules. Both are stated here as
in vLLM's `vllm/model_executor/models/qwen2_vl.py`, `qwen2_5_vl.py` and `qwen3_vl.py`: `hf_to_vllm_mapper`, the modules that
each class creates, and what `load_weights` stacks (q, k and v of a language model, `gate_proj` and `up_proj`).
"""

import re

import pytest
from safetensors.numpy import load_file

from mmrlhf_jax.huggingface.export import export_model
from mmrlhf_jax.models.registry import family as family_named
from tests import tiny
from tests.families import FAMILIES

BOTH_SPELLINGS = {
    "model.language_model.": "language_model.model.",
    "model.visual.": "visual.",
    "lm_head.": "language_model.lm_head.",
    "model.": "language_model.model.",
}
MODULES_OF_TRANSFORMERS = {
    "model.visual.": "visual.",
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
}
LAYER = "language_model.model.layers.{text}"
TEXT = (
    "language_model.model.embed_tokens.weight",
    "language_model.model.norm.weight",
    f"{LAYER}.input_layernorm.weight",
    f"{LAYER}.post_attention_layernorm.weight",
    f"{LAYER}.self_attn.[q,k,v,o]_proj.weight",
    f"{LAYER}.mlp.[gate,up,down]_proj.weight",
)
QWEN2 = (*TEXT, f"{LAYER}.self_attn.[q,k,v]_proj.bias")
QWEN3 = (*TEXT, f"{LAYER}.self_attn.[q,k]_norm.weight")
ATTENTION = ("visual.blocks.{vision}.attn.[qkv,proj].[weight,bias]",)
# Architecture -> (prefixes that are replaced, parameters), where "{text}" and "{vision}" are the numbers of layers.
CLASSES = {
    "Qwen2VLForConditionalGeneration": (
        BOTH_SPELLINGS,
        (
            *QWEN2,
            *ATTENTION,
            "visual.patch_embed.proj.weight",
            "visual.blocks.{vision}.[norm1,norm2].[weight,bias]",
            "visual.blocks.{vision}.mlp.[fc1,fc2].[weight,bias]",
            "visual.merger.[ln_q,mlp.0,mlp.2].[weight,bias]",
        ),
    ),
    "Qwen2_5_VLForConditionalGeneration": (
        BOTH_SPELLINGS,
        (
            *QWEN2,
            *ATTENTION,
            "visual.patch_embed.proj.weight",
            "visual.blocks.{vision}.[norm1,norm2].weight",
            "visual.blocks.{vision}.mlp.[gate_proj,up_proj,down_proj].[weight,bias]",
            "visual.merger.ln_q.weight",
            "visual.merger.[mlp.0,mlp.2].[weight,bias]",
        ),
    ),
    "Qwen3VLForConditionalGeneration": (
        MODULES_OF_TRANSFORMERS,
        (
            *QWEN3,
            *ATTENTION,
            "visual.patch_embed.proj.[weight,bias]",
            "visual.pos_embed.weight",
            "visual.blocks.{vision}.[norm1,norm2].[weight,bias]",
            "visual.blocks.{vision}.mlp.[linear_fc1,linear_fc2].[weight,bias]",
            "visual.merger.[norm,linear_fc1,linear_fc2].[weight,bias]",
            "visual.deepstack_merger_list.{deepstack}.[norm,linear_fc1,linear_fc2].[weight,bias]",
        ),
    ),
}
SERVED = [name for name in FAMILIES if family_named(name).architecture in CLASSES]


def mapped(name: str, prefixes: dict[str, str]) -> str:
    """Every prefix is replaced where it fits, in this order, as by vLLM's `WeightsMapper`."""
    for old, new in prefixes.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def spelt_out(name: str, counts: dict[str, int]) -> list[str]:
    """The names that a pattern with choices "[a,b]" and numbers "{part}" stands for."""
    found = re.search(r"\[([^]]*)\]|\{(\w+)\}", name)
    if found is None:
        return [name]
    choices = found[1].split(",") if found[1] else map(str, range(counts[found[2]]))
    return [each for choice in choices for each in spelt_out(name.replace(found[0], choice, 1), counts)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", SERVED)
def test_an_export_has_the_names_that_vllm_reads(tmp_path, name, tied):
    raw = FAMILIES[name].config(text={"tie_word_embeddings": tied})
    raw["tie_word_embeddings"] = tied
    source = FAMILIES[name].checkpoint(tmp_path / "in", raw)
    model = tiny.on_one_device(source)
    export_model(model, source, tmp_path / "out")
    prefixes, parameters = CLASSES[family_named(name).architecture]
    vision = raw["vision_config"]
    counts = {"text": model.config.text.layers, "vision": model.config.tower_work.layers}
    counts["deepstack"] = len(vision.get("deepstack_visual_indexes", ()))
    head = () if tied else ("language_model.lm_head.weight",)
    expected = {each for pattern in (*parameters, *head) for each in spelt_out(pattern, counts)}
    written = [key for path in (tmp_path / "out").glob("*.safetensors") for key in load_file(path)]
    assert {mapped(key, prefixes) for key in written} == expected


def test_a_name_that_vllm_does_not_know_would_show():
    """The order of prefixes matters: the module `model.visual` is none of the language model."""
    assert mapped("model.visual.merger.ln_q.weight", BOTH_SPELLINGS) == "visual.merger.ln_q.weight"
    assert mapped("model.norm.weight", BOTH_SPELLINGS) == "language_model.model.norm.weight"
    assert mapped("model.norm.weight", MODULES_OF_TRANSFORMERS) == "model.norm.weight"
