"""InternVL as a `Family`: InternViT, merged patches, Qwen2; tiles of one size; Hugging Face (`-hf`) and original naming."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmrlhf_jax.models.family import Checkpoint, Family
from mmrlhf_jax.models.internvl import original, processors
from mmrlhf_jax.models.internvl.geometry import IMAGE_END, IMAGE_START, TileGeometry
from mmrlhf_jax.models.internvl.weights import NAMES
from mmrlhf_jax.models.media_tokens import check_embedded
from mmrlhf_jax.models.stated import Stated
from mmrlhf_jax.models.weight_names import Naming

if TYPE_CHECKING:
    from mmrlhf_jax.models.internvl.config import InternVLConfig
    from mmrlhf_jax.models.internvl.model import InternVL

logger = logging.getLogger(__name__)

UNLIKE = "unlike this model, whose answers are right only in this project"


class InternVLFamily(Family):
    model_type = "internvl"
    title = "InternVL"
    architecture = "InternVLForConditionalGeneration"
    publishers: ClassVar = {"hf": "OpenGVLab", "original": "OpenGVLab"}
    language_model = "qwen2"
    text_configs = ("text_config", "llm_config")
    template = "checkpoint"
    media_tags = processors.MEDIA_TAGS
    media_tokens = (IMAGE_START, IMAGE_END)
    unembedded = (processors.VIDEO_TOKEN,)
    names = NAMES
    code_files = original.CODE_FILES
    processor_files = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")

    def is_original(self, config: Mapping[str, Any]) -> bool:
        return original.is_original(config)

    def read(self, checkpoint: Checkpoint) -> InternVLConfig:
        from mmrlhf_jax.models.internvl.config import read_config

        return read_config(checkpoint)

    def published(self, path: str) -> InternVLConfig | None:
        from mmrlhf_jax.models.internvl.published import published_config

        return published_config(path)

    def typical_geometry(self) -> TileGeometry:
        return TileGeometry(448, 14)

    def vocabulary(self, config: Mapping[str, Any], where: str) -> int:
        from mmrlhf_jax.models.qwen2 import TEXT_DEFAULTS

        text = Stated(config, where).part("llm_config" if original.is_original(config) else "text_config")
        return text.integer("vocab_size", TEXT_DEFAULTS["vocab_size"], least=1)

    def prepare_tokenizer(self, tokenizer: Any, config: Mapping[str, Any], where: str) -> None:
        processors.prepare_tokenizer(tokenizer, config, where)

    def model(self) -> type[InternVL]:
        from mmrlhf_jax.models.internvl.model import InternVL

        return InternVL

    def bench_configs(self) -> dict[str, InternVLConfig]:
        from mmrlhf_jax.models.internvl.shapes import SHAPES, shape_config

        return {name: shape_config(name) for name in SHAPES}

    def to_hf(self, checkpoint: Checkpoint, model: InternVLConfig) -> dict[str, Any]:
        return original.to_hf(checkpoint.config, model.image_token, checkpoint.where)

    def to_original(self, checkpoint: Checkpoint, model: InternVLConfig) -> dict[str, Any]:
        template = processors.original_template(checkpoint.chat_template()) or processors.ORIGINAL_DEFAULT
        return original.from_hf(checkpoint.config, model, template)

    def processors(self, model: InternVLConfig) -> dict[str, dict[str, Any]]:
        return processors.processor_files(model)

    def check_export(self, checkpoint: Checkpoint, model: InternVLConfig, naming: Naming, out: str) -> None:
        if naming == "original":
            self._report_original(checkpoint, model, out)
            return
        check_embedded(checkpoint, model, {"image token": model.image_token})
        if not model.geometry.thumbnail and model.geometry.max_tiles > 1:
            logger.warning("%s: transformers adds a thumbnail to the tiles of an image, %s", out, UNLIKE)

    def _report_original(self, checkpoint: Checkpoint, model: InternVLConfig, out: str) -> None:
        """Report what the original code would do otherwise than this model, and what it needs beside an export."""
        from mmrlhf_jax.models.internvl.config import IMAGENET_MEAN, IMAGENET_STD

        vision = model.vision
        if (vision.image_mean, vision.image_std, vision.rescale) != (IMAGENET_MEAN, IMAGENET_STD, 1 / 255):
            logger.warning("%s: the original code normalises pixels as ImageNet's, %s", out, UNLIKE)
        template = None if original.is_original(checkpoint.config) else checkpoint.chat_template()
        if template is not None and processors.original_template(template) is None:
            logger.warning(
                "%s: the chat template of %s is none of the original code's. config.json names %r, with whose system message"
                " the original code's chat() would open a conversation, unlike this model",
                out,
                checkpoint.directory,
                processors.ORIGINAL_DEFAULT,
            )
        if missing := [name for name in self.code_files if not (Path(checkpoint.directory) / name).exists()]:
            logger.warning(
                "%s: transformers' AutoModel needs the original code beside these weights, and %s does not have it (%s); copy"
                " these files from the published model of this size",
                out,
                checkpoint.directory,
                ", ".join(missing),
            )

    def default_chat_template(self) -> str:
        return processors.chat_template()


FAMILY = InternVLFamily()
