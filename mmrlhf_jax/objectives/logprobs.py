"""Log-probabilities of target tokens without `[B, S, V]` logits: only answers reach the vocabulary, chunk by chunk."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from mmrlhf_jax.sharding import rules
from mmrlhf_jax.sharding.ring import gather_rows


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

    `adapter`: A and B of a low-rank update of the vocabulary. Its logits, states @ A @ B, are added to the vocabulary's own.

    The projection runs over `chunk` targets per row at a time and is recomputed in the backward pass, so at most one
    `[B, chunk, V]` float32 array is live. Softmax in float32.
    """
    count = targets.shape[1]
    mesh = rules.current_mesh()
    shards = 1 if mesh is None else mesh.shape["context"]
    chunk = min(chunk, -(-count // shards))
    padding = ((0, 0), (0, -count % (chunk * shards)))
    targets, predictors = jnp.pad(targets, padding), jnp.pad(predictors, padding)
    states = jnp.take_along_axis(hidden, predictors[..., None], axis=1)
    terms = [(states, vocabulary)]
    if adapter is not None:
        terms.append((states @ adapter[0], adapter[1]))
    project = partial(_project, chunk=chunk) if mesh is None else _project_in_place(mesh, terms, chunk)
    return jax.tree.map(lambda x: x[:, :count], project(*zip(*terms, strict=True), targets))


# What logits are summed from: inputs of some width and a kernel each.
Inputs = tuple[Float[Array, "B M _"], ...]
Kernels = tuple[Float[Array, "_ V"], ...]


def _project_in_place(mesh: AbstractMesh, terms: list[tuple[jax.Array, jax.Array]], chunk: int):
    """`_project` with rows and targets where they are, and the vocabulary gathered once.

    Left to the partitioner, every chunk's part of the vocabulary's gradient would be reduced over the mesh. Here each device
    adds up its own chunks, and the sum is reduced once, straight into the stored pieces.
    """
    rows = tuple(rules.fit(rules.spec("batch", "slots", None), x.shape, mesh) for x, _ in terms)
    # The inputs of an adapter's B are not split.
    stored = tuple(
        PartitionSpec(rules.fit_stored((axis, None), kernel.shape, mesh)[0])
        for axis, (_, kernel) in zip(("embed", None), terms, strict=False)
    )

    def local(inputs: Inputs, kernels: Kernels, targets):
        whole = (gather_rows(w, rules.axes_in(spec[0])) if spec[0] else w for w, spec in zip(kernels, stored, strict=True))
        return _project(inputs, tuple(whole), targets, chunk=chunk)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(rows, stored, PartitionSpec(*rows[0][:2])),
        out_specs=PartitionSpec(*rows[0][:2]),
        axis_names=set(rules.MESH_AXES) - {"tensor"},
        check_vma=False,
    )


def _project(inputs: Inputs, kernels: Kernels, targets: Int[Array, "B M"], *, chunk: int) -> TargetLogps:
    batch, count = targets.shape

    def chunks(x):
        return x.reshape(batch, count // chunk, chunk, *x.shape[2:]).swapaxes(0, 1)

    @partial(jax.checkpoint, prevent_cse=False)
    def body(inputs, targets):
        products = [
            jnp.einsum("bce,ev->bcv", x, kernel, preferred_element_type=jnp.float32)
            for x, kernel in zip(inputs, kernels, strict=True)
        ]
        logits = rules.constrain(sum(products[1:], products[0]), None, None, "act_vocab")
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        seen, sums = jax.lax.stop_gradient((logits, normaliser))
        correct = (jnp.argmax(seen, axis=-1) == targets).astype(jnp.float32)
        surprise = sums[..., None] - seen
        entropy = (jnp.exp(-surprise) * surprise).sum(axis=-1)
        return TargetLogps(chosen - normaliser, correct, seen.mean(axis=-1), entropy)

    # The count of chunks is static; a scan keeps one chunk alive at a time.
    _, out = jax.lax.scan(lambda _, xs: (None, body(*xs)), None, (jax.tree.map(chunks, inputs), chunks(targets)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(batch, count), out)


def sum_by_response(values: Float[Array, "B M"], responses: Int[Array, "B M"], count: int) -> Float[Array, "B R"]:
    """Sums of per-target values per response, R = `count`. Targets of response R are unused and dropped."""
    return jax.vmap(lambda v, r: jnp.zeros(count, v.dtype).at[r].add(v, mode="drop"))(values, responses)
