"""The train state: a plain pytree. The module graph (`nnx.GraphDef`) is static and passed separately."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmrlhf_jax.config import Lora, Model, Trains
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.lora import add_lora, is_adapter
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.models.weight_names import Path

MASTER = np.dtype(np.float32)  # dtype of every parameter that learns
# The output layer gets an adapter only if `lora.layers` names it, as in PEFT.
UNADAPTED = {("language", "head")}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """`params` get gradients, `frozen` do not; both are `nnx.State`s of the same model."""

    step: jax.Array  # int32[]: steps done, which is also the data position
    params: nnx.State
    frozen: nnx.State
    opt_state: optax.OptState
    start: nnx.State | None = None  # a copy of `params` at step 0, kept only for a live reference
    statistics: dict[str, jax.Array] = dataclasses.field(default_factory=dict)  # float32[] each: `Task.statistics` so far


def split_model(model: VisionLanguage, trains: Trains, lora: Lora | None = None) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """(graphdef, trained parameters, frozen parameters). Of the parts in `lora.parts` only the adapters are trained."""
    learns = learner(family_of(model.config).parts, trains, lora)
    return nnx.split(model, lambda path, _: learns(path), ...)


def learner(parts: Mapping[str, str], trains: Trains, lora: Lora | None) -> Callable[[Path], bool]:
    """A function that tells whether the parameter at a path learns. `parts` are those of the model (`Family.parts`)."""
    adapted = lora.parts if lora else ()

    def learns(path: Path) -> bool:
        part = parts[path[0]]
        return getattr(trains, part) and (part not in adapted or is_adapter(path))

    return learns


def stored_dtype(parts: Mapping[str, str], settings: Model, trains: Trains, lora: Lora | None) -> Callable[[Path], np.dtype]:
    """A function that gives the storage dtype of the parameter at a path: float32 if it learns, else `frozen_dtype`. `parts`
    are those of the model (`Family.parts`)."""
    learns, frozen = learner(parts, trains, lora), jnp.dtype(settings.frozen_dtype)
    return lambda path: MASTER if learns(path) else frozen


def precision_line(params: nnx.State, frozen: nnx.State, dtype: str) -> str:
    """A line for the log: how many parameters learn, how many are frozen, and their dtypes."""
    counts = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, frozen)]
    kinds = " and ".join(sorted({x.dtype.name for x in jax.tree.leaves(frozen)}))
    still = f", {counts[1]:,} are frozen in {kinds}" if counts[1] else ""
    return f"{counts[0]:,} parameters learn in float32{still}; the model computes in {dtype}"


def with_adapters(model: VisionLanguage, lora: Lora | None, seed: int) -> VisionLanguage:
    """`model` with the experiment's LoRA adapters added. UserError if a named part or layer does not exist or cannot be
    adapted."""
    if lora is None:
        return model

    part_of = family_of(model.config).parts
    there: list[Path] = []  # layers that could be adapted, for error messages

    def chosen(path: Path) -> bool:
        if part_of[path[0]] not in lora.parts:
            return False
        there.append(path)
        return path not in UNADAPTED if lora.layers is None else path[-1] in lora.layers

    adapted = add_lora(model, chosen, rank=lora.rank, alpha=lora.alpha, dtype=MASTER, seed=seed)
    layers = lora.layers or ()
    if "head" in layers and "language_model" in lora.parts and model.config.text.tied:
        raise UserError(
            "lora.layers names head, but this model's vocabulary projection is its token embedding (tie_word_embeddings):"
            " an adapter of one would be none of the other; leave head out"
        )
    parts, names = {part_of[path[0]] for path in there}, {path[-1] for path in there}
    for key, wanted, here in (("parts", lora.parts, parts), ("layers", layers, names)):
        missing = [name for name in wanted if name not in here]
        if missing:
            known = ", ".join(sorted(here)) or "none"
            raise UserError(f"lora.{key}: this model has no {missing[0]!r} to adapt; there are {known}")
    idle = [part for part in lora.parts if part not in {part_of[path[0]] for path in adapted}]
    if idle:
        known = ", ".join(sorted({path[-1] for path in there if part_of[path[0]] == idle[0]}))
        raise UserError(f"lora.layers {', '.join(layers)}: {idle[0]} has none of these and would not learn; it has {known}")
    return model


def init_state(
    params: nnx.State,
    frozen: nnx.State,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    keep_start: bool = False,
    statistics: Mapping[str, float] = MappingProxyType({}),
) -> TrainState:
    """A fresh state at step 0. The optimizer's moments have the sharding of their parameters. `keep_start` copies `params` into
    `start`; `statistics` are the task's (`Task.statistics`). ValueError if a parameter is not float32."""
    rounded = [jax.tree_util.keystr(path) for path, x in jax.tree_util.tree_leaves_with_path(params) if x.dtype != MASTER]
    if rounded:
        raise ValueError(f"{rounded[0]} and {len(rounded) - 1} more learn and are not float32")
    replicated = NamedSharding(mesh, PartitionSpec())
    places = moment_places(jax.eval_shape(tx.init, params), params, replicated)
    opt_state = jax.jit(tx.init, out_shardings=places)(params)
    start = jax.tree.map(jnp.copy, params) if keep_start else None  # a copy, because the step donates `params`
    step = jax.device_put(jnp.zeros((), jnp.int32), replicated)
    begun = {name: jax.device_put(jnp.float32(value), replicated) for name, value in statistics.items()}
    return TrainState(step, params, frozen, opt_state, start, begun)


def moment_places(opt_state: optax.OptState, params: nnx.State, default: NamedSharding) -> optax.OptState:
    """The sharding of every leaf of an optimizer state: that of the parameter whose path is a suffix of the leaf's path, else
    `default`.

    `optax.tree_map_params` cannot be used: it needs a moment for every parameter, and Muon's partition has none for the
    parameters that Adam updates.
    """
    found = {path: param.sharding for path, param in jax.tree_util.tree_leaves_with_path(params)}

    def place(path, _):
        return next((found[path[i:]] for i in range(len(path)) if path[i:] in found), default)

    return jax.tree_util.tree_map_with_path(place, opt_state)
