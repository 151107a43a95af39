"""Ranked records: a prompt with its media and K responses in a weak order (rank 1 is best, equal ranks are ties).

The ranking group, not the pair, is the unit of the whole project. `RankedRecord` is what every reader in `data/sources`
produces and what the builder, the stream, the reward model and the evaluations consume.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmrlhf_jax.errors import UserError

SCORE_NAMES = ("helpfulness", "faithfulness", "ethics")

# A pair is two indices into the responses of one record: (chosen, rejected).
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Response:
    """One answer to the record's prompt.

    `rank` is None where the source does not rank (data for scoring or log-probs only). `reward` is a reward model's score.
    """

    text: str
    rank: int | None = None
    scores: Mapping[str, float] | None = None
    critique: str | None = None
    reward: float | None = None
    model: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def mean_score(self) -> float | None:
        """Mean of the human scores that are given, or None."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else None


# Fields of the project's own form. A column of another format that has such a name but is not that field must not pass for it.
_FIELDS = frozenset({"id", "images", "image", "video", "prompt", "source", "responses"})


@dataclasses.dataclass(frozen=True)
class RankedRecord:
    """A ranking group. `images` and `video` are paths relative to the media root; unknown fields live in `extra`.

    An unknown field with the name of a known one (an ms-swift row may have `query` and `prompt`) is kept as `original_NAME`.
    """

    id: str
    prompt: str
    responses: tuple[Response, ...]
    images: tuple[str, ...] = ()
    video: str | None = None
    source: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if clashing := _FIELDS & self.extra.keys():
            renamed = {f"original_{name}" if name in clashing else name: value for name, value in self.extra.items()}
            object.__setattr__(self, "extra", renamed)

    def pairs(self) -> list[Pair]:
        """All strictly ordered pairs (chosen, rejected); ties and unranked responses give none."""
        return strict_pairs([r.rank for r in self.responses])

    def replace_responses(self, responses: Sequence[Response]) -> RankedRecord:
        return dataclasses.replace(self, responses=tuple(responses))

    def to_json(self) -> dict[str, Any]:
        """The project's own JSONL form: known fields that are set, then the unknown ones as they came."""
        out: dict[str, Any] = {"id": self.id}
        if self.images:
            out["images"] = list(self.images)
        if self.video is not None:
            out["video"] = self.video
        out["prompt"] = self.prompt
        if self.source is not None:
            out["source"] = self.source
        out["responses"] = [_response_to_json(r) for r in self.responses]
        return out | dict(self.extra)


def strict_pairs(ranks: Sequence[int | None]) -> list[Pair]:
    """(chosen, rejected) for every pair with different ranks, best rank first, in a deterministic order."""
    ranked = [(rank, i) for i, rank in enumerate(ranks) if rank is not None]
    ranked.sort()
    return [(i, j) for a, (rank_i, i) in enumerate(ranked) for rank_j, j in ranked[a + 1 :] if rank_i < rank_j]


def tied_pairs(ranks: Sequence[int | None]) -> list[Pair]:
    """Every pair of equal rank, each once, in a deterministic order; unranked responses tie with nothing."""
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if i < j and a is not None and a == b]


def choose_pairs(pairs: Sequence[Pair], policy: str | int) -> list[Pair]:
    """The pairs of one record to train on, of all its strict ones as `strict_pairs` orders them.

    `all`; `extreme`: a best response against a worst one; an integer n: at most n, spread evenly over the list.
    """
    if policy == "all" or not pairs:
        return list(pairs)
    if policy == "extreme":
        return [(pairs[0][0], pairs[-1][1])]
    count = min(int(policy), len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]


def record_from_json(row: Any, where: str) -> RankedRecord:
    """Read the project's own form. `where` (file and line) opens every error message.

    Raises UserError for a missing or ill-typed field. Fields this project does not know are kept in `extra`.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(row).__name__}")
    row = dict(row)
    record_id = row.pop("id", None)
    if isinstance(record_id, int) and not isinstance(record_id, bool):
        record_id = str(record_id)
    if not isinstance(record_id, str) or not record_id:
        raise UserError(f"{where}: field 'id' must be a non-empty string, found {record_id!r}")
    where = f"{where} (record {record_id!r})"

    images = row.pop("images", None)
    if images is None:
        images = row.pop("image", None)
    if images is None:
        images = []
    if isinstance(images, str):
        images = [images]
    if not isinstance(images, list) or not all(isinstance(path, str) and path for path in images):
        raise UserError(f"{where}: field 'images' must be a list of paths, found {images!r}")
    video = row.pop("video", None)
    if video is not None and (not isinstance(video, str) or not video):
        raise UserError(f"{where}: field 'video' must be a path, found {video!r}")
    if images and video is not None:
        raise UserError(f"{where}: has both images and a video; keep one of them")
    prompt = row.pop("prompt", None)
    if not isinstance(prompt, str):
        raise UserError(f"{where}: field 'prompt' must be a string, found {prompt!r}")
    responses = row.pop("responses", None)
    if not isinstance(responses, list) or not responses:
        raise UserError(f"{where}: field 'responses' must be a non-empty list; a record needs at least one response")
    return RankedRecord(
        id=record_id,
        prompt=prompt,
        responses=tuple(_response_from_json(r, f"{where}, response {i}") for i, r in enumerate(responses)),
        images=tuple(images),
        video=video,
        source=_optional(row, "source", str, where),
        extra=row,
    )


def _response_from_json(row: Any, where: str) -> Response:
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object with 'text', found {type(row).__name__}")
    row = dict(row)
    text = row.pop("text", None)
    if not isinstance(text, str):
        raise UserError(f"{where}: field 'text' must be a string, found {text!r}")
    rank = row.pop("rank", None)
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
        raise UserError(f"{where}: field 'rank' must be an integer (1 = best, equal = tie), found {rank!r}")
    scores = row.pop("scores", None)
    if scores is not None:
        if not isinstance(scores, dict) or not all(_is_finite(v) for v in scores.values()):
            raise UserError(f"{where}: field 'scores' must map dimension names to finite numbers, found {scores!r}")
        scores = {name: float(value) for name, value in scores.items()}
    reward = row.pop("reward", None)
    if reward is not None and not _is_finite(reward):
        raise UserError(f"{where}: field 'reward' must be a finite number, found {reward!r}")
    critique = _optional(row, "critique", str, where)
    if critique is None and row.get("critiques"):  # several reviewers: the first one is the teacher, all are kept in `extra`
        critique = row["critiques"][0] if isinstance(row["critiques"], list) else None
        if not isinstance(critique, str):
            raise UserError(f"{where}: field 'critiques' must be a list of strings, found {row['critiques']!r}")
    return Response(
        text=text,
        rank=rank,
        scores=scores,
        critique=critique,
        reward=None if reward is None else float(reward),
        model=_optional(row, "model", str, where),
        extra=row,
    )


def _response_to_json(response: Response) -> dict[str, Any]:
    known = {
        "text": response.text,
        "rank": response.rank,
        "scores": None if response.scores is None else dict(response.scores),
        "critique": response.critique,
        "reward": response.reward,
        "model": response.model,
    }
    return {k: v for k, v in known.items() if v is not None} | dict(response.extra)


def _optional(row: dict[str, Any], name: str, kind: type, where: str) -> Any:
    value = row.pop(name, None)
    if value is not None and not isinstance(value, kind):
        raise UserError(f"{where}: field {name!r} must be a {kind.__name__}, found {value!r}")
    return value


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
