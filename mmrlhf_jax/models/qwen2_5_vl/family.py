"""Qwen2.5-VL as a `Family`: patches of any image size, windows, positions on three axes; Hugging Face naming only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mmrlhf_jax.models.family import Checkpoint, Family
from mmrlhf_jax.models.media_tokens import check_embedded
from mmrlhf_jax.models.qwen2_5_vl import processors
from mmrlhf_jax.models.qwen2_5_vl.geometry import QwenGeometry
from mmrlhf_jax.models.qwen2_5_vl.weights import NAMES
from mmrlhf_jax.models.stated import Stated
from mmrlhf_jax.models.weight_names import Naming

if TYPE_CHECKING:
    from mmrlhf_jax.models.qwen2_5_vl.config import QwenVLConfig
    from mmrlhf_jax.models.qwen2_5_vl.model import QwenVL


class QwenVLFamily(Family):
    model_type = "qwen2_5_vl"
    title = "Qwen2.5-VL"
    architecture = "Qwen2_5_VLForConditionalGeneration"
    publishers: ClassVar = {"hf": "Qwen"}
    language_model = "qwen2"
    text_configs = ("text_config",)
    template = "checkpoint"
    media_tags = (processors.IMAGE_TOKEN, processors.VIDEO_TOKEN)
    media_tokens = (processors.START, processors.END)
    names = NAMES
    processor_files = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")

    def read(self, checkpoint: Checkpoint) -> QwenVLConfig:
        from mmrlhf_jax.models.qwen2_5_vl.config import read_config

        return read_config(checkpoint)

    def published(self, path: str) -> QwenVLConfig | None:
        from mmrlhf_jax.models.qwen2_5_vl.published import published_config

        return published_config(path)

    def typical_geometry(self) -> QwenGeometry:
        return QwenGeometry()

    def vocabulary(self, config: Mapping[str, Any], where: str) -> int:
        from mmrlhf_jax.models.qwen2_5_vl.config import TEXT_DEFAULTS, with_text_config

        text = Stated(with_text_config(config), where).part("text_config")
        return text.integer("vocab_size", TEXT_DEFAULTS["vocab_size"], least=1)

    def prepare_tokenizer(self, tokenizer: Any, config: Mapping[str, Any], where: str) -> None:
        processors.prepare_tokenizer(tokenizer, config, where)

    def model(self) -> type[QwenVL]:
        from mmrlhf_jax.models.qwen2_5_vl.model import QwenVL

        return QwenVL

    def bench_configs(self) -> dict[str, QwenVLConfig]:
        from mmrlhf_jax.models.qwen2_5_vl.shapes import SHAPES, shape_config

        return {name: shape_config(name) for name in SHAPES}

    def processors(self, model: QwenVLConfig) -> dict[str, dict[str, Any]]:
        return processors.processor_files(model)

    def check_export(self, checkpoint: Checkpoint, model: QwenVLConfig, naming: Naming, out: str) -> None:
        check_embedded(checkpoint, model, {"image token": model.image_token})

    def default_chat_template(self) -> str:
        return processors.CHAT_TEMPLATE


FAMILY = QwenVLFamily()
