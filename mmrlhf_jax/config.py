"""Experiments and launch files: YAML to frozen, validated models. The one place where a default is written.

An experiment (`configs/*.yaml`) says what is learnt from what; a launch file (`launch/*.yaml`) says on which mesh. An
experiment may name one `base:` file whose keys it overrides; `--set a.b=c` overrides both.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import pydantic
import yaml
from etils import epath
from pydantic import Field

from mmrlhf_jax.errors import UserError

Dtype = Literal["float32", "bfloat16"]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Model(Section):
    """`path`: a Hugging Face directory or hub id, in either naming."""

    path: str
    dtype: Dtype = "bfloat16"
    param_dtype: Dtype = "float32"
    remat: Literal["none", "full", "dots"] = "full"
    reward_head: Literal["tanh", "silu", "linear"] | None = None


class Data(Section):
    """`path`: a ranked source file or a directory that `mmrlhf data build` wrote."""

    path: str
    media_root: str | None = None
    template: Literal["qwen_1_5", "upstream_train"] = "qwen_1_5"
    pairs: Literal["all", "extreme"] | Count = "all"
    weighting: Literal["pair", "group"] = "pair"
    learn: Literal["all", "best"] = "all"
    rewards: str | None = None
    held_out: str | None = None
    over_budget: Literal["error", "drop"] = "error"
    video_frames: Count = 32
    workers: Annotated[int, Field(ge=0)] = 0


class Scaling(Section):
    """β(δ). `margin` is the paper's Dynamic Reward Scaling; what δ is made of is `margins`."""

    mode: Literal["margin", "fixed", "ls_factor", "batch_implicit"] = "margin"
    w: NonNegative = 0.5
    k: NonNegative = 0.5
    margins: Literal["rewards", "human_scores"] = "rewards"
    clamp_negative: bool = True


class Preference(Section):
    """MM-DPO. `sft_weight` is γ, on chosen responses."""

    kind: Literal["preference"] = "preference"
    losses: dict[str, float] = Field(default_factory=lambda: {"sigmoid": 1.0})
    beta: Positive = 0.1
    scaling: Scaling = Scaling()
    sft_weight: NonNegative = 0.25
    label_smoothing: NonNegative = 0.0
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    f_alpha: float = 0.5
    discopop_tau: Positive = 0.05

    @pydantic.field_validator("losses")
    @classmethod
    def _known(cls, losses: dict[str, float]) -> dict[str, float]:
        from mmrlhf_jax.objectives.preference import LOSSES  # here: reading a config should not import jax unless it is used

        unknown = [name for name in losses if name not in LOSSES]
        if unknown or not losses:
            raise ValueError(f"unknown loss {unknown}; choose from {', '.join(LOSSES)}")
        return losses


class RewardModel(Section):
    """The critique-based reward model: critique loss + score loss (paper), centring as an option (released code: .01)."""

    kind: Literal["reward_model"] = "reward_model"
    score_weight: NonNegative = 1.0
    critique_weight: NonNegative = 1.0
    critique_weighting: Literal["pair", "response"] = "pair"
    centring: NonNegative = 0.0


class Supervised(Section):
    """Token mean over the learnt responses (`data.learn`)."""

    kind: Literal["supervised"] = "supervised"


Objective = Annotated[Preference | RewardModel | Supervised, Field(discriminator="kind")]


class Trains(Section):
    """Which parts get gradients."""

    vision_tower: bool = False
    projector: bool = True
    newline: bool = True
    language_model: bool = True
    reward_head: bool = True


class Optimizer(Section):
    """AdamW, linear warm-up, cosine decay to `final_fraction` of the peak; gradients clipped to `max_grad_norm`."""

    learning_rate: Positive = 1e-6
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    final_fraction: NonNegative = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    mu_dtype: Dtype = "float32"


