"""Samples and scores to ranked records, with where everything in them comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mmrlhf_jax.growing.answers import distinct, flags_of, same_words
from mmrlhf_jax.growing.ranking import never_first, ranks, standard_error
from mmrlhf_jax.records import RankedRecord, Response

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as records name it: `name` is the user's, `fingerprint` identifies its content (None: it is an endpoint's).
    `served` is the server that writes a critic's critiques: its address and its name of the model."""

    name: str
    fingerprint: str | None
    served: Mapping[str, str] | None = None


def answered(
    record: RankedRecord, line: Line, policy: Model, sampling: Mapping[str, Any], keep_responses: bool
) -> RankedRecord:
    """The prompt with the different answers among its samples, none of them judged; with `keep_responses` behind its own.

    `sampling` are the parameters that all prompts have in common. An own response keeps its rank as `human_rank` and its
    critique as `human_critique`, unless they are a critic's, of an earlier round; samples that equal it are counted as its
    copies.
    """
    reviewed = bool(record.extra.get("review"))
    own = [_own(response, reviewed) for response in record.responses] if keep_responses else []
    places = {same_words(response.text): place for place, response in enumerate(own)}
    new = []
    for answer in distinct([each["text"] for each in line["samples"]], [each["finish_reason"] for each in line["samples"]]):
        place = places.get(same_words(answer.text))
        if place is not None:
            own[place] = dataclasses.replace(own[place], extra=dict(own[place].extra) | {"copies": answer.copies})
            continue
        sample = line["samples"][answer.index]
        origin = {
            "fingerprint": policy.fingerprint,
            "sampling": dict(sampling) | {"seed": line["seed"], "index": answer.index},
            "finish_reason": sample["finish_reason"],
            "tokens": sample["tokens"],
            "logprob": sample.get("logprob"),
            "copies": answer.copies,
            "flags": list(answer.flags),
        }
        new.append(Response(answer.text, model=policy.name, extra={k: v for k, v in origin.items() if v is not None}))
    return record.replace_responses([*own, *new])


def _own(response: Response, reviewed: bool) -> Response:
    """`reviewed`: people have ranked the record, also if a critic did before."""
    extra = {k: v for k, v in response.extra.items() if k not in ("critiques", "flags", "copies", "score", "critic_rank")}
    by_critic = "score" in response.extra
    human = {"human_rank": None if by_critic and not reviewed else response.rank}
    human["human_critique"] = None if by_critic else response.critique
    extra |= {name: value for name, value in human.items() if value is not None}
    return Response(response.text, scores=response.scores, model=response.model, extra=extra | {"flags": _flags(response.text)})


def _flags(text: str) -> list[str]:
    return list(flags_of(text, "stop"))


def has_sound_answer(record: RankedRecord) -> bool:
    """Whether a response may be ranked first."""
    return any(not response.extra.get("flags") for response in record.responses)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Neighbours nearer than `tie`, or than `z` standard errors, have the same rank. `keep` is the number of best answers that
    remain; None: all."""

    tie: float
    z: float = 1.0
    keep: int | None = None


def ranked(record: RankedRecord, line: Line, critic: Model, ranking: Ranking) -> RankedRecord:
    """The record with the critic's rewards, critiques and ranks. Of several critiques, the one whose reward is nearest to their
    mean stands for all."""
    scores = line["responses"]
    errors = [standard_error([one["reward"] for one in each["critiques"]]) for each in scores]
    flagged = [bool(response.extra.get("flags")) for response in record.responses]
    found = never_first(ranks([each["reward"] for each in scores], errors, ranking.tie, ranking.z), flagged)
    made = []
    for response, each, rank in zip(record.responses, scores, found, strict=True):
        origin = {
            "critic": critic.name,
            "fingerprint": critic.fingerprint,
            "template": line["template"],
            "served": critic.served,
        }
        origin |= {name: each[name] for name in ("critiques", "reward", "std")}
        extra = dict(response.extra) | {"score": {name: value for name, value in origin.items() if value is not None}}
        critique = nearest_critique(each)
        made.append(dataclasses.replace(response, rank=rank, reward=each["reward"], critique=critique, extra=extra))
    if ranking.keep is not None:
        sound = [place for place, bad in enumerate(flagged) if not bad]
        best = sorted(sound, key=lambda place: (found[place], -made[place].reward))[: ranking.keep]
        made = _dense([made[place] for place in sorted(best)])
    return record.replace_responses(made)


def nearest_critique(score: Line) -> str | None:
    """The text of the critique whose reward is nearest to the mean; None if there are no critiques."""
    if not score["critiques"]:
        return None
    return min(score["critiques"], key=lambda one: abs(one["reward"] - score["reward"]))["text"]


def _dense(responses: Sequence[Response]) -> list[Response]:
    levels = sorted({response.rank for response in responses})
    return [dataclasses.replace(response, rank=1 + levels.index(response.rank)) for response in responses]


def with_origin(record: RankedRecord, origin: Mapping[str, Any]) -> RankedRecord:
    """The record with `origin` (round, created, version) in place of an earlier round's. Where people ranked responses that are
    still there (`human_rank`), who they were stays as `human_review`."""
    earlier = ("round", "created", "version", "selected_because", "review")
    kept = {name: value for name, value in record.extra.items() if name not in earlier}
    if "review" in record.extra and any("human_rank" in response.extra for response in record.responses):
        kept["human_review"] = record.extra["review"]
    return dataclasses.replace(record, extra=kept | dict(origin))
