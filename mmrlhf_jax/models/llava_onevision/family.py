"""LLaVA-OneVision as a `Family`: SigLIP, a two-layer projector, Qwen2; anyres tiles; `llava-hf` and `lmms-lab` naming."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mmrlhf_jax.models.family import Checkpoint, Family
from mmrlhf_jax.models.llava_onevision import original, processors
from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry
from mmrlhf_jax.models.llava_onevision.weights import NAMES
from mmrlhf_jax.models.media_tokens import check_embedded
from mmrlhf_jax.models.stated import Stated
from mmrlhf_jax.models.weight_names import Naming

if TYPE_CHECKING:
    from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig
    from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision

logger = logging.getLogger(__name__)


class LlavaOnevisionFamily(Family):
    model_type = "llava_onevision"
    title = "LLaVA-OneVision"
    architecture = "LlavaOnevisionForConditionalGeneration"
    language_model = "qwen2"
    text_configs = ("text_config",)
    publishers: ClassVar = {"hf": "llava-hf", "original": "lmms-lab"}
    template = "qwen_1_5"
    media_tags = ("<image>",)
    media_tokens = ("<video>",)
    parts: ClassVar = {**Family.parts, "newline": "newline"}
    names = NAMES
    processor_files = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")

    def is_original(self, config: Mapping[str, Any]) -> bool:
        return original.is_original(config)

    def read(self, checkpoint: Checkpoint) -> LlavaOnevisionConfig:
        from mmrlhf_jax.models.llava_onevision.config import read_config

        return read_config(checkpoint)

    def published(self, path: str) -> LlavaOnevisionConfig | None:
        from mmrlhf_jax.models.llava_onevision.published import published_config

        return published_config(path)

    def typical_geometry(self) -> VisionGeometry:
        sides = range(384, 384 * 7, 384)
        return VisionGeometry(384, 14, tuple((height, width) for height in sides for width in sides), 9)

    def vocabulary(self, config: Mapping[str, Any], where: str) -> int:
        from mmrlhf_jax.models.qwen2 import TEXT_DEFAULTS

        whole = Stated(config, where)
        text = whole.part("text_config")  # the original naming has the language model's keys at the top
        default = TEXT_DEFAULTS["vocab_size"] if whole.get("vocab_size") is None else whole.integer("vocab_size", least=1)
        return text.integer("vocab_size", default, least=1)

    def prepare_tokenizer(self, tokenizer: Any, config: Mapping[str, Any], where: str) -> None:
        """Add `<image>` and `<video>` after the last token of an original tokenizer, as in the converted checkpoints. It has no
        image token, because the original code uses a number outside the vocabulary."""
        processors.prepare_tokenizer(tokenizer, config, where, original.is_original(config))

    def model(self) -> type[LlavaOnevision]:
        from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision

        return LlavaOnevision

    def bench_configs(self) -> dict[str, LlavaOnevisionConfig]:
        from mmrlhf_jax.models.llava_onevision.shapes import SHAPES, shape_config

        return {name: shape_config(name) for name in SHAPES}

    def to_hf(self, checkpoint: Checkpoint, model: LlavaOnevisionConfig) -> dict[str, Any]:
        return original.to_hf(checkpoint.config, checkpoint.shapes(), checkpoint.directory)

    def to_original(self, checkpoint: Checkpoint, model: LlavaOnevisionConfig) -> dict[str, Any]:
        return original.from_hf(checkpoint.config, model)

    def new_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings, without the pooling head of the SigLIP tower, which is never used."""
        return {**config, "vision_config": {**config["vision_config"], "vision_use_head": False}}

    def processors(self, model: LlavaOnevisionConfig) -> dict[str, dict[str, Any]]:
        return processors.processor_files(model)

    def check_export(self, checkpoint: Checkpoint, model: LlavaOnevisionConfig, naming: Naming, out: str) -> None:
        if naming == "hf":
            check_embedded(checkpoint, model, {"image token": model.image_token, "video token": model.video_token})
        if naming == "original" and (*model.vision.image_mean, *model.vision.image_std) != (0.5,) * 6:
            logger.warning("%s: the original code normalises pixels with 0.5, unlike this model; it runs right only here", out)

    def left_out(self, model: LlavaOnevisionConfig, part: str, layer: int | None, naming: Naming) -> bool:
        """Whether this is a layer of the tower that does not run: the original code would run it, so that naming omits it."""
        behind = part == "vision" and layer is not None and layer >= model.vision.feature_layers
        return naming == "original" and behind

    def default_chat_template(self) -> str:
        return processors.CHAT_TEMPLATE


FAMILY = LlavaOnevisionFamily()
