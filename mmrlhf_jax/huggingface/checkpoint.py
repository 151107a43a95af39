"""What a model directory stores: its sizes and its tensors, matched with the parameters that they belong to. Only headers are
read."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.model_config import open_checkpoint
from mmrlhf_jax.huggingface.tensors import StoredTensors
from mmrlhf_jax.huggingface.weight_files import say_once, some
from mmrlhf_jax.models import reward_head as reward_heads
from mmrlhf_jax.models.family import Family, ModelConfig
from mmrlhf_jax.models.weight_names import EMBEDDED, PROJECTED, Path, Stored
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh

logger = logging.getLogger(__name__)

LACKS_PROJECTION = (
    '; where the model projects with its embedding, set "tie_word_embeddings": true in config.json (at the top level and in'
    " text_config); where it does not, the file that holds lm_head is missing"
)


def read_sizes(model: str | os.PathLike[str], reward_head: str | None = None) -> ModelConfig:
    """The config of the model that `load_model` would load, read from config.json and the headers of the weights.

    Raises UserError, like `load_model`, for a directory that holds no model and for a reward head that it cannot have.
    """
    return open_model(local_directory(model), reward_head).config


def check_checkpoint(model: str | os.PathLike[str]) -> tuple[ModelConfig, StoredTensors]:
    """The sizes and stored tensors of a directory or hub id.

    Raises UserError, naming the tensors, if the checkpoint is not exactly the model that its config describes.
    """
    opened = open_model(local_directory(model))
    with use_mesh(make_mesh({}, jax.devices()[:1])):
        state = nnx.state(nnx.eval_shape(lambda: opened.family.model()(opened.config, rngs=nnx.Rngs(0))))
    opened.match({path: variable.shape for path, variable in nnx.to_flat_state(state)})
    return opened.config, opened.stored


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """A model directory of which config.json and the headers of the weights have been read.

    Attributes:
        found: name of a stored tensor -> the tensor, None if it does not belong to the family.
        fresh_head: whether the model has a reward head that is not in the checkpoint.
    """

    family: Family
    config: ModelConfig
    stored: StoredTensors
    found: dict[str, Stored | None]
    fresh_head: bool

    def match(self, shapes: Mapping[Path, tuple[int, ...]]) -> dict[Path, list[str]]:
        """The names of the stored tensors of every parameter, in layer order, for parameters of these `shapes`.

        Raises UserError unless the stored tensors are exactly those of the parameters.
        """
        names_of = self.family.names
        by_tensor = {tensor: name for name, tensor in self.found.items() if tensor is not None}
        is_original = any(map(names_of.is_original, self.found))
        names, missing, misshaped, used = {}, [], [], set()
        for path, shape in shapes.items():
            stacked = names_of.is_stacked(path)
            tensors, layout = names_of.tensors(path, shape[0])
            expected = layout.stored_shape(shape[1:] if stacked else shape)
            names[path] = [by_tensor.get(tensor, "") for tensor in tensors]
            for tensor, name in zip(tensors, names[path], strict=True):
                if not name:
                    missing.append(names_of.spell(tensor, "original" if is_original else "hf"))
                elif self.stored.shapes[name] != expected:
                    misshaped.append(f"{name} {self.stored.shapes[name]} for {expected}")
            used.update(names[path])
        for tensor, name in by_tensor.items():
            # With tied embeddings a stored projection repeats the embedding (`_with_tying`).
            if names_of.parameter(tensor) is None or (tensor.part == "vocabulary" and self.config.text.tied):
                used.add(name)
        unexpected = [name for name in self.found if name not in used]
        problems = [(missing, "missing"), (unexpected, "unexpected"), (misshaped, "of another shape than config.json says")]
        complaints = [f"{len(tensors)} tensors {what} ({some(tensors)})" for tensors, what in problems if tensors]
        if complaints:
            cure = "" if any("lm_head" not in name for name in missing) or not missing else LACKS_PROJECTION
            what = f"{'; '.join(complaints)}{cure}"
            raise UserError(f"{self.stored.directory}: the weights are not the model that config.json describes: {what}")
        return names


def open_model(directory: os.PathLike[str], reward_head: str | None = None) -> OpenedModel:
    """Open the model of a directory; `reward_head` asks for a fresh head if the checkpoint has none. UserError for no model."""
    family, checkpoint = open_checkpoint(directory)
    config, stored = family.read(checkpoint), StoredTensors(directory, family.names.pieces)
    found = {name: family.names.resolve(name) for name in stored.shapes}
    config, fresh_head = _with_reward_head(config, found, reward_head, directory)
    return OpenedModel(family, _with_tying(config, stored, found), stored, found, fresh_head)


def _with_reward_head(
    config: ModelConfig, found: Mapping[str, Stored | None], asked: str | None, directory: os.PathLike[str]
) -> tuple[ModelConfig, bool]:
    """(the config with the model's reward head, whether that head is a fresh one)."""
    if asked is not None and asked not in reward_heads.VARIANTS:
        raise UserError(f"reward head {asked!r} is not one of {', '.join(reward_heads.VARIANTS)}")
    rests = {tensor.rest for tensor in found.values() if tensor is not None and tensor.part == "reward"}
    if not rests and config.reward_head is None:
        if asked is not None:
            logger.info("%s has no reward head: a fresh %r head is initialised", directory, asked)
        return dataclasses.replace(config, reward_head=asked), asked is not None
    # Upstream's checkpoints do not name their head; the only one it has with a hidden layer is tanh.
    variant = config.reward_head or ("tanh" if "dense.weight" in rests else "linear")
    if variant not in reward_heads.VARIANTS:
        known = ", ".join(reward_heads.VARIANTS)
        raise UserError(f"{directory}: reward_head {variant!r} of config.json is not one of {known}")
    if asked not in (None, variant):
        raise UserError(f"{directory}: the checkpoint has a {variant!r} reward head, not {asked!r}; ask for {variant!r}")
    return dataclasses.replace(config, reward_head=variant), False


def _with_tying(config: ModelConfig, stored: StoredTensors, found: Mapping[str, Stored | None]) -> ModelConfig:
    """The config, untied if it is tied but the checkpoint stores a projection of its own (as transformers does)."""
    head = next((name for name, tensor in found.items() if tensor == PROJECTED), None)
    embedding = next((name for name, tensor in found.items() if tensor == EMBEDDED), None)
    if not config.text.tied or head is None or embedding is None:
        return config
    if stored.shapes[head] == stored.shapes[embedding] and np.array_equal(stored.read(head), stored.read(embedding)):
        return config
    say_once(f"{stored.directory}: the config ties embeddings, but {head} differs from them; loaded untied")
    return dataclasses.replace(config, text=dataclasses.replace(config.text, tied=False))
