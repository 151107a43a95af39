"""Names of Qwen2.5-VL's weights, as in published files (`Qwen/Qwen2.5-VL-*`) and as transformers names its modules."""

from __future__ import annotations

from mmrlhf_jax.models.patch_weights import AT_TOP, UNUSED, patch_rows
from mmrlhf_jax.models.weight_names import WeightNames

MLP = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
NAMES = WeightNames(AT_TOP, patch_rows(MLP, ("ln_q", "mlp.0", "mlp.2")), UNUSED, wanted={})
