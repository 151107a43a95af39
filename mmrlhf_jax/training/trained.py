"""Loading a run's trained model at a checkpoint, and exporting it as a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.data.templates import writes_alike
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Fault, fault
from mmrlhf_jax.files import exists
from mmrlhf_jax.huggingface.adapter import export_adapter
from mmrlhf_jax.huggingface.export import export_checkpoint, export_model, say_rounded
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.new_directory import reserved
from mmrlhf_jax.huggingface.tensor_plans import WrittenDtypes
from mmrlhf_jax.huggingface.tensors import StoredTensors
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.models.lora import is_adapter, merge_lora
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.agreement import first_decides, together
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.training.base import load_base
from mmrlhf_jax.training.card import conversion_card, model_card
from mmrlhf_jax.training.directory import CHECKPOINTS, CONFIG_FILE
from mmrlhf_jax.training.identity import learnt_otherwise
from mmrlhf_jax.training.learning import learning_of
from mmrlhf_jax.training.metrics import read_metrics
from mmrlhf_jax.training.state import learner
from mmrlhf_jax.training.stored import Criterion, StoredCheckpoints


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's model at the checkpoint of `step`, with the run's experiment."""

    model: VisionLanguage
    experiment: config.Experiment
    source: epath.Path  # the base model's directory
    step: int


def load_trained(
    run: epath.PathLike,
    *,
    step: int | str | None = None,
    mesh: Mesh,
    up_to: int | None = None,
    overrides: Sequence[str] = (),
    exact: bool = False,
) -> Trained:
    """The base model with a run's trained parameters from its checkpoint at `step` (a number, "best", or by default the
    newest).

    `up_to` limits the newest to checkpoints of no later step; if there is none, the base model is returned as step 0. Adapters
    are not merged. `overrides` change the run's settings. With `exact`, frozen parameters keep the precision that the base
    model stores, even if the run kept them in bfloat16: use it to write the model, not to reproduce the run's computation.

    UserError, before the model is loaded, if the run learnt on something else: another model at `model.path`, other adapters,
    or another reward head.
    """
    run = epath.Path(run)
    experiment = together(lambda: _experiment(run, overrides))
    loaded = together(lambda: _unrounded(experiment)) if exact else experiment
    checkpoints = StoredCheckpoints(run / CHECKPOINTS, Criterion(experiment.run.best, experiment.run.best_is))
    chosen, source, model = _chosen(run, checkpoints, step, up_to), together(lambda: _source(experiment)), None
    with use_mesh(mesh):
        while True:
            try:
                together(partial(_check_base, run, checkpoints, chosen, experiment, source))
                model = load_base(loaded, mesh) if model is None else model
                if chosen != 0:
                    model = together(partial(checkpoints.restore_model, model, experiment.trains, experiment.lora, chosen))
                return Trained(model, experiment, source, chosen)
            except UserError:
                # A running trainer may have removed the checkpoint after it was chosen; then there is a newer one.
                newer = _chosen(run, checkpoints, step, up_to)
                if newer == chosen:
                    raise
                say(f"{run}: the checkpoint at step {chosen} was removed meanwhile; taking step {newer}")
                chosen = newer


def _source(experiment: config.Experiment) -> epath.Path:
    return epath.Path(local_directory(experiment.model.path))


def _check_base(
    run: epath.Path, checkpoints: StoredCheckpoints, step: int, experiment: config.Experiment, source: epath.Path
) -> None:
    """UserError if the parameters of the checkpoint at `step` belong to another model, or to adapters or a head with other
    settings. For step 0 (the base model) the newest readable checkpoint is checked."""
    for each in [step] if step else reversed(checkpoints.steps):
        try:
            identity = checkpoints.identity(each)
        except Exception as error:  # any storage backend's error
            if not step and fault(error) is Fault.DAMAGED:
                continue
            raise checkpoints.explained(each, error) from error
        why = learnt_otherwise(identity, experiment, source)
        if why is not None:
            which = f"{run}: the checkpoint at step {each} was learnt with {why}"
            raise UserError(f"{which}: it would be another model; put back what the run had")
        return


def _experiment(run: epath.Path, overrides: Sequence[str]) -> config.Experiment:
    if not exists(run / CONFIG_FILE):
        raise UserError(f"{run}: not a run directory (no {CONFIG_FILE}); `mmrlhf train` makes one")
    return config.load_experiment(run / CONFIG_FILE, overrides)


def _unrounded(experiment: config.Experiment) -> config.Experiment:
    """The experiment with `frozen_dtype: float32`, so that loading does not round weights that the base stores in more than
    bfloat16. A base stored in bfloat16 keeps it, which takes half the memory. A run with `dtype: float32` keeps its
    `frozen_dtype`, because it computed with exactly these rounded weights; with `dtype: bfloat16` every weight is rounded when
    it is used, so unrounded weights are the same model."""
    settings = experiment.model
    if settings.frozen_dtype == "float32" or settings.dtype == "float32":
        return experiment
    stored = set(StoredTensors(local_directory(settings.path)).dtypes.values())
    if stored == {jnp.dtype("bfloat16")}:
        return experiment
    return experiment.model_copy(update={"model": settings.model_copy(update={"frozen_dtype": "float32"})})


