"""Experiments and launch files: YAML to frozen, validated models. The one place where a default is written.

An experiment (`configs/*.yaml`) says what is learnt from what; a launch file (`launch/*.yaml`) says on which mesh. An
experiment may name one `base:` file whose keys it overrides; `--set a.b=c` overrides both.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from etils import epath
from pydantic import Field

from mmrlhf_jax import sections
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import is_remote
from mmrlhf_jax.hub_id import is_hub_id
from mmrlhf_jax.loss_names import LOSSES, check_options
from mmrlhf_jax.mesh_axes import MESH_AXES, check_axes, sizes_over
from mmrlhf_jax.sections import AboveOne, BelowOne, Flag, Integer, Number, PathName, Section, WrittenPath

Dtype = Literal["float32", "bfloat16"]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[Integer, Field(ge=1)]
# A bfloat16 has 8 bits: what shrinks by less than 1/512 of itself stays, and by 1/50 it loses a tenth of that to rounding.
SLOWEST_IN_BFLOAT16 = 0.98
PartName = Literal["vision_tower", "projector", "newline", "language_model", "reward_head"]


class Model(Section):
    """`path`: a Hugging Face directory or hub id, in either naming.

    Precision is by role: `dtype` is what the model computes in, `frozen_dtype` what is stored of the parameters that do not
    learn. Those that do, and all that belongs to them (adapters, moments), are float32 whatever these say: in bfloat16 a
    weight does not move at all under a step of less than 1/512 of itself. A reward head always computes in float32.
    `reduce_dtype` is what the gradients of the layers' matrices are summed in, over tokens and over the devices of `fsdp`: with
    bfloat16 half as many bytes travel, and every device's part is rounded to 8 bits. All other gradients (vocabulary,
    embedding, norms, biases, newline, reward head) and the pieces of a batch are summed in float32 in any case.
    `param_dtype`, the older name of `frozen_dtype`, is read as that.

    `attention`: the implementation, by platform (a Pallas kernel on TPU, else XLA) or forced.
    """

    path: PathName
    dtype: Dtype = "bfloat16"
    frozen_dtype: Dtype = "float32"
    reduce_dtype: Dtype = "float32"
    remat: Literal["none", "full", "dots"] = "full"
    attention: Literal["auto", "xla", "pallas"] = "auto"
    reward_head: Literal["tanh", "silu", "linear"] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _older_name(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "param_dtype" not in raw:
            return raw
        if "frozen_dtype" in raw:
            raise ValueError("param_dtype is the older name of frozen_dtype; give one of them")
        return {("frozen_dtype" if key == "param_dtype" else key): value for key, value in raw.items()}


class DataSet(Section):
    """One set of several. `weight`: how often an epoch passes over it (0.5: every group every other epoch).

    `sampling_strategy` is MM-RLHF's: all, or first, end or random with a count or a share, as in random:1000 or first:20%.
    """

    path: PathName
    media_root: PathName | None = None
    weight: Positive = 1.0
    sampling_strategy: str = "all"


OverBudget = Literal["error", "drop", "fewer_tiles", "cut_longest"]


class Data(Section):
    """`path`: a ranked source file, a directory that `mmrlhf data build` wrote, MM-RLHF's mixture file (YAML), or a list.

    `template`: `checkpoint` is the chat template that the model came with.
    `over_budget`: what becomes of a group that exceeds the row budget, or several policies in the order of trying:
    fewer_tiles, cut_longest (response), drop, error.

    `pairs`: all strictly ordered ones, the extreme one, or `at_most: n` of a group (n alone means the same).
    `critiques` names the field of a response that its critique is taken from; null leaves critiques out, for a reward
    model of scores alone.
    `rewards` is a file that `mmrlhf score` wrote of the training data, `held_out_rewards` one of the held-out data.
    """

    path: PathName | Annotated[tuple[PathName | DataSet, ...], Field(min_length=1)]
    media_root: PathName | None = None
    template: Literal["qwen_1_5", "upstream_train", "checkpoint"] = "qwen_1_5"
    pairs: Literal["all", "extreme"] | Count = "all"
    weighting: Literal["pair", "group"] = "pair"
    learn: Literal["all", "best"] = "all"
    critiques: str | None = "critique"
    rewards: PathName | None = None
    held_out: PathName | None = None
    held_out_rewards: PathName | None = None
    over_budget: Annotated[tuple[OverBudget, ...], Field(min_length=1)] = ("error",)
    video_frames: Count = 32
    workers: Annotated[Integer, Field(ge=0)] = 0

    @pydantic.model_validator(mode="after")
    def _held_out(self):
        if self.held_out_rewards is not None and self.held_out is None:
            raise ValueError("held_out_rewards is given, but no held_out data")
        return self

    @property
    def paths(self) -> list[str]:
        parts = (self.path,) if isinstance(self.path, str) else self.path
        return [part if isinstance(part, str) else part.path for part in parts]

    @property
    def named(self) -> str:
        """The path or paths, for messages."""
        return ", ".join(self.paths)

    @pydantic.field_validator("over_budget", mode="before")
    @classmethod
    def _one_or_several(cls, policies: Any) -> Any:
        return (policies,) if isinstance(policies, str) else policies

    @pydantic.field_validator("pairs", mode="before")
    @classmethod
    def _at_most(cls, pairs: Any) -> Any:
        return pairs["at_most"] if isinstance(pairs, dict) and list(pairs) == ["at_most"] else pairs


# The keys of `data` that name a file or a folder, beside `path`.
DATA_PLACES = ("media_root", "rewards", "held_out", "held_out_rewards")


class Scaling(Section):
    """β(δ). `margin` is the paper's Dynamic Reward Scaling; what δ is made of is `margins`: the responses' rewards, their
    human scores, or what upstream's pair files store with each pair (`ls_factor`; mode `ls_factor` is how upstream uses it).

    `negative_margins` is for pairs that the reward model orders against the human rank: `clamp` gives them the β of
    δ = 0 (the paper's stated range), `unclamped` less than that, `drop` leaves them out of the loss.
    """

    mode: Literal["margin", "fixed", "ls_factor", "batch_implicit"] = "margin"
    w: NonNegative = 0.5
    k: NonNegative = 0.5
    margins: Literal["rewards", "human_scores", "stored"] = "rewards"
    negative_margins: Literal["clamp", "unclamped", "drop"] = "clamp"


class ObjectiveSection(Section):
    """What the settings of every kind of objective tell; what each kind does with data, loss and plan is in `tasks`.

    Each kind has a `reference` as well, which is None where it needs no reference model.
    """

    needs_reward_head: ClassVar[bool] = False

    @property
    def looks_at_batch(self) -> str | None:
        """What of it sees the pairs of a batch together, by name, so that the batch cannot be taken in pieces; or None."""
        return None

    @property
    def scores(self) -> bool:
        """Whether the loss depends on the reward head."""
        return False

    def writes(self, data: Data) -> bool:
        """Whether the loss depends on the probabilities of words."""
        return True

    def lacks_weights(self, data: Data) -> str | None:
        """Why no term of the loss has a weight, and what to do about it; None where one has."""
        return None


class Preference(ObjectiveSection):
    """MM-DPO. `sft_weight` is γ, on chosen responses.

    `reference`: log-probs of the starting model, `cached` (one pass before training), `live` (a forward pass of it in
    every step, from a second copy of what learns) or `adapter_base` (the same with the adapters left out, and no copy).
    """

    kind: Literal["preference"] = "preference"
    losses: dict[str, NonNegative] = Field(default_factory=lambda: {"sigmoid": 1.0})
    beta: Positive = 0.1
    scaling: Scaling = Scaling()
    sft_weight: NonNegative = 0.25
    label_smoothing: NonNegative = 0.0
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    f_alpha: Number = 0.5
    discopop_tau: Positive = 0.05
    ld_alpha: Annotated[Number, Field(ge=0, le=1)] = 1.0
    reference: Literal["cached", "live", "adapter_base"] = "cached"

    @property
    def looks_at_batch(self) -> str | None:
        """What of it sorts or normalises over the whole batch."""
        if self.scaling.mode == "batch_implicit":
            return "scaling.mode batch_implicit"
        return next((f"loss {name}" for name in ("aot", "aot_unpaired") if name in self.losses), None)

    def lacks_weights(self, data: Data) -> str | None:
        if any((*self.losses.values(), self.sft_weight)):
            return None
        return "losses and sft_weight are all 0, so that nothing would be learnt; give one a weight"

    @pydantic.field_validator("losses")
    @classmethod
    def _known(cls, losses: dict[str, NonNegative]) -> dict[str, NonNegative]:
        if not losses:
            raise ValueError(f"names no loss; choose from {', '.join(LOSSES)}")
        if unknown := [name for name in losses if name not in LOSSES]:
            raise ValueError(f"unknown loss {shown(unknown)}; choose from {', '.join(LOSSES)}")
        return losses

    @pydantic.model_validator(mode="after")
    def _defined(self):
        for name in self.losses:
            try:
                check_options(name, self.label_smoothing, self.f_divergence)
            except UserError as error:
                raise ValueError(str(error)) from None
        if self.ld_alpha != 1 and self.reference == "cached":
            raise ValueError("ld_alpha weighs tokens, and the cached reference is per response; set reference: live")
        return self


class RewardModel(ObjectiveSection):
    """The critique-based reward model: critique loss + score loss (paper).

    Options: centring (released code: .01), `tie_weight` on (r₁ − r₂)² of tied pairs, and what the score loss subtracts
    from r⁺ − r⁻ as `margins`: nothing, the difference of the mean human scores, or that of the stored rewards.
    """

    kind: Literal["reward_model"] = "reward_model"
    score_weight: NonNegative = 1.0
    critique_weight: NonNegative = 1.0
    critique_weighting: Literal["pair", "response"] = "pair"
    centring: NonNegative = 0.0
    tie_weight: NonNegative = 0.0
    margins: Literal["none", "human_scores", "rewards"] = "none"

    reference: ClassVar[None] = None
    needs_reward_head: ClassVar[bool] = True

    @property
    def scores(self) -> bool:
        return self.score_weight > 0 or self.centring > 0 or self.tie_weight > 0

    def writes(self, data: Data) -> bool:
        return self.critique_weight > 0 and data.critiques is not None

    def lacks_weights(self, data: Data) -> str | None:
        if self.scores or self.writes(data):
            return None
        return (
            "all weights are 0 (or there is only critique_weight, and data.critiques is null), so that nothing would"
            " be learnt; give one a weight"
        )


class Supervised(ObjectiveSection):
    """Token mean over the learnt responses (`data.learn`)."""

    kind: Literal["supervised"] = "supervised"

    reference: ClassVar[None] = None


Objective = Annotated[Preference | RewardModel | Supervised, Field(discriminator="kind")]


class Trains(Section):
    """Which parts learn."""

    vision_tower: Flag = False
    projector: Flag = True
    newline: Flag = True
    language_model: Flag = True
    reward_head: Flag = True


AdaptedPart = Literal["vision_tower", "projector", "language_model", "reward_head"]


class Lora(Section):
    """Parts that learn through adapters instead of as a whole; the values are the released code's.

    `layers` are the linear layers that get one, by name (q, k, v, o, gate, up, down, dense, out, ...); None: all of
    those parts but the vocabulary projection and the patch embedding.
    """

    parts: Annotated[tuple[AdaptedPart, ...], Field(min_length=1)] = ("language_model",)
    rank: Count = 64
    alpha: Positive = 16.0
    layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _older_key(cls, raw: Any) -> Any:
        """Runs before this said `dtype: float32`, which is what adapters are."""
        if not isinstance(raw, dict) or "dtype" not in raw:
            return raw
        if raw["dtype"] != "float32":
            raise ValueError("adapters learn in float32 and compute in model.dtype; leave dtype out")
        return {key: value for key, value in raw.items() if key != "dtype"}


class Optimizer(Section):
    """AdamW, linear warm-up, cosine decay to `final_fraction` of the peak; gradients clipped to `max_grad_norm`.

    `part_rates` are the peak learning rates of the parts that have their own. `algorithm: muon` gives the kernels of the
    stacked layers orthogonalised momentum, with the peak `matrix_learning_rate` (None: `learning_rate`), all else AdamW.

    `mu_dtype` stores the first moment; bfloat16 is for a `beta1` of at most 0.98, beyond which it could not decay. The
    second moment is always float32.
    """

    algorithm: Literal["adamw", "muon"] = "adamw"
    learning_rate: Positive = 1e-6
    matrix_learning_rate: Positive | None = None
    part_rates: dict[PartName, Positive] = Field(default_factory=dict)
    warmup_ratio: BelowOne = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    final_fraction: NonNegative = 0.0
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    mu_dtype: Dtype = "float32"

    @pydantic.model_validator(mode="after")
    def _matrices(self):
        if self.matrix_learning_rate is not None and self.algorithm != "muon":
            raise ValueError(f"matrix_learning_rate is of algorithm muon, this is {self.algorithm}; leave it out")
        return self

    @pydantic.model_validator(mode="after")
    def _decays(self):
        if self.mu_dtype == "bfloat16" and self.beta1 > SLOWEST_IN_BFLOAT16:
            raise ValueError(f"mu_dtype bfloat16 cannot hold a moment of beta1 {self.beta1:g}; set mu_dtype: float32")
        return self


class Batch(Section):
    """The global batch: `rows` rows of `slots` slots. What is None is derived from the data (`packing.auto_budget`).

    `accumulation`: in how many pieces a step takes the rows, whatever the launch file says. None is derived from the launch
    file's `rows_per_device` (`training.layout.with_accumulation`).
    """

    rows: Count = 8
    slots: Count = 8192
    tiles: Count | None = None
    visual: Count | None = None
    targets: Count | None = None
    responses: Count | None = None
    pairs: Count | None = None
    accumulation: Count | None = None
    logprob_chunk: Count = 256

    @pydantic.model_validator(mode="after")
    def _divides(self):
        if self.accumulation is not None and self.rows % self.accumulation:
            raise ValueError(f"batch.rows {self.rows} must be a multiple of batch.accumulation {self.accumulation}")
        return self


class Guard(Section):
    """What happens to a step whose gradient is not finite, or spikes: its norm is `spike_factor` times the running mean.

    Either way the step leaves the model as it is. `stop` then ends the run with the batch saved for replay, `skip` goes
    on and counts. The running mean is over about 1 / (1 - `decay`) steps, and no spike is called before so many.
    """

    not_finite: Literal["stop", "skip"] = "stop"
    spike: Literal["ignore", "stop", "skip"] = "ignore"
    spike_factor: AboveOne = 10.0
    decay: Annotated[BelowOne, Field(gt=0)] = 0.98


class Run(Section):
    """`epochs` passes over the data, or exactly `steps` steps where that is given.

    The newest `keep` checkpoints stay, and the best one by `best` (a held-out metric) where there is held-out data.
    `profile_at` is the step from which `profile_steps` steps are traced for TensorBoard's profiler. `wandb` names a
    project of Weights & Biases to log to as well.
    """

    directory: WrittenPath
    seed: Annotated[Integer, Field(ge=0)] = 42
    epochs: Count = 1
    steps: Count | None = None
    log_every: Count = 1
    checkpoint_every: Count = 500
    keep: Count = 2
    eval_every: Count | None = None
    best: str = "eval_loss"
    best_is: Literal["lowest", "highest"] = "lowest"
    profile_at: Annotated[Integer, Field(ge=0)] | None = None
    profile_steps: Count = 3
    wandb: str | None = None


def _check_something_learns(objective: Objective, data: Data, trains: Trains) -> None:
    """ValueError where no term has a weight, or no part that a term depends on learns: such a run would change nothing."""
    if (why := objective.lacks_weights(data)) is not None:
        raise ValueError(f"objective: {why}")
    parts = [part for part, learns in trains if learns and (part != "reward_head" or objective.scores)]
    if not parts:
        unused = " but reward_head, at which this objective does not look" if trains.reward_head else ""
        raise ValueError(f"trains: every part is false{unused}, so that nothing would be learnt; set one to true")


class Experiment(Section):
    model: Model
    data: Data
    objective: Objective
    trains: Trains = Trains()
    lora: Lora | None = None
    optimizer: Optimizer = Optimizer()
    guard: Guard = Guard()
    batch: Batch = Batch()
    run: Run

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if self.objective.needs_reward_head and self.model.reward_head is None:
            raise ValueError(f"objective {self.objective.kind} needs model.reward_head (tanh is the released one)")
        if self.batch.accumulation not in (None, 1) and self.objective.looks_at_batch:
            raise ValueError(
                f"{self.objective.looks_at_batch} looks at the whole batch, of which accumulation shows it a piece at a time;"
                " set batch.accumulation: 1"
            )
        _check_something_learns(self.objective, self.data, self.trains)
        for part in self.optimizer.part_rates:
            if not getattr(self.trains, part):
                raise ValueError(f"optimizer.part_rates names {part}, which does not learn; set trains.{part}: true")
        adapted = self.lora.parts if self.lora else ()
        for part in adapted:
            if not getattr(self.trains, part):
                raise ValueError(f"lora.parts names {part}, which does not learn; set trains.{part}: true")
        if "reward_head" in adapted and not self.objective.scores:
            raise ValueError("lora.parts names reward_head, but no term of this objective looks at scores; leave it out")
        if self.lora and "head" in (self.lora.layers or ()) and not self.objective.writes(self.data):
            raise ValueError("lora.layers names head, but no term of this objective looks at words; leave it out")
        if self.objective.reference == "adapter_base":
            whole = [part for part, learns in self.trains if learns and part not in adapted]
            # A part that the model does not have does not learn.
            whole = [part for part in whole if part != "reward_head" or self.model.reward_head is not None]
            if not adapted or whole:
                named = ", ".join(f"trains.{part}: false" for part in whole) or "lora"
                raise ValueError(f"reference adapter_base needs every part that learns to do so through lora; set {named}")
        return self


class Mesh(Section):
    """Sizes of the mesh axes; -1 takes the devices that are left.

    `slices` are the factors of the axes that run between slices (or GPU hosts), over the network.
    """

    data: Integer = 1
    fsdp: Integer = -1
    tensor: Integer = 1
    context: Integer = 1
    slices: dict[Literal["data", "fsdp", "tensor", "context"], Count] = Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _sizes(self):
        try:
            check_axes(self.axes, self.slices)
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def axes(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in MESH_AXES}


class Distributed(Section):
    """Several processes as one program. Seconds: for all to come, from a host's last sign of life to the others' end, and
    without any progress (compiling apart) until the run is said to hang and ended."""

    initialization_timeout: Count = 300
    heartbeat_timeout: Count = 40
    hang_timeout: Count = 1800


class Launch(Section):
    """On what an experiment runs. `accelerator` is one slice or GPU host (`accelerators`), of which the mesh has
    as many as `mesh.slices` say; None is whatever devices are here.

    `rows_per_device`: how many rows a batch shard takes at once, so that a step fits into memory; None is all that it gets. A
    batch shard is one device, or the `mesh.tensor` x `mesh.context` devices that share its rows. An experiment's
    `batch.accumulation` overrules it.

    `environment` is set before JAX starts, where it is not set already; `clear` names variables of earlier jobs to remove.
    """

    accelerator: str | None = None
    mesh: Mesh = Mesh()
    rows_per_device: Count | None = None
    distributed: Distributed | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    clear: tuple[str, ...] = ()

    @pydantic.field_validator("accelerator")
    @classmethod
    def _exists(cls, name: str | None) -> str | None:
        from mmrlhf_jax.accelerators import accelerator

        try:
            return name if name is None else accelerator(name).name
        except UserError as error:
            raise ValueError(str(error)) from None

    @pydantic.field_validator("environment")
    @classmethod
    def _variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(
                    f"{shown(name)} = {shown(value)} is no variable: no name is empty or has =, and nothing has NUL"
                )
        return environment

    @pydantic.model_validator(mode="after")
    def _covers(self):
        try:
            self.axes()
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def slices(self) -> int:
        return math.prod(self.mesh.slices.values())

    def axes(self) -> dict[str, int] | None:
        """The size of every axis over the accelerator's devices, None where it names none. UserError where they differ."""
        from mmrlhf_jax.accelerators import accelerator

        if self.accelerator is None:
            return None
        chips = accelerator(self.accelerator).chips
        where = f"in {self.slices} x {self.accelerator}" if self.slices > 1 else f"in {self.accelerator}"
        return sizes_over(self.mesh.axes, self.mesh.slices, chips * self.slices, where)


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """The same experiment, as it is read from any other directory: for what a run keeps. Hub ids and gs:// stay as they are."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or is_remote(path) else os.path.abspath(path)

    data, model = experiment.data, experiment.model.path
    parts = [
        part.model_copy(update={"path": absolute(part.path), "media_root": absolute(part.media_root)})
        if isinstance(part, DataSet)
        else absolute(part)
        for part in ([data.path] if isinstance(data.path, str) else data.path)
    ]
    places = {name: absolute(getattr(data, name)) for name in DATA_PLACES}
    places["path"] = parts[0] if isinstance(data.path, str) else tuple(parts)
    return experiment.model_copy(
        update={
            "model": experiment.model.model_copy(update={"path": model if is_hub_id(model) else absolute(model)}),
            "data": data.model_copy(update=places),
            "run": experiment.run.model_copy(update={"directory": absolute(experiment.run.directory)}),
        }
    )


def load_experiment(path: epath.PathLike, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment, its base, and `a.b=c` overrides. Raises UserError that names the file and key."""
    return sections.validate(Experiment, read_experiment(path, overrides), str(path))


def read_experiment(path: epath.PathLike, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys and values of an experiment as they are written, before they are checked."""
    return sections.override(Experiment, sections.read_with_base(Experiment, epath.Path(path)), overrides)


def load_launch(path: epath.PathLike | None, overrides: Sequence[str] = ()) -> Launch:
    raw = {} if path is None else sections.read(epath.Path(path))
    return sections.validate(Launch, sections.override(Launch, raw, overrides), "the launch" if path is None else str(path))
