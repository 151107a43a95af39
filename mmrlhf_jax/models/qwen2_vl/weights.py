"""Names of Qwen2-VL's weights, as in published files (`Qwen/Qwen2-VL-*`) and as transformers names its modules."""

from __future__ import annotations

from mmrlhf_jax.models.patch_weights import AT_TOP, UNUSED, patch_rows
from mmrlhf_jax.models.weight_names import WeightNames

NAMES = WeightNames(AT_TOP, patch_rows({"fc1": "up", "fc2": "down"}, ("ln_q", "mlp.0", "mlp.2")), UNUSED, wanted={})
