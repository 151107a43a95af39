"""A Hugging Face directory (or hub id) in: the model, straight into sharded device arrays, and the tokenizer."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
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
from mmrlhf_jax.huggingface.tensors import StoredTensors, all_finite
from mmrlhf_jax.huggingface.weight_files import say_once, some
from mmrlhf_jax.models import reward_head as reward_heads
from mmrlhf_jax.models.attention import Backend
from mmrlhf_jax.models.llava_onevision import original, weights
from mmrlhf_jax.models.llava_onevision.config import TEXT_DEFAULTS, LlavaOnevisionConfig, read_config
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision
from mmrlhf_jax.sharding.agreement import gather, together
from mmrlhf_jax.sharding.mesh import make_mesh, parameter_shardings, use_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"
STATED_DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
LACKS_PROJECTION = (
    '; where the model projects with its embedding, set "tie_word_embeddings": true in config.json (at the top level and in'
    " text_config); where it does not, the file that holds lm_head is missing"
)


def load_model(
    model: str | os.PathLike[str],
    *,
    mesh: Mesh,
    dtype: Any = jnp.float32,
    param_dtype: Any | Callable[[weights.Path], Any] = jnp.float32,
    remat: str = "full",
    attention: Backend = "auto",
    reward_head: str | None = None,
    seed: int = 0,
) -> LlavaOnevision:
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

    def read() -> tuple[nnx.GraphDef, list[tuple[Any, Any]], Path, list[str]]:
        directory = local_directory(model)
        config, stored, found, fresh_head = _open_checkpoint(directory, reward_head)
        dtype_of = param_dtype if isinstance(param_dtype, FunctionType) else lambda path: param_dtype
        with use_mesh(mesh):
            abstract = nnx.eval_shape(
                lambda: LlavaOnevision(config, rngs=nnx.Rngs(0), dtype=dtype, remat=remat, attention=attention)
            )
            graph, state = nnx.split(abstract)
            shardings = parameter_shardings(state, mesh)
        variables = dict(nnx.to_flat_state(state))
        shapes = {path: variable.shape for path, variable in variables.items() if not (fresh_head and path[0] == "reward_head")}
        names = _match(found, stored, shapes, config, directory)

        leaves = []
        for path, variable in variables.items():
            sharding, kind = shardings[path], dtype_of(path)
            if path in names:
                array = _assemble(stored, path, names[path], variable.shape, kind, sharding, directory, spoilt.add)
            else:
                array = _fresh(path, variable.shape, kind, sharding, config, seed)
            leaves.append((path, variable.replace(array)))
        return graph, leaves, directory, sorted({np.dtype(dtype_of(path)).name for path in variables})

    graph, leaves, directory, dtypes = together(read)
    _refuse_spoilt(spoilt, directory, dtypes)
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def _refuse_spoilt(spoilt: Collection[str], directory: Path, dtypes: Sequence[str]) -> None:
    """Together with the other processes: each has read the values of its own devices alone."""
    found = sorted({name for names in gather(sorted(spoilt)) for name in names})
    if found:
        what = f"{len(found)} tensors hold NaN or infinity ({some(found)}) as {' or '.join(dtypes)}"
        raise UserError(f"{directory}: {what}; a model with such weights cannot be used")


def read_sizes(model: str | os.PathLike[str], reward_head: str | None = None) -> LlavaOnevisionConfig:
    """The config that `load_model` gives its model, of which only headers are read. UserError as there."""
    return _open_checkpoint(local_directory(model), reward_head)[0]


def check_checkpoint(model: str | os.PathLike[str]) -> tuple[LlavaOnevisionConfig, StoredTensors]:
    """Sizes and stored tensors of a directory or hub id, of which only headers are read.

    Raises UserError, naming the tensors, where the checkpoint is not exactly the model that its config describes.
    """
    directory = local_directory(model)
    config, stored, found, _ = _open_checkpoint(directory, None)
    with use_mesh(make_mesh({}, jax.devices()[:1])):
        state = nnx.state(nnx.eval_shape(lambda: LlavaOnevision(config, rngs=nnx.Rngs(0))))
    shapes = {path: variable.shape for path, variable in nnx.to_flat_state(state)}
    _match(found, stored, shapes, config, directory)
    return config, stored


def load_tokenizer(model: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a model directory or hub id, with the directory's chat template (`chat_templates`).

    Tokenizers of the original naming have no image token (its code uses a number outside the vocabulary); they get
    `<image>` and `<video>` behind their last token, where the converted checkpoints have them.

    Raises UserError where there is none, where it is not a fast tokenizer, where `<image>` is missing or is not the
    config's image token, or where it has tokens that the model has no embedding for.
    """
    # Not above: importing these takes seconds, and loads torch where it is installed.
    from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

    directory = local_directory(model)
    raw = _config(directory)
    try:
        tokenizer = retried(lambda: AutoTokenizer.from_pretrained(directory), f"{directory}: the tokenizer")
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
    vocabulary = tokenizer.get_vocab()
    _check_ids(vocabulary, raw, directory)
    if original.is_original(raw) and IMAGE_TOKEN not in vocabulary:
        added = [AddedToken(token, special=True, normalized=False) for token in (IMAGE_TOKEN, VIDEO_TOKEN)]
        tokenizer.add_tokens(added, special_tokens=True)
        vocabulary = tokenizer.get_vocab()
    if IMAGE_TOKEN not in vocabulary:
        raise UserError(f"{directory}: the tokenizer has no {IMAGE_TOKEN} token; it is not a LLaVA-OneVision tokenizer")
    expected = raw.get("image_token_id", raw.get("image_token_index", vocabulary[IMAGE_TOKEN]))
    if vocabulary[IMAGE_TOKEN] != expected:
        where = f"{IMAGE_TOKEN} is token {vocabulary[IMAGE_TOKEN]} of the tokenizer, but config says {expected}"
        raise UserError(f"{directory}: {where}; tokenizer and model do not belong together")
    return tokenizer


