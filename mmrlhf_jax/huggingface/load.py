"""A Hugging Face directory (or hub id) in: the model, straight into sharded device arrays, and the tokenizer."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Fault, Unavailable, fault, first_line, retried
from mmrlhf_jax.files import read_json_object
from mmrlhf_jax.huggingface.chat_templates import DEFAULT, read_chat_templates
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.model_config import check_dtype, open_checkpoint
from mmrlhf_jax.huggingface.tensors import StoredTensors, all_finite
from mmrlhf_jax.huggingface.weight_files import say_once, some
from mmrlhf_jax.models import reward_head as reward_heads
from mmrlhf_jax.models.attention import Backend
from mmrlhf_jax.models.family import Family, ModelConfig
from mmrlhf_jax.models.registry import find_family
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.models.weight_names import EMBEDDED, PROJECTED, Layout, Path, Stored, WeightNames
from mmrlhf_jax.sharding.agreement import gather, together
from mmrlhf_jax.sharding.mesh import make_mesh, parameter_shardings, use_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

LACKS_PROJECTION = (
    '; where the model projects with its embedding, set "tie_word_embeddings": true in config.json (at the top level and in'
    " text_config); where it does not, the file that holds lm_head is missing"
)


def load_model(
    model: str | os.PathLike[str],
    *,
    mesh: Mesh,
    dtype: Any = jnp.float32,
    param_dtype: Any | Callable[[Path], Any] = jnp.float32,
    remat: str = "full",
    attention: Backend = "auto",
    reward_head: str | None = None,
    seed: int = 0,
) -> VisionLanguage:
    """The model of a directory or hub id, in Hugging Face or original naming, its parameters sharded over `mesh`.

    Every parameter is assembled from slices of its stored tensors, so host memory holds one parameter at a time, and of
    that only what this process's devices keep (on CPU devices that memory is the parameter). Embeddings are tied as
    transformers ties them: where the config says so, unless the checkpoint stores another projection. With `rm_head.*`
    tensors the model gets its reward head; `reward_head` gives a fresh one (initialised from `seed`) to a checkpoint
    without. `param_dtype` is one for all parameters, or a function of a parameter's path; stored values are converted to it
    directly, so that those of float32 files stay as they are where it says float32.

    Raises UserError, naming the tensors, where the checkpoint is not exactly this model, and where a value is not finite.
    """
    spoilt: set[str] = set()

    def read() -> tuple[nnx.GraphDef, list[tuple[Any, Any]], os.PathLike[str], list[str]]:
        directory = local_directory(model)
        family, config, stored, found, fresh_head = _open(directory, reward_head)
        dtype_of = param_dtype if isinstance(param_dtype, FunctionType) else lambda path: param_dtype
        with use_mesh(mesh):
            abstract = nnx.eval_shape(
                lambda: family.model()(config, rngs=nnx.Rngs(0), dtype=dtype, remat=remat, attention=attention)
            )
            graph, state = nnx.split(abstract)
            shardings = parameter_shardings(state, mesh)
        variables = dict(nnx.to_flat_state(state))
        shapes = {path: variable.shape for path, variable in variables.items() if not (fresh_head and path[0] == "reward_head")}
        names = _match(family.names, found, stored, shapes, config, directory)

        leaves = []
        for path, variable in variables.items():
            sharding, kind = shardings[path], dtype_of(path)
            if path in names:
                assembled = family.names, stored, path, names[path], variable.shape, kind, sharding, directory, spoilt.add
                array = _assemble(*assembled)
            else:
                array = _fresh(path, variable.shape, kind, sharding, config, seed)
            leaves.append((path, variable.replace(array)))
        return graph, leaves, directory, sorted({np.dtype(dtype_of(path)).name for path in variables})

    graph, leaves, directory, dtypes = together(read)
    _refuse_spoilt(spoilt, directory, dtypes)
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def _refuse_spoilt(spoilt: Collection[str], directory: os.PathLike[str], dtypes: Sequence[str]) -> None:
    """Together with the other processes: each has read the values of its own devices alone."""
    found = sorted({name for names in gather(sorted(spoilt)) for name in names})
    if found:
        what = f"{len(found)} tensors hold NaN or infinity ({some(found)}) as {' or '.join(dtypes)}"
        raise UserError(f"{directory}: {what}; a model with such weights cannot be used")


def read_sizes(model: str | os.PathLike[str], reward_head: str | None = None) -> ModelConfig:
    """The config that `load_model` gives its model, of which only headers are read. UserError as there."""
    return _open(local_directory(model), reward_head).config


def check_checkpoint(model: str | os.PathLike[str]) -> tuple[ModelConfig, StoredTensors]:
    """Sizes and stored tensors of a directory or hub id, of which only headers are read.

    Raises UserError, naming the tensors, where the checkpoint is not exactly the model that its config describes.
    """
    directory = local_directory(model)
    family, config, stored, found, _ = _open(directory, None)
    with use_mesh(make_mesh({}, jax.devices()[:1])):
        state = nnx.state(nnx.eval_shape(lambda: family.model()(config, rngs=nnx.Rngs(0))))
    shapes = {path: variable.shape for path, variable in nnx.to_flat_state(state)}
    _match(family.names, found, stored, shapes, config, directory)
    return config, stored


def load_tokenizer(model: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a model directory or hub id, with the directory's chat template (`chat_templates`) and the tokens of
    its family's media (`Family.prepare_tokenizer`).

    Raises UserError where there is none, where it is not a fast tokenizer, where its media tokens are not the model's, or
    where it has tokens that the model has no embedding for.
    """
    # Not above: importing these takes seconds, and loads torch where it is installed.
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

    directory = local_directory(model)
    if not (directory / "config.json").exists():
        raise UserError(f"{directory}: no config.json; a model is a directory with config, tokenizer and weights")
    raw = read_json_object(directory / "config.json")
    check_dtype(raw, f"{directory / 'config.json'}")
    family = find_family(raw, f"{directory / 'config.json'}")
    # transformers looks at the model's config, and would ask whether to run the code beside one of the original naming.
    config = AutoConfig.for_model(family.language_model) if family.naming(raw) == "original" else None
    try:
        load = partial(AutoTokenizer.from_pretrained, directory, config=config, trust_remote_code=False)
        tokenizer = retried(load, f"{directory}: the tokenizer")
    except Unavailable:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception for a broken tokenizer.json
        if fault(error) in (Fault.NO_MEMORY, Fault.DENIED):
            raise
        raise UserError(f"{directory}: the tokenizer cannot be loaded ({first_line(error)})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{directory}: the tokenizer is not a fast one; a tokenizer.json is needed")
    templates = read_chat_templates(directory)
    tokenizer.chat_template = templates.get(DEFAULT) or templates or None
    vocabulary = tokenizer.get_vocab().items()
    _check_ids({token: n for token, n in vocabulary if token not in family.unembedded}, family.vocabulary(raw), directory)
    family.prepare_tokenizer(tokenizer, raw, f"{directory}")
    return tokenizer


