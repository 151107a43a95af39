"""The interface of a task, through which all other code serves every kind of objective without knowing which one it is."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder, make_encoder
from mmrlhf_jax.data.index import GroupIndex
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.objectives import Metric, Outputs, WeightedSum
from mmrlhf_jax.records import RankedRecord

# The source of the reference model's log-probs in a step: the batch, scored before training ("cached"); a forward pass with the
# parameters of step 0 ("live"), or one without the adapters ("adapter_base"). None: the loss needs no reference.
Reference = Literal["cached", "live", "adapter_base"] | None
Margins = Literal["rewards", "human_scores", "stored"] | None
Statistics = Mapping[str, jax.Array]  # running statistics by name, each float32[]
# (sums of the loss by name, metrics to log by name); the loss does not depend on the metrics.
Terms = tuple[dict[str, WeightedSum], dict[str, Metric]]

PAPER = "Method: MM-RLHF (arXiv 2502.10391)."


class Task(abc.ABC):
    """A kind of objective, with the settings of one experiment.

    Members are in the order in which a run uses them. A subclass overrides those whose default does not apply.
    """

    learns_pairs: ClassVar[bool] = False  # whether the loss compares the two responses of a pair

    # --- Data: which numbers and texts of a record are needed, and how they become conversations with targets --------------
    conversation: ClassVar[Literal["answer", "critique"]] = "answer"  # the text to learn, see `GroupEncoder`
    # Named in errors about missing margins: the setting of their source, and a setting that needs no margins.
    margins_key: ClassVar[str] = ""
    no_margins: ClassVar[str] = ""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def margins(self) -> Margins:
        """The source of a pair's margin δ: the responses' rewards or human scores, or a number stored with the pair. None if
        the loss needs no margins."""
        return None

    @property
    def ties(self) -> bool:
        """Whether pairs of equal rank have a loss."""
        return False

    def with_critiques(self, examples, data: config.Data, source: str):
        """The examples of `source` with the experiment's critiques added, if the task learns critiques."""
        return examples

    def encoder(self, data: config.Data, tokenizer, model) -> GroupEncoder:
        """The encoder from records to conversations and targets; `model` is the model's config."""
        if data.max_pixels is not None:
            model = dataclasses.replace(model, geometry=model.geometry.within_pixels(data.max_pixels))
        settings = dict(pairs=data.pairs, weighting=data.weighting, learn=data.learn)
        return make_encoder(tokenizer, model, data.template, task=self.conversation, ties=self.ties, **settings)

    # --- Checks: which data can be learnt from, and judged on ---------------------------------------------------------------
    @abc.abstractmethod
    def check_examples(self, examples, named: str) -> None:
        """UserError if no record, as read, can be learnt from. `named` is the data's name for messages."""

    def judged_groups(self, index: GroupIndex, examples, data: config.Data, named: str) -> GroupIndex:
        """The index without groups that a model cannot be judged on; these are listed. UserError if none is left."""
        return index

    def learnt_groups(self, index: GroupIndex, examples, data: config.Data, named: str) -> GroupIndex:
        """The index without groups that cannot be learnt from; these are listed. UserError if none is left."""
        return self.judged_groups(index, examples, data, named)

    @abc.abstractmethod
    def check_learnable(self, index: GroupIndex, examples, encoder: GroupEncoder, data: config.Data, named: str) -> None:
        """UserError if nothing in the kept groups has a weight in the loss; what has no weight is counted and reported."""

    # --- Settings that only the training data determine (`ObjectiveSection.from_data`) --------------------------------------
    def settled(self, records: Sequence[RankedRecord], encoder: GroupEncoder, named: str) -> Any:
        """The settings as the run uses them, with numbers in place of those that the `records` learnt from determine. These are
        reported. UserError, which begins with `named`, if the records determine none."""
        return self.settings

    def margin_summary(self, records: Sequence[RankedRecord], encoder: GroupEncoder) -> dict[str, Any] | None:
        """What the margins of the `records` learnt from do to the loss (`data.margin_summary`); None if they scale nothing."""
        return None

    @property
    def judging(self) -> Task:
        """The task as it judges held-out data: the same terms, of all pairs."""
        return self

    @property
    def without_data(self) -> Task:
        """The task for programs that are compiled without data. Where its settings have no number yet it takes any other one,
        which changes no shape and no cost; it never computes a result of a run."""
        return self

    # --- Loss: Σ coefficients[k] · mean of the k-th sum ---------------------------------------------------------------------
    @property
    @abc.abstractmethod
    def coefficients(self) -> Mapping[str, float]:
        """The coefficient of each sum of `terms` in the loss, by name."""

    @property
    def statistics(self) -> Mapping[str, float]:
        """The initial values of the loss's running statistics, by the names under which training logs them; {} if it has none.

        They are of whole batches, so the settings of a task that has some must name a `looks_at_batch`. They are part of the
        train state and of its checkpoints.
        """
        return {}

    def updated_statistics(
        self, statistics: Statistics, outputs: Outputs, batch: RowBatch, reference: Outputs | None = None
    ) -> Statistics:
        """The running statistics after a training batch, from those before it. `reference` as in `terms`."""
        return statistics

    @abc.abstractmethod
    def terms(
        self,
        outputs: Outputs,
        batch: RowBatch,
        key: jax.Array,
        reference: Outputs | None = None,
        statistics: Statistics | None = None,
    ) -> Terms:
        """Sums and metrics of a batch, computed from log-probs and rewards per response, without the model.

        `reference` are the reference model's outputs; if None, the batch has the reference log-probs. `statistics` are the
        running statistics, in training updated with this batch, else as they stand; only a task without any can do without
        them. The weights of the sums must depend only on the batch, so that gradient accumulation can divide by the weights of
        the whole batch.
        """

    # --- Reference model and plan -------------------------------------------------------------------------------------------
    @property
    def reference(self) -> Reference:
        return self.settings.reference

    @property
    def reference_passes(self) -> int:
        """The number of forward passes of the reference model in every step."""
        return int(self.reference in ("live", "adapter_base"))

    def assumed_targets(self, data: config.Data) -> Literal["answers", "critiques", "none"]:
        """What a plan without data assumes to be the targets of a group."""
        return "answers"

    def shape_settings(self) -> dict[str, Any]:
        """The settings, as JSON, that can change the shapes in a step's program; experiments with equal ones share a plan."""
        return self.settings.model_dump(mode="json")

    # --- Model card ---------------------------------------------------------------------------------------------------------
    @property
    def kind(self) -> str:
        """The value of `objective.kind` in experiments."""
        return self.settings.kind

    @abc.abstractmethod
    def describe(self) -> tuple[str, str]:
        """(what the model is, named after its objective; the source of the method, or "" if it has no paper)."""