def _check_ids(vocabulary: Mapping[str, int], raw: Mapping[str, Any], directory: Path) -> None:
    """An embedding of a row that is not there would be NaN. (Pictures take the place of the image token's own.)"""
    rows = (raw.get("text_config") or {}).get("vocab_size") or raw.get("vocab_size") or TEXT_DEFAULTS["vocab_size"]
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= rows)
    if beyond:
        number, token = beyond[0]
        raise UserError(
            f"{directory}: the model has embeddings for {rows} tokens, the tokenizer has {len(beyond)} beyond them, first"
            f" {token!r} ({number}); they do not belong together, or the embedding was not resized when tokens were added"
        )


def _config(directory: Path) -> dict[str, Any]:
    if not (directory / "config.json").exists():
        raise UserError(f"{directory}: no config.json; a model is a directory with config, tokenizer and weights")
    raw = read_json_object(directory / "config.json")
    for key in ("dtype", "torch_dtype"):  # transformers reads it before the tokenizer, and would blame that
        if isinstance(raw.get(key), str) and raw[key] not in STATED_DTYPES:
            known = ", ".join(STATED_DTYPES)
            raise UserError(f"{directory / 'config.json'}: {key} {raw[key]!r} is not one of {known}")
    return raw


class _Checkpoint(NamedTuple):
    config: LlavaOnevisionConfig
    stored: StoredTensors
    found: dict[str, weights.Stored | None]  # what every stored name means
    fresh_head: bool  # the reward head asked for is not in the checkpoint


def _open_checkpoint(directory: Path, reward_head: str | None) -> _Checkpoint:
    config, stored = read_config(directory), StoredTensors(directory)
    found = {name: weights.resolve(name) for name in stored.shapes}
    config, fresh_head = _with_reward_head(config, found, reward_head, directory)
    return _Checkpoint(_with_tying(config, stored, found), stored, found, fresh_head)


def _with_reward_head(
    config: LlavaOnevisionConfig, found: Mapping[str, weights.Stored | None], asked: str | None, directory: Path
) -> tuple[LlavaOnevisionConfig, bool]:
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


