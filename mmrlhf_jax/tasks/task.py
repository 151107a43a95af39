"""What a kind of objective has to say of itself, so that everything else serves all kinds without asking which one it is."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.index import GroupIndex
from mmrlhf_jax.data.pipeline import make_encoder
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.objectives import Metric, Outputs, WeightedSum

# Where a step has the reference model's log-probs from: the batch, which was scored before training ("cached"); a forward pass
# with the parameters of step 0 ("live"), or one without the adapters ("adapter_base"). None: the loss needs no reference.
Reference = Literal["cached", "live", "adapter_base"] | None
Margins = Literal["rewards", "human_scores", "stored"] | None
# Of a loss: sums by name, each with the weight that it is divided by; and figures to log, which the loss does not depend on.
Terms = tuple[dict[str, WeightedSum], dict[str, Metric]]

PAPER = "Method: MM-RLHF (arXiv 2502.10391)."


class Task(abc.ABC):
    """A kind of objective, with the settings of one experiment.

    Members are in the order in which a run needs them. A subclass overrides what is not the default here.
    """

    learns_pairs: ClassVar[bool] = False  # whether the loss compares the two responses of a pair

    # --- Data: which numbers and texts of a record are needed, and how they become conversations with targets --------------
    conversation: ClassVar[Literal["answer", "critique"]] = "answer"  # what is the target, see `GroupEncoder`
    # For errors about margins that are not there: the setting that says where they are from, and one that does without them.
    margins_key: ClassVar[str] = ""
    no_margins: ClassVar[str] = ""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def margins(self) -> Margins:
        """Which numbers a pair's margin δ is made of: the responses' rewards or human scores, or what is stored with the pair.
        None where the loss needs no margins."""
        return None

    @property
    def ties(self) -> bool:
        """Whether pairs of equal rank are learnt from."""
        return False

    def with_critiques(self, examples, data: config.Data, source: str):
        """The examples of `source` with critiques from where the experiment takes them, if critiques are learnt."""
        return examples

    def encoder(self, data: config.Data, tokenizer, model) -> GroupEncoder:
        """Makes conversations and targets of records; `model` are the sizes of the model that they are for."""
        return make_encoder(data, tokenizer, model, task=self.conversation, ties=self.ties)

    # --- Checks: what of the data can be learnt, and judged -----------------------------------------------------------------
    @abc.abstractmethod
    def check_examples(self, examples, named: str) -> None:
        """UserError where the records, as they are read, have nothing that could be learnt. `named` is the data, for errors."""

    def judged_groups(self, index: GroupIndex, examples, data: config.Data, named: str) -> GroupIndex:
        """Without the groups on which a model cannot be judged, which are listed. UserError where none is left."""
        return index

    def learnt_groups(self, index: GroupIndex, examples, data: config.Data, named: str) -> GroupIndex:
        """Without the groups that nothing can be learnt from, which are listed. UserError where none is left."""
        return self.judged_groups(index, examples, data, named)

    @abc.abstractmethod
    def check_learnable(self, index: GroupIndex, examples, encoder: GroupEncoder, data: config.Data, named: str) -> None:
        """UserError where nothing in the groups that are kept has a weight in the loss; what lacks one is counted and said."""

    # --- Loss: Σ coefficients[k] · mean of the k-th sum ---------------------------------------------------------------------
    @property
    @abc.abstractmethod
    def coefficients(self) -> Mapping[str, float]:
        """By the name of the sum."""

    @abc.abstractmethod
    def terms(self, outputs: Outputs, batch: RowBatch, key: jax.Array, reference: Outputs | None = None) -> Terms:
        """Sums and metrics of a batch, from log-probs and rewards per response; the model itself is not seen.

        `reference` are the reference model's outputs; with None the batch brings its log-probs. The weights of the sums depend
        on the batch alone, so that accumulation can divide by the weights of the whole batch.
        """

    # --- Reference model and plan -------------------------------------------------------------------------------------------
    @property
    def reference(self) -> Reference:
        return self.settings.reference

    @property
    def reference_passes(self) -> int:
        """Forward passes of the reference model in every step."""
        return int(self.reference in ("live", "adapter_base"))

    def assumed_targets(self, data: config.Data) -> Literal["answers", "critiques", "none"]:
        """What a plan without data takes as the targets of a group."""
        return "answers"

    def shape_settings(self) -> dict[str, Any]:
        """The settings that the shapes of a step's program depend on, and perhaps others; as JSON."""
        return self.settings.model_dump(mode="json")

    # --- Model card ---------------------------------------------------------------------------------------------------------
    @property
    def kind(self) -> str:
        """The kind's name in experiments."""
        return self.settings.kind

    @abc.abstractmethod
    def describe(self) -> tuple[str, str]:
        """What the model is, by what it learnt with; and the method's source, where that is the MM-RLHF paper's."""
