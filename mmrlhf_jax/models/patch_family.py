"""What families of patches have in common as a `Family`: Hugging Face naming only, media tokens, processor files.

A family's folder has the modules `config` (`config_from_hf`), `published` (`published_config`) and `shapes` (`SHAPES`,
`shape_config`), which import jax and are read when they are needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from mmrlhf_jax.models import patch_processors
from mmrlhf_jax.models.family import Checkpoint, Family
from mmrlhf_jax.models.media_tokens import check_embedded
from mmrlhf_jax.models.patch_defaults import PUBLISHED_PIXELS
from mmrlhf_jax.models.patch_geometry import PatchGeometry
from mmrlhf_jax.models.stated import Stated
from mmrlhf_jax.models.weight_names import Naming

if TYPE_CHECKING:
    from mmrlhf_jax.models.patch_config import PatchModelConfig
    from mmrlhf_jax.models.patch_model import PatchModel


class PatchFamily(Family):
    text_configs = ("text_config",)
    template = "checkpoint"
    # A template writes the tokens around a medium as well, but they are of the medium's pieces: a template without them has
    # them too, and some families' videos have them around each of their patches of time.
    media_tags = patch_processors.MEDIA_TAGS
    media_tokens = patch_processors.MEDIA_TOKENS
    processor_files = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")

    processor_class: ClassVar[str]  # the processor's class in transformers
    image_processor_class: ClassVar[str]
    video_processor_class: ClassVar[str]
    geometry: ClassVar[type[PatchGeometry]]
    # Settings of published image processors, for a directory without the processor's file.
    published_pixels: ClassVar[Mapping[str, Any]] = PUBLISHED_PIXELS
    published_video_pixels: ClassVar[Mapping[str, Any] | None] = None  # of video processors; None: those of images count
    default_vocabulary: ClassVar[int]  # embeddings of a config that does not state them
    chat_template: ClassVar[str] = patch_processors.CHAT_TEMPLATE

    def read(self, checkpoint: Checkpoint) -> PatchModelConfig:
        from mmrlhf_jax.models.patch_config import stated_processors

        processors = stated_processors(checkpoint, self.published_pixels, self.published_video_pixels)
        return self._module("config").config_from_hf(checkpoint.config, processors, checkpoint.where)

    def published(self, path: str) -> PatchModelConfig | None:
        return self._module("published").published_config(path)

    def typical_geometry(self) -> PatchGeometry:
        return self.geometry()

    def vocabulary(self, config: Mapping[str, Any], where: str) -> int:
        stated = Stated(config, where)
        text = stated if config.get("text_config") is None else stated.part("text_config")
        return text.integer("vocab_size", self.default_vocabulary, least=1)

    def prepare_tokenizer(self, tokenizer: Any, config: Mapping[str, Any], where: str) -> None:
        patch_processors.prepare_tokenizer(tokenizer, config, where, title=self.title)

    def model(self) -> type[PatchModel]:
        from mmrlhf_jax.models.patch_model import PatchModel

        return PatchModel

    def bench_configs(self) -> dict[str, PatchModelConfig]:
        shapes = self._module("shapes")
        return {name: shapes.shape_config(name) for name in shapes.SHAPES}

    def processors(self, model: PatchModelConfig) -> dict[str, dict[str, Any]]:
        return patch_processors.processor_files(
            model, self.processor_class, self.image_processor_class, self.video_processor_class
        )

    def check_export(self, checkpoint: Checkpoint, model: PatchModelConfig, naming: Naming, out: str) -> None:
        check_embedded(checkpoint, model, {"image token": model.image_token})

    def default_chat_template(self) -> str:
        return self.chat_template

    def _module(self, name: str) -> ModuleType:
        """A module of the family's own folder."""
        return importlib.import_module(f"{type(self).__module__.rpartition('.')[0]}.{name}")