def _check_ids(vocabulary: Mapping[str, int], rows: int, directory: os.PathLike[str]) -> None:
    """An embedding of a row that is not there would be NaN. (Pictures take the place of the image token's own.)"""
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= rows)
    if beyond:
        number, token = beyond[0]
        raise UserError(
            f"{directory}: the model has embeddings for {rows} tokens, the tokenizer has {len(beyond)} beyond them, first"
            f" {token!r} ({number}); they do not belong together, or the embedding was not resized when tokens were added"
        )


class _Opened(NamedTuple):
    family: Family
    config: ModelConfig
    stored: StoredTensors
    found: dict[str, Stored | None]  # what every stored name means
    fresh_head: bool  # the reward head asked for is not in the checkpoint


def _open(directory: os.PathLike[str], reward_head: str | None) -> _Opened:
    family, checkpoint = open_checkpoint(directory)
    config, stored = family.read(checkpoint), StoredTensors(directory, family.names.pieces)
    found = {name: family.names.resolve(name) for name in stored.shapes}
    config, fresh_head = _with_reward_head(config, found, reward_head, directory)
    return _Opened(family, _with_tying(config, stored, found), stored, found, fresh_head)


def _with_reward_head(
    config: ModelConfig, found: Mapping[str, Stored | None], asked: str | None, directory: os.PathLike[str]
) -> tuple[ModelConfig, bool]:
    """The config with the model's reward head, and whether that head is a fresh one."""
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
    """Untie where a tied config comes with a projection of its own (as transformers does)."""
    head = next((name for name, tensor in found.items() if tensor == PROJECTED), None)
    embedding = next((name for name, tensor in found.items() if tensor == EMBEDDED), None)
    if not config.text.tied or head is None or embedding is None:
        return config
    if stored.shapes[head] == stored.shapes[embedding] and np.array_equal(stored.read(head), stored.read(embedding)):
        return config
    say_once(f"{stored.directory}: the config ties embeddings, but {head} differs from them; loaded untied")
    return dataclasses.replace(config, text=dataclasses.replace(config.text, tied=False))


