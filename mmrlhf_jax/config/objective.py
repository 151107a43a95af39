"""The section `objective`: the kinds of objectives and their settings. Their use of data, their losses etc. are in `tasks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field, PlainSerializer, WrapValidator

from mmrlhf_jax.config.data import Data
from mmrlhf_jax.config.values import NonNegative, Positive
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.loss_names import LOSSES, check_options
from mmrlhf_jax.sections import Section
from mmrlhf_jax.setting_types import BelowOne, Number


def _number_or_median(value: Any, number: Callable[[Any], float]) -> Any:
    if value == "median":
        return value
    if isinstance(value, str):
        raise ValueError(f"expected a number or median, found {shown(value)}")
    return number(value)


NumberOrMedian = Annotated[NonNegative, WrapValidator(_number_or_median), PlainSerializer(lambda value: value)]


class Scaling(Section):
    """The scaling β(δ). Mode `margin` is the paper's Dynamic Reward Scaling. `margins` is the source of δ: the responses'
    rewards, their human scores, or the number stored with each pair in the released pair files (`ls_factor`, which the released
    code uses as in mode `ls_factor`).

    Mode `beta_dpo` is β-DPO (arXiv 2407.08639): one β for a batch, from its implicit margins against their running mean and
    standard deviation, which move by 1 - `momentum` in every step. Its α is `w` (0.6 in the paper), and `filtered` is the share
    of a training batch's pairs that has no loss (0.2 in the paper): a draw that rarely keeps pairs far from the running mean.

    `negative_margins` applies to pairs that the reward model orders against the human ranking: `clamp` gives them the β of δ =
    0 (the paper's stated range), `unclamped` a smaller one, and `drop` leaves them out of the loss.

    `k: median` becomes a number when the training data have been read: ln 2 / (the median of the positive margins of the learnt
    pairs), so that the median margin gives half of the rise of β. Only mode `margin` uses k; in another one
    `median`, which a base may have, becomes the default number.

    `negative_margins` of mode `margin`, and `momentum` and `filtered` of `beta_dpo`, must have their defaults in other modes.
    """

    mode: Literal["margin", "fixed", "ls_factor", "batch_implicit", "beta_dpo"] = "margin"
    w: NonNegative = 0.5
    k: NumberOrMedian = 0.5
    margins: Literal["rewards", "human_scores", "stored"] = "rewards"
    negative_margins: Literal["clamp", "unclamped", "drop"] = "clamp"
    momentum: BelowOne = 0.9
    filtered: BelowOne = 0.0

    @pydantic.model_validator(mode="before")
    @classmethod
    def _number_without_use(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("k") == "median" and raw.get("mode", "margin") != "margin":
            return {name: value for name, value in raw.items() if name != "k"}
        return raw

    @pydantic.model_validator(mode="after")
    def _used(self):
        for name, mode in (("negative_margins", "margin"), ("momentum", "beta_dpo"), ("filtered", "beta_dpo")):
            value, default = getattr(self, name), type(self).model_fields[name].default
            if self.mode != mode and value != default:
                raise ValueError(
                    f"{name} {value} has an effect only in mode {mode}, and the mode is {self.mode}; leave it out, or set it to"
                    f" {default}"
                )
        return self


class ObjectiveSection(Section):
    """The properties that the settings of every kind of objective have. The rest of a kind is its task (`tasks`).

    Each kind also has a `reference`, which is None if it needs no reference model.
    """

    needs_reward_head: ClassVar[bool] = False

    @property
    def looks_at_batch(self) -> str | None:
        """The name of the setting that needs all pairs of a batch at once and so excludes gradient accumulation; None if there
        is none."""
        return None

    @property
    def from_data(self) -> tuple[str, ...]:
        """The names of the settings whose values only the training data determine, as in "scaling.k". A run settles them when
        it has read its data (`Task.settled`)."""
        return ()

    @property
    def draws(self) -> bool:
        """Whether the loss draws some of a batch's pairs by chance."""
        return False

    @property
    def scores(self) -> bool:
        """Whether the loss depends on the reward head."""
        return False

    def writes(self, data: Data) -> bool:
        """Whether the loss depends on token probabilities."""
        return True

    def lacks_weights(self, data: Data) -> str | None:
        """A message that explains that no term of the loss has a weight; None if one has."""
        return None


class Preference(ObjectiveSection):
    """MM-DPO. `sft_weight` is γ, the weight of the SFT term on chosen responses.

    `reference` is how log-probs of the starting model are computed: `cached` (one pass before training), `live` (a forward pass
    in every step, with a copy of the initial values of the trained parameters) or `adapter_base` (a forward pass in every step
    with the adapters switched off, without a copy).
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
        """The setting that sorts or normalises over the whole batch, if there is one."""
        if self.scaling.mode in ("batch_implicit", "beta_dpo"):
            return f"scaling.mode {self.scaling.mode}"
        return next((f"loss {name}" for name in ("aot", "aot_unpaired") if name in self.losses), None)

    @property
    def draws(self) -> bool:
        return self.scaling.mode == "batch_implicit" or (self.scaling.mode == "beta_dpo" and self.scaling.filtered > 0)

    @property
    def from_data(self) -> tuple[str, ...]:
        return ("scaling.k",) if self.scaling.mode == "margin" and self.scaling.k == "median" else ()

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

    Further terms: `centring` (released code: .01), and `tie_weight` on (r₁ − r₂)² of tied pairs. `margins` is subtracted from
    r⁺ − r⁻ in the score loss: nothing, the difference of the mean human scores, or that of the stored rewards.
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
    """Supervised fine-tuning: the mean token loss over the learnt responses (`data.learn`)."""

    kind: Literal["supervised"] = "supervised"

    reference: ClassVar[None] = None


Objective = Annotated[Preference | RewardModel | Supervised, Field(discriminator="kind")]
