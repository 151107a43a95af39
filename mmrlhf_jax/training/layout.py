"""Checks that an experiment's rows and its model's widths divide over a mesh. Nothing is loaded or compiled."""

from __future__ import annotations

from collections.abc import Mapping

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.mesh_axes import batch_shards, check_rows, fewest_pieces
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.progress import say


def with_accumulation(experiment: config.Experiment, launch: config.Launch, axes: Mapping[str, int]) -> config.Experiment:
    """The experiment with `batch.accumulation` set: its own value, or the fewest pieces that `launch.rows_per_device` allows.

    `axes` maps the mesh's axes to their sizes. UserError if the number of batch shards does not divide the rows of a piece, or
    if the objective needs the whole batch at once and would get it in several pieces.
    """
    batch = experiment.batch
    if batch.accumulation is not None:
        check_rows(batch.rows, batch.accumulation, axes)
        return experiment
    pieces, whole = fewest_pieces(batch.rows, launch.rows_per_device, axes), experiment.objective.looks_at_batch
    if pieces > 1 and whole:
        raise UserError(
            f"{whole} looks at the whole batch, which rows_per_device: {launch.rows_per_device} in the launch file cuts into"
            f" {pieces} pieces; set batch.accumulation: 1, or take a mesh of more batch shards (data x fsdp)"
        )
    return experiment.model_copy(update={"batch": batch.model_copy(update={"accumulation": pieces})})


def say_overruled(experiment: config.Experiment, launch: config.Launch, axes: Mapping[str, int]) -> None:
    """Report if the experiment's `batch.accumulation` differs from what the launch file's `rows_per_device` would give."""
    batch = experiment.batch
    if None in (batch.accumulation, launch.rows_per_device):
        return
    if batch.accumulation != fewest_pieces(batch.rows, launch.rows_per_device, axes):
        at_once = batch.rows // batch.accumulation // batch_shards(axes)
        say(
            f"batch.accumulation: {batch.accumulation} is set and overrules rows_per_device: {launch.rows_per_device} of the"
            f" launch file; rows that a batch shard takes at once: {at_once}"
        )


def check_layout(experiment: config.Experiment, model: ModelConfig, sizes: Mapping[str, int]) -> None:
    """UserError if the number of batch shards does not divide the rows, or `tensor` does not divide a width of the model.

    `sizes` maps the mesh's axes to their sizes."""
    check_rows(experiment.batch.rows, experiment.batch.accumulation, sizes)
    check_widths(model, sizes, forced_kernel=experiment.model.attention == "pallas")


def say_waste(experiment: config.Experiment, model: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Print a line for each computation that this layout replicates over devices (`wasted`)."""
    for line in wasted(model, experiment.batch.slots, sizes):
        say(line)


def check_widths(model: ModelConfig, axes: Mapping[str, int], *, forced_kernel: bool = False) -> None:
    """UserError if `tensor` does not divide a parameter width that it shards or, with `forced_kernel`, the key/value heads."""
    text, vision, tensor = model.text, model.vision, axes["tensor"]
    widths = {
        f"width of the heads, {text.heads} x {text.head_dim} =": text.heads * text.head_dim,
        f"width of the key/value heads, {text.kv_heads} x {text.head_dim} =": text.kv_heads * text.head_dim,
        "MLP width": text.intermediate_size,
        "vision tower's width": vision.hidden_size,
        "vision tower's MLP width": vision.intermediate_size,
    }
    wrong = [f"{name} {size}" for name, size in widths.items() if size % tensor]
    if wrong:
        raise UserError(
            f"mesh.tensor {tensor} does not divide the model's {', nor its '.join(wrong)}; change `mesh` in the launch file"
        )
    if forced_kernel and text.kv_heads % tensor:
        raise UserError(
            f"mesh.tensor {tensor} does not divide the model's {text.kv_heads} key/value heads, which model.attention: pallas"
            " splits; take auto, or change `mesh` in the launch file"
        )


def wasted(model: ModelConfig, slots: int, axes: Mapping[str, int]) -> list[str]:
    """One line for each computation that is replicated over devices because an axis size does not divide it."""
    tensor, context, found = axes["tensor"], axes["context"], []
    heads, sharing = model.text.heads, tensor * context
    if heads % sharing:
        alike = sharing if heads % tensor else context
        found.append(
            f"tensor {tensor} x context {context} does not divide the {heads} heads: {alike} devices compute the same attention"
        )
    if model.text.vocab_size % tensor:
        vocabulary = f"tensor {tensor} does not divide the vocabulary of {model.text.vocab_size}"
        found.append(f"{vocabulary}: its devices hold the same embedding and compute the same logits")
    if slots % context:
        found.append(f"context {context} does not divide the {slots} slots of a row: its devices compute the same slots")
    return found
