"""Loads the model of a Hugging Face directory or hub id into sharded device arrays."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.checkpoint import OpenedModel, open_model
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.tensors import all_finite
from mmrlhf_jax.huggingface.weight_files import some
from mmrlhf_jax.models.attention import Backend
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.models.weight_names import Path
from mmrlhf_jax.sharding.agreement import gather, together
from mmrlhf_jax.sharding.mesh import parameter_shardings, use_mesh


def load_model(model: str | os.PathLike[str], *, reward_head: str | None = None, **how: Any) -> VisionLanguage:
    """The model of a directory or hub id, in Hugging Face or original naming: `load_opened` with the options `how`.

    A checkpoint with `rm_head.*` tensors gives the model its reward head; `reward_head` gives a fresh one to a checkpoint
    without. Embeddings are tied as transformers ties them: if the config says so and the checkpoint stores no other projection.
    Raises UserError, like `load_opened`, and for a directory that holds no model.
    """
    return load_opened(together(lambda: open_model(local_directory(model), reward_head)), **how)


def load_opened(
    opened: OpenedModel,
    *,
    mesh: Mesh,
    dtype: Any = jnp.float32,
    param_dtype: Any | Callable[[Path], Any] = jnp.float32,
    remat: str = "full",
    attention: Backend = "auto",
    seed: int = 0,
) -> VisionLanguage:
    """The model of an opened directory, its parameters sharded over `mesh`.

    Every parameter is assembled from slices of its stored tensors, so host memory holds one parameter at a time, and only the
    shards of this process's devices (a CPU device uses that memory itself). A fresh reward head is initialised from `seed`.
    `param_dtype` is one dtype for all parameters, or a function of a parameter's path; stored values are converted to it
    directly, so that float32 parameters equal those of a float32 file.

    Raises UserError, naming the tensors, if the checkpoint is not exactly this model, and if a value is not finite.
    """
    spoilt: set[str] = set()
    dtype_of = param_dtype if isinstance(param_dtype, FunctionType) else lambda path: param_dtype

    def read() -> tuple[nnx.GraphDef, list[tuple[Any, Any]], list[str]]:
        make = opened.family.model()
        with use_mesh(mesh):
            abstract = nnx.eval_shape(
                lambda: make(opened.config, rngs=nnx.Rngs(0), dtype=dtype, remat=remat, attention=attention)
            )
            graph, state = nnx.split(abstract)
            shardings = parameter_shardings(state, mesh)
        variables = dict(nnx.to_flat_state(state))
        leaves = list(_leaves(opened, variables, shardings, dtype_of, seed, spoilt.add))
        return graph, leaves, sorted({np.dtype(dtype_of(path)).name for path in variables})

    graph, leaves, dtypes = together(read)
    _refuse_spoilt(spoilt, opened.stored.directory, dtypes)
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def _leaves(
    opened: OpenedModel,
    variables: Mapping[Path, nnx.Variable],
    shardings: Mapping[Path, NamedSharding],
    dtype_of: Callable[[Path], Any],
    seed: int,
    spoilt: Callable[[str], None],
) -> Iterator[tuple[Path, nnx.Variable]]:
    """Yield (path, variable) of all parameters, with their arrays in the place of abstract ones."""
    fresh = {path for path in variables if opened.fresh_head and path[0] == "reward_head"}
    names = opened.match({path: variable.shape for path, variable in variables.items() if path not in fresh})
    for path, variable in variables.items():
        place = variable.shape, dtype_of(path), shardings[path]
        if path in fresh:
            array = _fresh(path, *place, opened.config, seed)
        else:
            array = _assemble(opened, path, names[path], *place, spoilt)
        yield path, variable.replace(array)


def _refuse_spoilt(spoilt: Collection[str], directory: os.PathLike[str], dtypes: Sequence[str]) -> None:
    """UserError in all processes if any of them has found values that are not finite; each has read only the values of its own
    devices."""
    found = sorted({name for names in gather(sorted(spoilt)) for name in names})
    if found:
        what = f"{len(found)} tensors hold NaN or infinity ({some(found)}) as {' or '.join(dtypes)}"
        raise UserError(f"{directory}: {what}; a model with such weights cannot be used")


def _assemble(
    opened: OpenedModel,
    path: Path,
    names: Sequence[str],
    shape: tuple[int, ...],
    dtype: Any,
    sharding: NamedSharding,
    spoilt: Callable[[str], None],
) -> jax.Array:
    """A parameter on its devices; every shard is read from the files separately. `spoilt` is called with the names of tensors
    that have values that are not finite."""
    stored, names_of = opened.stored, opened.family.names
    layout, stacked = names_of.tensors(path, len(names))[1], names_of.is_stacked(path)
    shards: dict[tuple, np.ndarray] = {}  # devices that hold copies share one

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        if not layout.is_sliced:  # read whole: a slice of the parameter is no slice of the tensor
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
        what = f"{stored.directory}: {'.'.join(path)} {shape}"
        mesh = {axis: size for axis, size in sharding.mesh.shape.items() if size > 1}
        raise UserError(f"{what} cannot be split over mesh {mesh}; change `mesh` in the launch file") from None
    return jax.make_array_from_callback(shape, sharding, shard)


def _aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An empty array whose memory begins at a multiple of 64 bytes, which XLA's CPU backend uses without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _fresh(
    path: Path, shape: tuple[int, ...], dtype: Any, sharding: NamedSharding, config: ModelConfig, seed: int
) -> jax.Array:
    """A parameter of a new reward head, drawn like upstream's, by PyTorch's Linear: U(-1/sqrt(inputs), 1/sqrt(inputs)).

    Both layers of the head have as many inputs as the hidden state has features.
    """
    rng = np.random.default_rng([seed, zlib.crc32(".".join(path).encode())])  # the same on every host
    bound = config.text.hidden_size**-0.5
    values = rng.uniform(-bound, bound, shape).astype(dtype)
    return jax.make_array_from_callback(shape, sharding, lambda index: values[index])
