"""Names of LLaVA-OneVision-1.5's weights, as its own code names its modules."""

from __future__ import annotations

from mmrlhf_jax.models.patch_weights import UNUSED, as_modules, patch_rows
from mmrlhf_jax.models.weight_names import (
    ARRAY,
    ARRAY_OF_ONE,
    CONVOLUTION_OF_PLANES,
    NORM,
    QK_NORMS,
    Row,
    WeightNames,
)

MLP = {"fc1": "up", "fc2": "down"}
ROWS = (
    Row("vision", "class_embedding", "vision.class_token.embedding", ARRAY),
    Row("vision", "class_pos_emb", "vision.class_token.angles", ARRAY_OF_ONE),
    Row("vision", "pre_layernorm", "vision.class_token.norm", NORM),
    *patch_rows(MLP, ("ln_q", "mlp.0", "mlp.2"), embedding=CONVOLUTION_OF_PLANES),
    *QK_NORMS,
)
NAMES = WeightNames(as_modules("model."), ROWS, UNUSED, wanted={})
