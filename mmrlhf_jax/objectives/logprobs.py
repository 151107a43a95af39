"""Log-probabilities of target tokens without `[B, S, V]` logits: only target slots are projected, in chunks."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from mmrlhf_jax.sharding import rules
from mmrlhf_jax.sharding.ring import gather_rows, reduce_scatter_rows


class TargetLogps(NamedTuple):
    """Per target: log-probability, whether it is the most likely token, the mean logit over the vocabulary, and the entropy of
    the prediction in nats. Only the first has a gradient.
    """

    logps: Float[Array, "B M"]
    correct: Float[Array, "B M"]
    mean_logits: Float[Array, "B M"]
    entropy: Float[Array, "B M"]


def target_logps(
    hidden: Float[Array, "B S E"],
    vocabulary: Float[Array, "E V"],
    targets: Int[Array, "B M"],
    predictors: Int[Array, "B M"],
    *,
    adapter: tuple[Float[Array, "E R"], Float[Array, "R V"]] | None = None,
    chunk: int = 256,
) -> TargetLogps:
    """Log-probability of every target given the hidden state at its predictor slot.

    `adapter` is (A, B) of a low-rank update of the vocabulary matrix; states @ A @ B is added to the logits.

    The projection runs over `chunk` targets per row at a time and is recomputed in the backward pass, so at most one
    `[B, chunk, V]` float32 array is live. The softmax is computed in float32.
    """
    count = targets.shape[1]
    mesh = rules.current_mesh()
    shards = 1 if mesh is None else mesh.shape["context"]
    chunk = min(chunk, -(-count // shards))
    padding = ((0, 0), (0, -count % (chunk * shards)))
    targets, predictors = jnp.pad(targets, padding), jnp.pad(predictors, padding)
    states = jnp.take_along_axis(hidden, predictors[..., None], axis=1)
    inputs, kernels = (states,), (vocabulary,)
    if adapter is not None:
        inputs, kernels = (states, states @ adapter[0].astype(states.dtype)), (vocabulary, adapter[1])
    how = _How(
        chunk, ((),) * len(kernels), jax.config.jax_default_matmul_precision, gradient_is_split(rules.platform(), states.dtype)
    )
    project = _project if mesh is None else partial(_project_in_place, mesh)
    found = project(inputs, kernels, targets, how)
    return jax.tree.map(lambda x: x[:, :count], found)


def gradient_is_split(platform: str, dtype) -> bool:
    """Whether products with the gradient of the logits take it as two pieces of a bfloat16 model's `dtype`: on GPUs, where XLA
    would else copy the vocabulary to float32."""
    return platform == "gpu" and jnp.dtype(dtype) == jnp.bfloat16


# Logits are Σ inputs[i] @ kernels[i]: the states with the vocabulary matrix, and states @ A with the adapter's B.
Inputs = tuple[Float[Array, "B M _"], ...]
Kernels = tuple[Float[Array, "_ V"], ...]


class _How(NamedTuple):
    chunk: int
    gathered: tuple[tuple[str, ...], ...]  # for every kernel, the (manual) mesh axes over which its rows are sharded
    precision: str | None  # matmul precision
    split: bool  # `gradient_is_split`


def _project_in_place(mesh: AbstractMesh, inputs: Inputs, kernels: Kernels, targets: Int[Array, "B M"], how: _How):
    """`_project` in a `shard_map`: rows and targets stay on their devices, and the vocabulary matrix is all-gathered once.

    XLA's partitioner would reduce the vocabulary's gradient over the mesh once per chunk. Here each device sums the gradients
    of its own chunks, and the sum is reduce-scattered once into the stored shards.
    """
    rows = tuple(rules.fit(rules.spec("batch", "slots", None), x.shape, mesh) for x in inputs)
    # The rows of an adapter's B (its rank) are not sharded.
    stored = tuple(
        PartitionSpec(rules.fit_stored((axis, None), kernel.shape, mesh)[0])
        for axis, kernel in zip(("embed", None), kernels, strict=False)
    )
    how = how._replace(gathered=tuple(rules.axes_in(spec[0]) for spec in stored))
    return jax.shard_map(
        lambda inputs, kernels, targets: _project(inputs, kernels, targets, how),
        mesh=mesh,
        in_specs=(rows, stored, PartitionSpec(*rows[0][:2])),
        out_specs=PartitionSpec(*rows[0][:2]),
        axis_names=set(rules.MESH_AXES) - {"tensor"},
        check_vma=False,
    )(inputs, kernels, targets)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _project(inputs: Inputs, kernels: Kernels, targets: Int[Array, "B M"], how: _How) -> TargetLogps:
    """`kernels` are the stored shards; they are cast to the inputs' dtype and gathered inside. Their gradients are accumulated
    over the chunks in float32; a cast outside of this function would make autodiff accumulate in the inputs' dtype.
    """
    return _figures(inputs, _whole(inputs, kernels, how), targets, how)


def _whole(inputs: Inputs, kernels: Kernels, how: _How) -> Kernels:
    cast = (kernel.astype(x.dtype) for x, kernel in zip(inputs, kernels, strict=True))
    return tuple(gather_rows(kernel, axes) if axes else kernel for kernel, axes in zip(cast, how.gathered, strict=True))


def _figures(inputs: Inputs, whole: Kernels, targets: Int[Array, "B M"], how: _How) -> TargetLogps:
    def body(_, chunk):
        inputs, targets = chunk
        logits = _logits(inputs, whole, how)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
        surprise = normaliser[..., None] - logits
        entropy = (jnp.exp(-surprise) * surprise).sum(axis=-1)
        return None, TargetLogps(chosen - normaliser, correct, logits.mean(axis=-1), entropy)

    # A scan keeps the logits of only one chunk alive.
    _, found = jax.lax.scan(body, None, _chunks((inputs, targets), how.chunk))
    return jax.tree.map(_rows, found)


def _logits(inputs: Inputs, whole: Kernels, how: _How) -> Float[Array, "B C V"]:
    settings = dict(precision=how.precision, preferred_element_type=jnp.float32)
    products = [jnp.einsum("bce,ev->bcv", x, kernel, **settings) for x, kernel in zip(inputs, whole, strict=True)]
    return rules.constrain(sum(products[1:], products[0]), None, None, "act_vocab")


def _project_forward(inputs, kernels, targets, how):
    values = tuple(x.value for x in inputs)
    whole = _whole(values, tuple(kernel.value for kernel in kernels), how)
    # For a kernel that learns, an empty array that carries its dtype; None for a frozen one.
    learns = tuple(jnp.zeros(0, kernel.value.dtype) if kernel.perturbed else None for kernel in kernels)
    return _figures(values, whole, targets.value, how), (values, whole, targets.value, learns)


def _project_backward(how, kept, cotangents):
    """d logp / d logits = one_hot(target) − probabilities; logits are recomputed chunk by chunk."""
    inputs, whole, targets, learns = kept
    if type(cotangents.logps) is SymbolicZero:
        return None, None, None
    settings = dict(precision=how.precision, preferred_element_type=jnp.float32)

    def body(sums, chunk):
        inputs, targets, cotangent = chunk
        logits = _logits(inputs, whole, how)
        probabilities = jnp.exp(logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
        at_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        back = rules.constrain(cotangent[..., None] * (at_target - probabilities), None, None, "act_vocab")
        # The products keep `back` in float32; rounding it to the kernel's dtype would cost more accuracy than time it saves.
        # On GPUs both factors of a product have one dtype, and XLA would make a float32 copy of the whole vocabulary for it.
        if how.split:
            back = rules.constrain(_pieces(back), None, None, "act_vocab")
            inputs = tuple(jnp.concatenate([x, x], axis=1) for x in inputs)
        joined = _sum_of_halves if how.split else lambda product: product
        to_inputs = tuple(
            joined(jax.lax.dot_general(back, kernel, (((2,), (1,)), ((), ())), **settings)).astype(x.dtype)
            for x, kernel in zip(inputs, whole, strict=True)
        )
        sums = tuple(
            None if total is None else total + jax.lax.dot_general(x, back, (((0, 1), (0, 1)), ((), ())), **settings)
            for x, total in zip(inputs, sums, strict=True)
        )
        return sums, to_inputs

    nothing = tuple(
        None if own is None else jnp.zeros(kernel.shape, jnp.float32) for own, kernel in zip(learns, whole, strict=True)
    )
    sums, to_inputs = jax.lax.scan(body, nothing, _chunks((inputs, targets, cotangents.logps), how.chunk))
    pieces = tuple(
        None if own is None else (reduce_scatter_rows(total, axes) if axes else total).astype(own.dtype)
        for own, total, axes in zip(learns, sums, how.gathered, strict=True)
    )
    return jax.tree.map(_rows, to_inputs), pieces, None


def _pieces(back: Float[Array, "B C V"]) -> Float[Array, "B 2C V"]:
    """Two bfloat16 arrays, one behind the other, whose sum is `back` to 2^-17 of each entry: its rounded value and the rest."""
    # XLA drops a cast to bfloat16 and back, because it may keep more precision than asked for; this rounding it keeps.
    high = jax.lax.reduce_precision(back, exponent_bits=8, mantissa_bits=7)
    return jnp.concatenate([high, back - high], axis=1).astype(jnp.bfloat16)


def _sum_of_halves(product: Float[Array, "B 2C E"]) -> Float[Array, "B C E"]:
    high, low = jnp.split(product, 2, axis=1)
    return high + low


_project.defvjp(_project_forward, _project_backward, symbolic_zeros=True)


def _chunks(tree, size: int):
    """[B, M, ...] to [M / size, B, size, ...]."""
    return jax.tree.map(lambda x: x.reshape(len(x), x.shape[1] // size, size, *x.shape[2:]).swapaxes(0, 1), tree)


def _rows(x: Float[Array, "N B C ..."]) -> Float[Array, "B M ..."]:
    return x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])


def sum_by_response(values: Float[Array, "B M"], responses: Int[Array, "B M"], count: int) -> Float[Array, "B R"]:
    """Sums of per-target values per response, with R = `count`. Targets with response number R are unused and dropped."""
    # Not over `context`, which does not always divide M: XLA's partitioner would pad the numbers of a scatter with zeros, and
    # what lies behind the last target would be added to response 0.
    values, responses = (rules.constrain(x, "batch", None) for x in (values, responses))
    return jax.vmap(lambda v, r: jnp.zeros(count, v.dtype).at[r].add(v, mode="drop"))(values, responses)


def target_counts(responses: Int[Array, "B M"], count: int) -> Float[Array, "B R"]:
    """Number of target tokens per response, with R = `count`; `responses` as in `sum_by_response`."""
    return sum_by_response(jnp.ones(responses.shape, jnp.float32), responses, count)
