"""What the project asks of a family of models. Each family implements `Family` in a folder of its own.

Nothing outside such a folder names its family: everything goes through `registry`. This module imports no jax, and neither
does a family's own module of these members at its top, because data workers and `mmrlhf data` read geometries.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from mmrlhf_jax.models.geometry import Geometry
from mmrlhf_jax.models.weight_names import Naming, WeightNames
from mmrlhf_jax.models.work import ProjectorWork, TowerWork

if TYPE_CHECKING:
    from mmrlhf_jax.models.decoder import TextConfig
    from mmrlhf_jax.models.vision_language import VisionLanguage


class VisionSizes(Protocol):
    """What plans and meshes ask of any tower's config."""

    hidden_size: int
    intermediate_size: int


class ModelConfig(Protocol):
    """The sizes of one model: an immutable dataclass of its family. `dataclasses.replace` changes what may differ."""

    model_type: ClassVar[str]  # the family's name in the registry
    text: TextConfig
    vision: VisionSizes
    geometry: Geometry
    image_token: int
    reward_head: str | None  # None: a policy; otherwise a variant of `models.reward_head`

    @property
    def tower_work(self) -> TowerWork: ...

    @property
    def projector_work(self) -> ProjectorWork: ...


class Checkpoint(NamedTuple):
    """What a family reads of a model's directory. `where` opens error messages about `config`."""

    config: Mapping[str, Any]  # config.json
    files: Mapping[str, Mapping[str, Any]]  # the processors' files that are there, by name
    shapes: Callable[[], Mapping[str, tuple[int, ...]]]  # of the stored tensors, by name; reads the files' headers
    where: str
    directory: str


class Family(abc.ABC):
    """One family of models: how it is read, what it is made of, and what an export of it must hold."""

    model_type: ClassVar[str]  # in a Hugging Face config.json, and in the registry
    title: ClassVar[str]  # for people
    architecture: ClassVar[str]  # the class of transformers
    publishers: ClassVar[Mapping[Naming, str]]  # who publishes the family's checkpoints in each naming
    language_model: ClassVar[str] = "qwen2"  # its model_type in transformers
    template: ClassVar[str]  # the chat template that `data.template` means by default (`data.templates`)
    media_tags: ClassVar[tuple[str, ...]]  # what the family's chat templates write in a medium's place
    unembedded: ClassVar[tuple[str, ...]] = ()  # added tokens without an embedding: something always takes their place
    names: ClassVar[WeightNames]
    processor_files: ClassVar[tuple[str, ...]]  # of a directory, beside the tokenizer's: read, and copied on export

    # Reading ---------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def naming(self, config: Mapping[str, Any]) -> Naming | None:
        """In which naming a config.json is of this family; None for one of another family."""

    @abc.abstractmethod
    def read(self, checkpoint: Checkpoint) -> ModelConfig:
        """The model's sizes. UserError that names file and key for what this project cannot run."""

    @abc.abstractmethod
    def published(self, path: str) -> ModelConfig | None:
        """The sizes of the published model that a path names (as hub id or directory name), or None."""

    @abc.abstractmethod
    def typical_geometry(self) -> Geometry:
        """That of the published models, for estimates where no model is named."""

    def vocabulary(self, config: Mapping[str, Any]) -> int | None:
        """How many tokens a config.json has embeddings for, without reading anything else; None: it does not say."""
        text = config.get("text_config") or {}
        return text.get("vocab_size") or config.get("vocab_size")

    @abc.abstractmethod
    def prepare_tokenizer(self, tokenizer: Any, config: Mapping[str, Any], where: str) -> None:
        """Add what the naming leaves out. UserError where the tokenizer is not that of a model of the family."""

    # Running ---------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def model(self) -> type[VisionLanguage]:
        """The class of its models. Imports jax."""

    def bench_config(self, shape: str) -> ModelConfig | None:
        """Sizes for measuring without a checkpoint, by name ("small" suits a CPU); None: there are none of this name."""
        return None

    # Writing ---------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def convert_config(self, checkpoint: Checkpoint, model: ModelConfig, naming: Naming) -> dict[str, Any]:
        """config.json in `naming`, from that of a checkpoint in either. UserError for what the naming cannot say."""

    def new_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of a new model in Hugging Face naming, from what was asked for."""
        return dict(config)

    @abc.abstractmethod
    def processors(self, model: ModelConfig, tokenizer: Any) -> dict[str, dict[str, Any]]:
        """The processor files of a Hugging Face directory, by name."""

    @abc.abstractmethod
    def check_export(self, model: ModelConfig, naming: Naming, source: str, out: str) -> None:
        """UserError for a model that would not run from an export in `naming`; what would run otherwise there is said."""

    def left_out(self, model: ModelConfig, part: str, layer: int | None, naming: Naming) -> bool:
        """Whether a tensor has no place in `naming`."""
        return False

    def default_chat_template(self) -> str | None:
        """The Jinja of a chat template to export where the source has none."""
        return None


def tokens_beyond(model: ModelConfig, tokens: Sequence[int]) -> bool:
    """Whether the embedding ends before one of these tokens."""
    return max(tokens) >= model.text.vocab_size
