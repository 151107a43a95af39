"""The critique-based reward model: it writes a critique of a response, then scores it (arXiv 2502.10391, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import jax
import numpy as np

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.overlay import with_critiques
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.objectives import Outputs, reward_model, target_counts
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.tasks.pairs import PairTask, reward_margins, side_mean
from mmrlhf_jax.tasks.task import PAPER, Margins, Statistics, Terms


class RewardModelTask(PairTask):
    """Critique loss and score loss, with teacher-forced critiques. A response without a critique has only a score loss."""

    settings: config.RewardModel
    conversation = "critique"
    margins_key, no_margins = "margins", "margins: none"

    @property
    def margins(self) -> Margins:
        return None if self.settings.margins == "none" else self.settings.margins

    @property
    def ties(self) -> bool:
        return self.settings.tie_weight > 0

    def with_critiques(self, examples, data: config.Data, source: str):
        return examples if data.critiques == "critique" else with_critiques(examples, data.critiques, source)

    def check_weights(self, records: list[RankedRecord], encoder: GroupEncoder, data: config.Data, named: str) -> None:
        """Critique loss and tie loss need critiques and ties, which not all data has. (Score and centring need only a strictly
        ordered pair, which `check_learnable` has found.)"""
        settings = self.settings
        lacking, learnt = [], [name for name in ("score_weight", "centring") if getattr(settings, name) > 0]
        if settings.critique_weight > 0 and data.critiques is not None:
            found = [critique for record in records for critique in self._critiques(record, encoder)]
            count = sum(critique is not None for critique in found)
            have = f"{count} of {len(found)} responses have critiques"
            (learnt if count else lacking).append(f"objective.critique_weight ({have})")
            if 0 < count < len(found):
                say(f"{named}: {have}; the others are only scored")
        if settings.tie_weight > 0:
            tied = any(encoder.chosen_pairs(record)[2].any() for record in records)
            (learnt if tied else lacking).append("objective.tie_weight (no two responses of a group are tied)")
        if lacking and not learnt:
            raise UserError(
                f"{named}: {' and '.join(lacking)} would act on nothing, and no other term has a weight, so that nothing would"
                " be learnt; complete the data (data.critiques names the field of critiques), or set objective.score_weight"
            )
        if lacking:
            say(f"{named}: {' and '.join(lacking)} will act on nothing")

    def _critiques(self, record: RankedRecord, encoder: GroupEncoder) -> Iterator[str | None]:
        """Yield the critiques of the responses that the critique loss uses: all of them, or those in pairs."""
        numbers = range(len(record.responses))
        if self.settings.critique_weighting == "pair":
            numbers = np.unique(encoder.chosen_pairs(record)[0]).tolist()
        yield from (record.responses[i].critique for i in numbers)

    @property
    def coefficients(self) -> Mapping[str, float]:
        settings = self.settings
        found = {"score": settings.score_weight, "critique": settings.critique_weight, "centring": settings.centring}
        return found | {"ties": settings.tie_weight} if self.ties else found

    def terms(
        self,
        outputs: Outputs,
        batch: RowBatch,
        key: jax.Array,
        reference: Outputs | None = None,
        statistics: Statistics | None = None,
    ) -> Terms:
        lengths = target_counts(batch.responses, batch.ends.shape[1])
        options = {} if self.margins is None else {"margins": reward_margins(batch)}
        if self.ties:
            options |= {"tie_pairs": batch.pairs, "tie_weights": batch.tie_weights}
        sums = reward_model.reward_losses(
            outputs.rewards,
            batch.pairs,
            batch.pair_weights,
            outputs.logps,
            lengths,
            self.settings.critique_weighting,
            **options,
        )
        metrics = reward_model.reward_metrics(outputs.rewards, batch.pairs, batch.pair_weights, sums)
        return sums, metrics | {"critique/token_accuracy": side_mean(outputs.correct, lengths, batch)}

    def assumed_targets(self, data: config.Data) -> Literal["answers", "critiques", "none"]:
        return "none" if data.critiques is None else "critiques"

    def describe(self) -> tuple[str, str]:
        critiques = self.settings.critique_weight
        return ("a critique-based reward model" if critiques else "a reward model without critiques"), PAPER