def _with_tying(
    config: LlavaOnevisionConfig, stored: StoredTensors, found: Mapping[str, weights.Stored | None]
) -> LlavaOnevisionConfig:
    """Untie where a tied config comes with a projection of its own (as transformers does)."""
    head = next((name for name, tensor in found.items() if tensor is not None and tensor.part == "vocabulary"), None)
    embedding = next((name for name, tensor in found.items() if tensor == ("language", "embed_tokens.weight", None)), None)
    if not config.text.tied or head is None or embedding is None:
        return config
    if stored.shapes[head] == stored.shapes[embedding] and np.array_equal(stored.read(head), stored.read(embedding)):
        return config
    say_once(f"{stored.directory}: the config ties embeddings, but {head} differs from them; loaded untied")
    return dataclasses.replace(config, text=dataclasses.replace(config.text, tied=False))


def _match(
    found: Mapping[str, weights.Stored | None],
    stored: StoredTensors,
    shapes: Mapping[weights.Path, tuple[int, ...]],
    config: LlavaOnevisionConfig,
    directory: Path,
) -> dict[weights.Path, list[str]]:
    """Stored names of every parameter, in layer order. Raises UserError unless they are the model's, one for one."""
    by_tensor = {tensor: name for name, tensor in found.items() if tensor is not None}
    is_original = any(name.startswith(weights.PARTS["vision"].original) for name in found)
    names, missing, misshaped, used = {}, [], [], set()
    for path, shape in shapes.items():
        stacked = weights.is_stacked(path)
        tensors, layout = weights.tensors(path, shape[0])
        expected = layout.stored_shape(shape[1:] if stacked else shape)
        names[path] = [by_tensor.get(tensor, "") for tensor in tensors]
        for tensor, name in zip(tensors, names[path], strict=True):
            if not name:
                missing.append(weights.spell(tensor, "original" if is_original else "hf"))
            elif stored.shapes[name] != expected:
                misshaped.append(f"{name} {stored.shapes[name]} for {expected}")
        used.update(names[path])
    for tensor, name in by_tensor.items():
        # With tied embeddings a stored projection is the embedding once more (`_with_tying`).
        if weights.parameter(tensor) is None or (tensor.part == "vocabulary" and config.text.tied):
            used.add(name)
    unexpected = [name for name in found if name not in used]
    problems = [(missing, "missing"), (unexpected, "unexpected"), (misshaped, "of another shape than config.json says")]
    complaints = [f"{len(tensors)} tensors {what} ({some(tensors)})" for tensors, what in problems if tensors]
    if complaints:
        cure = "" if any("lm_head" not in name for name in missing) or not missing else LACKS_PROJECTION
        raise UserError(f"{directory}: the weights are not the model that config.json describes: {'; '.join(complaints)}{cure}")
    return names


def _assemble(
    stored: StoredTensors,
    path: weights.Path,
    names: Sequence[str],
    shape: tuple[int, ...],
    dtype: Any,
    sharding: NamedSharding,
    directory: Path,
    spoilt: Callable[[str], None],
) -> jax.Array:
    """A parameter on its devices, every shard read from the files on its own. `spoilt` is told of what is not finite."""
    layout, stacked = weights.tensors(path, len(names))[1], weights.is_stacked(path)
    shards: dict[tuple, np.ndarray] = {}  # devices that hold copies share one

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        if layout is weights.Layout.PATCHES:  # small, and its slices are no slices of the tensor
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
    path: weights.Path, shape: tuple[int, ...], dtype: Any, sharding: NamedSharding, config: LlavaOnevisionConfig, seed: int
) -> jax.Array:
    """A parameter of a new reward head, drawn as upstream's is: PyTorch's Linear, U(-1/sqrt(inputs), 1/sqrt(inputs)).

    The inputs of both of the head's layers are the hidden state's features.
    """
    rng = np.random.default_rng([seed, zlib.crc32(".".join(path).encode())])  # the same on every host
    bound = config.text.hidden_size**-0.5
    values = rng.uniform(-bound, bound, shape).astype(dtype)
    return jax.make_array_from_callback(shape, sharding, lambda index: values[index])
