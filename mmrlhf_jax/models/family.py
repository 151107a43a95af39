"""The interface of a family of models. Each family implements `Family` in a folder of its own.

No code outside that folder names the family; all access goes through `registry`. Neither this module nor a family's
implementation imports jax at module level, because data workers and `mmrlhf data` use geometries.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.geometry import Geometry
from mmrlhf_jax.models.weight_names import Naming, WeightNames
from mmrlhf_jax.models.work import ProjectorWork, TowerWork

if TYPE_CHECKING:
    from mmrlhf_jax.models.decoder import TextConfig
    from mmrlhf_jax.models.vision_language import VisionLanguage


class VisionSizes(Protocol):
    """The sizes of a vision tower that plans and mesh checks use."""

    hidden_size: int
    intermediate_size: int


class ModelConfig(Protocol):
    """The sizes of one model: a frozen dataclass of its family, whose fields `dataclasses.replace` can change."""

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
    """The content of a model's directory that a family reads. `where` is the beginning of error messages about `config`."""

    config: Mapping[str, Any]  # config.json
    file: Callable[[str], Mapping[str, Any] | None]  # reads the JSON file of this name; None if there is none
    shapes: Callable[[], Mapping[str, tuple[int, ...]]]  # shapes of the stored tensors by name; reads the files' headers
    chat_template: Callable[[], str | None]  # reads the default chat template (Jinja); None if the directory has none
    where: str
    directory: str


class Family(abc.ABC):
    """One family of models: reading its checkpoints, its modules, and writing its exports."""

    model_type: ClassVar[str]  # in a Hugging Face config.json, and in the registry
    title: ClassVar[str]  # for messages and model cards
    architecture: ClassVar[str]  # the class in transformers
    publishers: ClassVar[Mapping[Naming, str]]  # who publishes the family's checkpoints in each naming
    language_model: ClassVar[str]  # its model_type in transformers
    text_configs: ClassVar[tuple[str, ...]]  # keys of config.json, in any naming, that hold the language model's config
    template: ClassVar[str]  # the default of `data.template` (a name in `data.templates`)
    media_tags: ClassVar[tuple[str, ...]]  # tags that the family's chat templates write in the place of a medium
    media_tokens: ClassVar[tuple[str, ...]] = ()  # further tokens of media: no user's text may become one
    unembedded: ClassVar[tuple[str, ...]] = ()  # added tokens without an embedding, because they are always replaced
    # Attribute of the model (`vision_language`) -> the part that it belongs to, which is a key of an experiment's `trains`.
    parts: ClassVar[Mapping[str, str]] = {
        "vision": "vision_tower",
        "projector": "projector",
        "language": "language_model",
        "reward_head": "reward_head",
    }
    names: ClassVar[WeightNames]
    processor_files: ClassVar[tuple[str, ...]]  # files beside the tokenizer's that are copied on export
    code_files: ClassVar[tuple[str, ...]] = ()  # Python files of a directory in the original naming, copied if it is kept

    # Reading ---------------------------------------------------------------------------------------------------------

    def is_original(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is one of the family's own code; False in a family that has only Hugging Face's naming."""
        return False

    def naming(self, config: Mapping[str, Any]) -> Naming | None:
        """The naming of a config.json of this family; None if it is of another family."""
        if self.is_original(config):
            return "original"
        return "hf" if config.get("model_type") == self.model_type else None

    @abc.abstractmethod
    def read(self, checkpoint: Checkpoint) -> ModelConfig:
        """The model's sizes. UserError, with file and key, for a model that this project cannot run."""

    @abc.abstractmethod
    def published(self, path: str) -> ModelConfig | None:
        """The sizes of the published model with this hub id or directory name; None if there is none."""

    @abc.abstractmethod
    def typical_geometry(self) -> Geometry:
        """The geometry of the published models, for estimates if no model is named."""

    @abc.abstractmethod
    def vocabulary(self, config: Mapping[str, Any], where: str) -> int:
        """The number of token embeddings according to a config.json in either naming. UserError, with its location, if it
        states something else."""

    @abc.abstractmethod
    def prepare_tokenizer(self, tokenizer: Any, config: Mapping[str, Any], where: str) -> None:
        """Add tokens that the naming's tokenizer files lack. UserError if the tokenizer is not one of the family."""

    # Running ---------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def model(self) -> type[VisionLanguage]:
        """The class of the family's models. Imports jax."""

    def bench_configs(self) -> dict[str, ModelConfig]:
        """Sizes for benchmarks without a checkpoint, by name ("small" suits a CPU). May be empty."""
        return {}

    # Writing ---------------------------------------------------------------------------------------------------------

    def convert_config(self, checkpoint: Checkpoint, model: ModelConfig, naming: Naming) -> dict[str, Any]:
        """config.json in `naming`, from a checkpoint's in either naming. UserError if the naming cannot express it."""
        if self.naming(checkpoint.config) == naming:
            return dict(checkpoint.config)
        return self.to_hf(checkpoint, model) if naming == "hf" else self.to_original(checkpoint, model)

    def to_hf(self, checkpoint: Checkpoint, model: ModelConfig) -> dict[str, Any]:
        """config.json in Hugging Face naming, from an original one. Only a family with an original naming has it."""
        raise NotImplementedError

    def to_original(self, checkpoint: Checkpoint, model: ModelConfig) -> dict[str, Any]:
        """config.json in the original naming, from Hugging Face's. UserError if the naming cannot express the model."""
        raise NotImplementedError

    def new_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of a new model in Hugging Face naming, from the requested settings."""
        return dict(config)

    @abc.abstractmethod
    def processors(self, model: ModelConfig) -> dict[str, dict[str, Any]]:
        """The processor files of a Hugging Face directory, by name."""

    @abc.abstractmethod
    def check_export(self, checkpoint: Checkpoint, model: ModelConfig, naming: Naming, out: str) -> None:
        """UserError if an export of `checkpoint` in `naming` to `out` could not be run; differences in how it would run are
        reported."""

    def check_naming(self, naming: Naming) -> None:
        """UserError if the family has no such naming."""
        if naming not in self.names.namings:
            raise UserError(f"{self.title} checkpoints have no {naming} naming; leave --naming at {self.names.namings[0]}")

    def left_out(self, model: ModelConfig, part: str, layer: int | None, naming: Naming) -> bool:
        """Whether `naming` has no tensor for this part and layer, so that an export omits it."""
        return False

    def default_chat_template(self) -> str | None:
        """The Jinja chat template to export if the source has none; None: export none."""
        return None
