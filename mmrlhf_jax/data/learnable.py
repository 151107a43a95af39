"""What of a data set an objective learns from, or is judged by. There must be something, and what is left aside is counted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.index import GroupIndex, keep_groups
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord


def check_pairs(examples, objective: config.Objective, named: str) -> None:
    """UserError where the objective learns from pairs and no record has one."""
    if isinstance(objective, config.Supervised) or any(record.pairs() for record in examples.records):
        return
    raise UserError(f"{named}: no group has a strictly ordered pair (of different ranks); there is nothing to prefer")


def with_best(index: GroupIndex, examples, objective: config.Objective, data: config.Data, named: str) -> GroupIndex:
    """Without the groups that have no best response, where that is what is learnt. UserError where none has one."""
    if not isinstance(objective, config.Supervised) or data.learn != "best":
        return index
    ranked = [any(response.rank is not None for response in examples.records[g].responses) for g in index.groups]
    if not any(ranked):
        raise UserError(f"{named}: no response has a rank, so that none is the best; rank them, or set data.learn: all")
    return keep_groups(index, np.asarray(ranked), "no response has a rank, so that none is the best", examples)


def check_learnable(
    index: GroupIndex, examples, encoder: GroupEncoder, data: config.Data, objective: config.Objective, named: str
) -> None:
    """UserError where nothing in the groups that are kept has a weight in the loss; what lacks one is counted and said."""
    records = [examples.records[g] for g in index.groups]
    if not isinstance(objective, config.Supervised) and not any(record.pairs() for record in records):
        raise UserError(
            f"{named}: none of the {len(records)} groups that are left ({len(index.dropped)} are left out) has a strictly"
            " ordered pair; there is nothing to prefer. Raise batch.slots, or set another data.over_budget"
        )
    match objective:
        case config.RewardModel():
            _check_terms(records, encoder, data, objective, named)
        case config.Preference(scaling=config.Scaling(mode="margin", negative_margins="drop")):
            _check_margins(records, encoder, objective.scaling, named)


def _check_terms(
    records: list[RankedRecord], encoder: GroupEncoder, data: config.Data, objective: config.RewardModel, named: str
) -> None:
    """Scores and centring need a strictly ordered pair, which there is; critiques and ties need what only some data has."""
    lacking, learnt = [], [name for name in ("score_weight", "centring") if getattr(objective, name) > 0]
    if objective.critique_weight > 0 and data.critiques is not None:
        found = [critique for record in records for critique in _critiques(record, encoder, objective)]
        count = sum(critique is not None for critique in found)
        have = f"{count} of {len(found)} responses have critiques"
        (learnt if count else lacking).append(f"objective.critique_weight ({have})")
        if 0 < count < len(found):
            say(f"{named}: {have}; the others are only scored")
    if objective.tie_weight > 0:
        tied = any(encoder.chosen_pairs(record)[2].any() for record in records)
        (learnt if tied else lacking).append("objective.tie_weight (no two responses of a group are tied)")
    if lacking and not learnt:
        raise UserError(
            f"{named}: {' and '.join(lacking)} would act on nothing, and no other term has a weight, so that nothing would be"
            " learnt; complete the data (data.critiques names the field of critiques), or set objective.score_weight"
        )
    if lacking:
        say(f"{named}: {' and '.join(lacking)} will act on nothing")


def _critiques(record: RankedRecord, encoder: GroupEncoder, objective: config.RewardModel) -> Iterator[str | None]:
    """Of the responses that the critique loss looks at: all, or those in pairs."""
    numbers = range(len(record.responses))
    if objective.critique_weighting == "pair":
        numbers = np.unique(encoder.chosen_pairs(record)[0]).tolist()
    yield from (record.responses[i].critique for i in numbers)


def _check_margins(records: list[RankedRecord], encoder: GroupEncoder, scaling: config.Scaling, named: str) -> None:
    margins = np.concatenate([encoder.margins(record, scaling.margins) for record in records])
    count = int((margins < 0).sum())
    against = f"{named}: {count} of {len(margins)} pairs have a negative margin, and negative_margins: drop leaves them out"
    if count == len(margins):
        raise UserError(
            f"{against}, so that nothing would be learnt; set objective.scaling.negative_margins: clamp, or look whether"
            " ranks or rewards are the wrong way round"
        )
    if count:
        say(f"{against} of the loss")
