"""Names of Qwen3-VL's weights, as in published files (`Qwen/Qwen3-VL-*`), whose names are those of transformers' modules."""

from __future__ import annotations

from mmrlhf_jax.models.patch_weights import UNUSED, as_modules, patch_rows
from mmrlhf_jax.models.weight_names import EMBEDDING, LINEAR, NORM, QK_NORMS, Row, WeightNames

MLP = {"linear_fc1": "up", "linear_fc2": "down"}
ROWS = (
    Row("vision", "pos_embed", "vision.table.positions", EMBEDDING),
    Row("vision", "deepstack_merger_list.{}.norm", "deepstack.norm", NORM),
    Row("vision", "deepstack_merger_list.{}.linear_fc1", "deepstack.up", LINEAR),
    Row("vision", "deepstack_merger_list.{}.linear_fc2", "deepstack.down", LINEAR),
    *patch_rows(MLP, ("norm", "linear_fc1", "linear_fc2")),
    *QK_NORMS,
)
PARTS = as_modules("language_model.model.", ("language_model.lm_head.",))
NAMES = WeightNames(PARTS, ROWS, UNUSED, wanted={})
