"""A plain model of LLaVA-OneVision-1.5 in torch, after the vendor's own code. Needs torch.

transformers has no class of this family: its checkpoints bring their code. The language model here is transformers' own Qwen3.
The tower: patches by a linear layer; before the patches of each frame a learnt token; a layer norm; layers of full attention
inside a frame, where heads are rotated by row and column, and by learnt angles at the learnt token; the token is dropped, and
2 x 2 patches become one feature.

For one image this tower equals `ds/llavaonevision1_5/modeling_llavaonevision1_5.py` of the vendor's repository (commit a5eb942)
bit for bit. For several it follows `aiak_training_llm/models/llavaov_1_5/rice_vision_model.py`, by which the models were
trained: the former takes the features of every further image one patch too early for each image before it.

`register` makes it known to transformers' auto classes under the names in its files.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
)
from transformers.modeling_outputs import CausalLMOutputWithPast


class TowerConfig(PretrainedConfig):
    model_type = "rice_vit"
    base_config_key = "vision_config"
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "depth"}  # noqa: RUF012


class TextConfig(Qwen3Config):
    model_type = "LLaVAOneVision1_5_text"
    base_config_key = "text_config"


class Config(PretrainedConfig):
    model_type = "llavaonevision1_5"
    sub_configs = {"vision_config": TowerConfig, "text_config": TextConfig}  # noqa: RUF012

    def __init__(self, vision_config=None, text_config=None, image_token_id=151655, **others):
        as_config = lambda kind, given: given if isinstance(given, kind) else kind(**(given or {}))
        self.vision_config = as_config(TowerConfig, vision_config)
        self.text_config = as_config(TextConfig, text_config)
        self.image_token_id = image_token_id
        super().__init__(**others)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x, angles):
        """Of one frame: x [n, width], angles [n, head size / 2]."""
        q, k, v = self.qkv(x).reshape(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)
        q, k = _turned(q, angles), _turned(k, angles)
        weights = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1)
        return self.proj((weights @ v).transpose(0, 1).reshape(len(x), -1))


def _turned(x, angles):
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn, self.mlp = Attention(width, config.num_heads), Mlp(width, config.intermediate_size)

    def forward(self, x, angles):
        x = x + self.attn(self.norm1(x), angles)
        return x + self.mlp(self.norm2(x))


class Patch(nn.Module):
    def __init__(self, width: int, side: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, side, side, bias=False)

    def forward(self, x):
        side = self.proj.kernel_size[0]
        return self.proj(x.reshape(-1, 3, side, side).to(self.proj.weight.dtype)).flatten(1)


class Merger(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        merged = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, config.text_hidden_size))

    def forward(self, x):
        return self.mlp(self.ln_q(x).reshape(-1, self.mlp[0].in_features))


class Tower(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        self.config = config
        width, pairs = config.hidden_size, config.hidden_size // config.num_heads // 2
        self.patch_embed = Patch(width, config.patch_size)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.class_pos_emb = nn.Parameter(torch.randn(1, pairs))
        self.pre_layernorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.merger = Merger(config)

    def forward(self, patches, grids):
        found, start = [], 0
        for times, rows, columns in grids.tolist():
            for _ in range(times):
                frame = self.patch_embed(patches[start : start + rows * columns])
                angles = torch.cat([self.class_pos_emb, self._angles(rows, columns).to(frame)])
                x = self.pre_layernorm(torch.cat([self.class_embedding[None], frame]))
                for block in self.blocks:
                    x = block(x, angles)
                found.append(x[1:])
                start += rows * columns
        return self.merger(torch.cat(found))

    def _angles(self, rows: int, columns: int):
        """[rows * columns, head size / 2], block by block."""
        merge, quarter = self.config.spatial_merge_size, self.class_pos_emb.shape[1] // 2
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        by_block = lambda x: x.reshape(rows // merge, merge, columns // merge, merge).transpose(1, 2).flatten()
        frequencies = 1e4 ** -(torch.arange(quarter) / quarter)
        return torch.cat([by_block(each)[:, None] * frequencies for each in (row, column)], dim=1)


class Base(PreTrainedModel):
    config_class = Config
    base_model_prefix = "model"
    _no_split_modules = ("Block",)
    _supports_sdpa = True

    def _init_weights(self, module):
        pass


class Inner(Base):
    def __init__(self, config: Config):
        super().__init__(config)
        self.visual = Tower(config.vision_config)
        self.language_model = Qwen3Model(config.text_config)
        self.post_init()


class Model(Base, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: Config):
        super().__init__(config)
        self.model = Inner(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.language_model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self, input_ids, attention_mask=None, pixel_values=None, image_grid_thw=None, cache=None, logits_to_keep=0, **options
    ):
        x = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = self.model.visual(pixel_values, image_grid_thw)
            x = x.masked_scatter((input_ids == self.config.image_token_id)[..., None], features.to(x.dtype))
        options = {key: value for key, value in options.items() if key in ("output_hidden_states", "use_cache", "position_ids")}
        out = self.model.language_model(inputs_embeds=x, attention_mask=attention_mask, cache=cache, **options)
        kept = out.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else out.last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(kept), cache=out.cache, hidden_states=out.hidden_states)

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, **kwargs):
        found = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration:
            found["pixel_values"] = None
        return found


@functools.cache
def register() -> None:
    AutoConfig.register(Config.model_type, Config)
    AutoModelForImageTextToText.register(Config, Model)