def _chosen(run: epath.Path, checkpoints: StoredCheckpoints, step: int | str | None, up_to: int | None) -> int:
    """The chosen step, the same in all processes; 0 is the base model. UserError if there is no such checkpoint."""

    def choose() -> int:
        found, best = checkpoints.steps, None
        if step == "best":
            judged = checkpoints.on_newest_data()
            best, figure, others = judged.best, judged.criterion.figure, judged.other_scores
            if best is None:
                others = others or "none was judged on held-out data (data.held_out, run.eval_every)"
                raise UserError(f"{run}: no checkpoint has a score by run.best {figure}: {others}; give a step")
            if others is not None:
                say(f"{run}: step {best} is the best by {figure} on the newest held-out data; {others}, which is not compared")
        newest = max(found, default=None) if up_to is None else max((s for s in found if s <= up_to), default=0)
        chosen = {None: newest, "best": best}.get(step, step)
        if chosen not in found and (chosen != 0 or up_to is None):
            if not found:
                raise UserError(f"{run}: this run has no complete checkpoint; it saves one every run.checkpoint_every steps")
            raise UserError(f"{run}: there is no checkpoint of step {chosen}; there are those of {', '.join(map(str, found))}")
        return chosen

    return first_decides(choose)


def export_run(
    checkpoint: str,
    out: str,
    *,
    step: int | str | None = None,
    naming: str = "hf",
    dtype: str | None = None,
    adapter: bool = False,
) -> None:
    """`mmrlhf export`: write a run, a model directory (in another naming or dtype), or a PEFT adapter with its base as a model.

    Adapters are merged into the model; with `adapter`, those of a run are written alone, in PEFT's format.
    """
    if naming not in ("hf", "original"):
        raise UserError(f"--naming {naming!r}: choose hf or original")
    if dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"--dtype {dtype!r}: choose float32 or bfloat16")
    is_run = (epath.Path(checkpoint) / CONFIG_FILE).exists()
    for given, use in (
        (adapter, "--adapter exports a run with `lora`"),
        (step is not None, "--step chooses a run's checkpoint"),
    ):
        if given and not is_run:
            raise UserError(f"{checkpoint}: {use}; this is not a run directory")
    kind = None if dtype is None else jnp.dtype(dtype)
    with reserved(out) as place:  # before loading, so that an output that cannot be written fails early
        if is_run:
            _export_run(checkpoint, place, step, naming, kind, adapter)
        else:
            card = lambda family: conversion_card(checkpoint, family, naming, dtype)
            parameters = export_checkpoint(checkpoint, place, dtype=kind, naming=naming, card=card)
            say(f"{out}: {parameters:,} parameters exported")


def _export_run(
    run: str, out: os.PathLike[str], step: int | str | None, naming: str, kind: jnp.dtype | None, adapter: bool
) -> None:
    mesh = make_mesh({"fsdp": -1})
    read_metrics(run)  # raises before the model is loaded if the file is invalid
    trained = load_trained(run, step=step, mesh=mesh, exact=True)
    # Metrics are read again, because a running trainer may have added lines since.
    card = model_card(trained.experiment, family_of(trained.model.config), trained.step, read_metrics(run))
    if adapter:
        export_run_adapter(trained, out, card)
        return
    with use_mesh(mesh):
        merged = merge_lora(trained.model)
    parameters = export_model(merged, trained.source, out, dtype=kind, naming=naming, card=card)
    _say_other_template(trained, out)
    _say_other_pixels(trained, out)
    say_rounded(out, _learnt_dtypes(trained, kind), "weights that learnt in float32", asked=kind is not None)
    say(f"{out}: {parameters:,} parameters exported")


def _learnt_dtypes(trained: Trained, asked: jnp.dtype | None) -> set[np.dtype]:
    """The dtypes in which an export writes the parameters that learnt. By default they are the base's, which may round small
    updates away."""
    family = family_of(trained.model.config)
    kinds = WrittenDtypes(StoredTensors(trained.source, family.names.pieces), family, asked)
    learns = learner(family.parts, trained.experiment.trains, trained.experiment.lora)
    found = set()
    for path, variable in nnx.to_flat_state(nnx.state(trained.model)):
        if learns(path):
            changed = (*path[:-1], "kernel") if is_adapter(path) else path
            tensors, _ = family.names.tensors(changed, variable.get_value().shape[0])
            found |= {kinds(tensor) for tensor in tensors}
    return found


def _say_other_template(trained: Trained, out: str | os.PathLike[str]) -> None:
    """Warn if the export's chat template (the base model's) differs from the one that the run learnt with (`data.template`)."""
    tokenizer, family = load_tokenizer(trained.source), family_of(trained.model.config)
    name = trained.experiment.data.template or family.template
    if tokenizer.chat_template and not writes_alike(tokenizer, name, family.media_tags):
        say(
            f"{out}: the chat template is the base model's own, which writes conversations otherwise than the {name} that this"
            " run learnt with (data.template); for other programs train with data.template: checkpoint"
        )


def _say_other_pixels(trained: Trained, out: str | os.PathLike[str]) -> None:
    """Warn if the run learnt with smaller images than the export's processor files allow (`data.max_pixels`)."""
    geometry, most = trained.model.config.geometry, trained.experiment.data.max_pixels
    if geometry.within_pixels(most) != geometry:
        say(
            f"{out}: this run learnt with images of at most {most:,} pixels (data.max_pixels), and the processor files have the"
            " base model's limit, by which the model is scored and served; set max_pixels there for the same sizes"
        )


def export_run_adapter(trained: Trained, out: str | os.PathLike[str], card: str) -> None:
    """Write the adapters alone. UserError if any part was fully trained, which an adapter directory cannot hold."""
    experiment, lora = trained.experiment, trained.experiment.lora
    whole = learning_of(experiment, trained.model.config).whole
    if whole:
        raise UserError(
            f"{', '.join(whole)} learnt as a whole, which adapters do not hold; export the merged model (no --adapter)"
        )
    export_adapter(trained.model, experiment.model.path, out, rank=lora.rank, alpha=lora.alpha, card=card)
    say(f"{out}: adapters of {experiment.model.path} exported")