class Batch(Section):
    """The global batch: `rows` rows of `slots` slots. What is None is derived from the data (`packing.auto_budget`)."""

    rows: Count = 8
    slots: Count = 8192
    tiles: Count | None = None
    visual: Count | None = None
    targets: Count | None = None
    responses: Count | None = None
    pairs: Count | None = None
    accumulation: Count = 1
    logprob_chunk: Count = 256

    @pydantic.model_validator(mode="after")
    def _divides(self):
        if self.rows % self.accumulation:
            raise ValueError(f"batch.rows {self.rows} must be a multiple of batch.accumulation {self.accumulation}")
        return self


class Run(Section):
    """`epochs` passes over the data, or exactly `steps` steps where that is given."""

    directory: str
    seed: int = 42
    epochs: Count = 1
    steps: Count | None = None
    log_every: Count = 1
    checkpoint_every: Count = 500
    keep: Count = 2
    eval_every: Count | None = None


class Experiment(Section):
    model: Model
    data: Data
    objective: Objective
    trains: Trains = Trains()
    optimizer: Optimizer = Optimizer()
    batch: Batch = Batch()
    run: Run

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if isinstance(self.objective, RewardModel) and self.model.reward_head is None:
            raise ValueError("objective reward_model needs model.reward_head (tanh is the released one)")
        return self


class Mesh(Section):
    """Sizes of the mesh axes; -1 takes the devices that are left."""

    data: int = 1
    fsdp: int = -1
    tensor: Count = 1
    context: Count = 1


class Launch(Section):
    mesh: Mesh = Mesh()


def load_experiment(path: epath.PathLike, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment, its base, and `a.b=c` overrides. Raises UserError that names the file and key."""
    return _validate(Experiment, _apply(_read_with_base(epath.Path(path)), overrides), str(path))


def load_launch(path: epath.PathLike | None, overrides: Sequence[str] = ()) -> Launch:
    raw = {} if path is None else _read(epath.Path(path))
    return _validate(Launch, _apply(raw, overrides), str(path))


def resolved(config: Section) -> str:
    """The complete configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_with_base(path: epath.Path) -> dict[str, Any]:
    raw = _read(path)
    base = raw.pop("base", None)
    if base is None:
        return raw
    parent = _read(path.parent / base)
    if "base" in parent:
        raise UserError(f"{path.parent / base}: a base may not have a base itself; name the first file in {path}")
    return _merge(parent, raw)


def _read(path: epath.Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file")
    try:
        raw = yaml.load(path.read_text(), Loader=_Loader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys and values, found {type(raw).__name__}")
    return raw


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-6 as a string; here it is a number. A key given twice is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; sections merge key by key. A different `kind` replaces a section whole: its keys mean something else."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        sections = isinstance(value, dict) and isinstance(old, dict) and key != "losses"
        same_kind = sections and value.get("kind", old.get("kind")) == old.get("kind")
        merged[key] = _merge(old, value) if same_kind else value
    return merged


def _apply(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override!r}: expected key=value, such as optimizer.learning_rate=1e-6")
        parsed: Any = yaml.load(value, Loader=_Loader)
        for part in reversed(key.split(".")):
            parsed = {part: parsed}
        raw = _merge(raw, parsed)
    return raw


def _validate(kind: type[Section], raw: dict[str, Any], where: str):
    try:
        return kind.model_validate(raw)
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: {_first_error(kind, error)}") from None


def _first_error(kind: type[Section], error: pydantic.ValidationError) -> str:
    """One line for the first problem; for an unknown key, with the nearest known one."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    if first["type"] != "extra_forbidden":
        key = ".".join(path)
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}{more}" if key else message + more
    known = _keys_at(kind, path[:-1])
    near = difflib.get_close_matches(path[-1], known, 1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    shown = ".".join(part for part in path if part not in _KINDS)
    return f"unknown key {shown!r}{hint}{more}"


_KINDS = ("preference", "reward_model", "supervised")


def _keys_at(kind: type[Section], path: list[str]) -> list[str]:
    for part in path:
        if part in _KINDS:
            kind = {"preference": Preference, "reward_model": RewardModel, "supervised": Supervised}[part]
            continue
        annotation = kind.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        kind = next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), kind)
    return list(kind.model_fields)