def _match(
    names_of: WeightNames,
    found: Mapping[str, Stored | None],
    stored: StoredTensors,
    shapes: Mapping[Path, tuple[int, ...]],
    config: ModelConfig,
    directory: os.PathLike[str],
) -> dict[Path, list[str]]:
    """Stored names of every parameter, in layer order. Raises UserError unless they are the model's, one for one."""
    by_tensor = {tensor: name for name, tensor in found.items() if tensor is not None}
    is_original = any(map(names_of.is_original, found))
    names, missing, misshaped, used = {}, [], [], set()
    for path, shape in shapes.items():
        stacked = names_of.is_stacked(path)
        tensors, layout = names_of.tensors(path, shape[0])
        expected = layout.stored_shape(shape[1:] if stacked else shape)
        names[path] = [by_tensor.get(tensor, "") for tensor in tensors]
        for tensor, name in zip(tensors, names[path], strict=True):
            if not name:
                missing.append(names_of.spell(tensor, "original" if is_original else "hf"))
            elif stored.shapes[name] != expected:
                misshaped.append(f"{name} {stored.shapes[name]} for {expected}")
        used.update(names[path])
    for tensor, name in by_tensor.items():
        # With tied embeddings a stored projection is the embedding once more (`_with_tying`).
        if names_of.parameter(tensor) is None or (tensor.part == "vocabulary" and config.text.tied):
            used.add(name)
    unexpected = [name for name in found if name not in used]
    problems = [(missing, "missing"), (unexpected, "unexpected"), (misshaped, "of another shape than config.json says")]
    complaints = [f"{len(tensors)} tensors {what} ({some(tensors)})" for tensors, what in problems if tensors]
    if complaints:
        cure = "" if any("lm_head" not in name for name in missing) or not missing else LACKS_PROJECTION
        raise UserError(f"{directory}: the weights are not the model that config.json describes: {'; '.join(complaints)}{cure}")
    return names


def _assemble(
    names_of: WeightNames,
    stored: StoredTensors,
    path: Path,
    names: Sequence[str],
    shape: tuple[int, ...],
    dtype: Any,
    sharding: NamedSharding,
    directory: os.PathLike[str],
    spoilt: Callable[[str], None],
) -> jax.Array:
    """A parameter on its devices, every shard read from the files on its own. `spoilt` is told of what is not finite."""
    layout, stacked = names_of.tensors(path, len(names))[1], names_of.is_stacked(path)
    shards: dict[tuple, np.ndarray] = {}  # devices that hold copies share one

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        if layout is Layout.PATCHES:  # small, and its slices are no slices of the tensor
            return layout.to_parameter(stored.read(name))[index]
        return layout.to_parameter(stored.read(name, layout.stored_index(index)))

    def fill(array: np.ndarray, name: str, index: tuple[slice, ...]) -> None:
        array[...] = read(name, index)
        if not all_finite(array):
            spoilt(name)

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple((part.start, part.stop) for part in index)
        if key not in shards:
            array = _aligned([len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True)], dtype)
            shards[key] = array
            if stacked:
                for row, name in zip(array, names[index[0]], strict=True):
                    fill(row, name, index[1:])
            else:
                fill(array, names[0], index)
        return shards[key]

    try:
        sharding.shard_shape(shape)
    except ValueError:
        what = f"{'.'.join(path)} {shape}"
        mesh = {axis: size for axis, size in sharding.mesh.shape.items() if size > 1}
        raise UserError(f"{directory}: {what} cannot be split over mesh {mesh}; change `mesh` in the launch file") from None
    return jax.make_array_from_callback(shape, sharding, shard)


def _aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An empty array that begins at a multiple of 64 bytes: XLA's CPU backend then takes it as it is, without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _fresh(
    path: Path, shape: tuple[int, ...], dtype: Any, sharding: NamedSharding, config: ModelConfig, seed: int
) -> jax.Array:
    """A parameter of a new reward head, drawn as upstream's is: PyTorch's Linear, U(-1/sqrt(inputs), 1/sqrt(inputs)).

    The inputs of both of the head's layers are the hidden state's features.
    """
    rng = np.random.default_rng([seed, zlib.crc32(".".join(path).encode())])  # the same on every host
    bound = config.text.hidden_size**-0.5
    values = rng.uniform(-bound, bound, shape).astype(dtype)
    return jax.make_array_from_callback(shape, sharding, lambda index: values[index])
