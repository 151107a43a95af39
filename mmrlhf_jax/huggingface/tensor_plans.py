"""The tensors of an export, planned one by one: from a model's parameters, or from the files that it was read from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrlhf_jax.huggingface.tensors import StoredTensors, TensorPlan
from mmrlhf_jax.models.family import Family, ModelConfig
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.models.weight_names import EMBEDDED, PROJECTED, Layout, Naming, Stored


class WrittenDtypes:
    """The dtype in which a tensor is written: the one asked for, its own in the source, or that of the source's embedding."""

    def __init__(self, stored: StoredTensors, family: Family, asked: np.dtype | None):
        self.asked, self.stored, self.family = asked, stored, family
        found = {family.names.resolve(name): name for name in stored.shapes}
        self.names: dict[Stored, str] = {tensor: name for tensor, name in found.items() if tensor is not None}

    def __call__(self, tensor: Stored) -> np.dtype:
        name = self.names.get(tensor, self.names[EMBEDDED])
        return self.asked or self.stored.dtypes[name]


def model_plans(model: VisionLanguage, naming: Naming, dtype: Callable[[Stored], np.dtype]) -> Iterator[TensorPlan]:
    """Yield the tensors of every parameter, under their names in `naming`, in the dtypes that `dtype` gives."""
    family = family_of(model.config)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        array = variable.get_value()
        tensors, layout = family.names.tensors(path, array.shape[0])
        for tensor in tensors:
            if not family.left_out(model.config, tensor.part, tensor.layer, naming):
                layer = tensor.layer
                shape = layout.stored_shape(array.shape if layer is None else array.shape[1:])
                yield _from_device(family.names.spell(tensor, naming), shape, dtype(tensor), layout, array, layer)


def parameter_plans(model: VisionLanguage, naming: Naming, dtypes: WrittenDtypes) -> dict[str, TensorPlan]:
    """The tensors of a model by their names in `naming`; a tied vocabulary projection is included if the source stores it."""
    plans = {plan.name: plan for plan in model_plans(model, naming, dtypes)}
    if model.config.text.tied and PROJECTED in dtypes.names:
        embedding = model.language.embedding.embedding.get_value()
        name = dtypes.family.names.spell(PROJECTED, naming)
        plans[name] = _from_device(name, embedding.shape, dtypes(PROJECTED), Layout.SAME, embedding, None)
    return plans


def stored_plans(config: ModelConfig, dtypes: WrittenDtypes, naming: Naming) -> dict[str, TensorPlan]:
    """The source's tensors that are parameters of its model, by their names in `naming`."""
    family, plans = dtypes.family, {}
    for tensor, name in dtypes.names.items():
        if family.names.parameter(tensor) is not None and not family.left_out(config, tensor.part, tensor.layer, naming):
            spelt = family.names.spell(tensor, naming)
            plans[spelt] = _copied(dtypes.stored, name, dtypes(tensor), spelt)
    return plans


def ordered_plans(
    parameters: Mapping[str, TensorPlan],
    config: ModelConfig,
    dtypes: WrittenDtypes,
    naming: Naming,
    converted: bool,
) -> list[TensorPlan]:
    """The tensors to write: first those that the source has, in its order and under its own names unless they are `converted`
    to another naming, then those that it lacks. `parameters` are the model's, by their names in `naming`; tensors of the source
    that are no parameters are copied."""
    names, rest, ordered = dtypes.family.names, dict(parameters), []
    for tensor, name in dtypes.names.items():
        spelt = names.spell(tensor, naming)
        plan = rest.pop(spelt, None)
        if names.parameter(tensor) is None:
            plan = _copied(dtypes.stored, name, dtypes(tensor), spelt)
        if plan is not None:
            ordered.append(dataclasses.replace(plan, name=spelt if converted else name))
    ordered += rest.values()
    if naming == "hf":
        stored = {names.spell(tensor, naming) for tensor in dtypes.names}
        ordered += [plan for plan in wanted_plans(dtypes.family, config, dtypes) if plan.name not in stored]
    return ordered


def wanted_plans(family: Family, config: ModelConfig, dtype: Callable[[Stored], np.dtype]) -> Iterator[TensorPlan]:
    """Yield the tensors that transformers expects but the model does not use: one value for every feature of the tower."""
    for (part, rest), value in family.names.wanted.items():
        tensor = Stored(part, rest, None)
        yield _constant(family.names.spell(tensor, "hf"), (config.vision.hidden_size,), dtype(tensor), value)


def _from_device(
    name: str, shape: tuple[int, ...], dtype: np.dtype, layout: Layout, array: jax.Array, layer: int | None
) -> TensorPlan:
    """The tensor of a parameter, or of one layer of a stacked parameter."""

    def read() -> np.ndarray:
        # A copy on the device: reading `array` itself would keep its host copy alive as long as the model.
        part = jnp.copy(array) if layer is None else array[layer]
        return layout.to_tensor(np.asarray(part)).astype(dtype)

    return TensorPlan(name, shape, dtype, read)


def _copied(stored: StoredTensors, name: str, dtype: np.dtype, spelt: str) -> TensorPlan:
    """The stored tensor `name`, to be written as `spelt`."""
    return TensorPlan(spelt, stored.shapes[name], dtype, lambda: stored.read(name).astype(dtype, copy=False))


def _constant(name: str, shape: tuple[int, ...], dtype: np.dtype, value: float) -> TensorPlan:
    return TensorPlan(name, shape, dtype, lambda: np.full(shape, value, dtype))


def main_dtype(plans: Sequence[TensorPlan]) -> np.dtype:
    """The dtype in which most bytes of the model are written."""
    sizes: dict[np.dtype, int] = {}
    for plan in plans:
        sizes[plan.dtype] = sizes.get(plan.dtype, 0) + plan.nbytes
    return max(sizes, key=sizes.__getitem__)
