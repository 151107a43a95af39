"""Ranked records: a prompt with its media and K responses in a weak order (rank 1 is best, equal ranks are ties).

The ranking group, not the pair, is the unit of the whole project. Every reader in `data/sources` produces `RankedRecord`s, and
the builder, the stream, the reward model and the evaluations consume them.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence, Set
from typing import Any

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.finite import is_finite
from mmrlhf_jax.places import PromptText, WrongMedia, check_places, find_places, split_at

SCORE_NAMES = ("helpfulness", "faithfulness", "ethics")

# A pair is two indices into the responses of one record: (chosen, rejected).
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Response:
    """One answer to the record's prompt.

    `rank` is None if the source has no ranks (data for scoring or log-probs only). `reward` is a reward model's score. A blank
    critique becomes None. An unknown field with the name of a known one (an answer of VLFeedback may have its own `rank`) is
    kept as `original_NAME`.
    """

    text: str
    rank: int | None = None
    scores: Mapping[str, float] | None = None
    critique: str | None = None
    reward: float | None = None
    model: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.critique is not None and is_blank(self.critique):
            object.__setattr__(self, "critique", None)
        critiques = self.extra.get("critiques")
        # `record_from_json` takes the critique from a field `critiques` if there is none. An unrelated field of that name is
        # renamed, so that it is not read back as critiques.
        is_other = self.critique is None and bool(critiques) and not _are_blank(critiques)
        object.__setattr__(self, "extra", under_free_names(self.extra, _ANSWER_FIELDS | ({"critiques"} if is_other else set())))

    @property
    def mean_score(self) -> float | None:
        """Mean of the human scores; None if there are none."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else None


# Fields of the project's own JSONL form. Columns of other formats with these names but another meaning are renamed.
_FIELDS = frozenset({"id", "images", "image", "video", "prompt", "media_places", "source", "responses"})
_ANSWER_FIELDS = frozenset({"text", "rank", "scores", "critique", "reward", "model"})


def under_free_names(extra: Mapping[str, Any], taken: Set[str]) -> dict[str, Any]:
    """The unknown fields, with those whose name is in `taken` renamed to `original_NAME`."""
    clashing = taken & extra.keys()
    renamed = {name: value for name, value in extra.items() if name not in clashing}
    for name in sorted(clashing):
        free = f"original_{name}"
        while free in renamed:
            free = f"original_{free}"
        renamed[free] = extra[name]
    return renamed


def _are_blank(critiques: Any) -> bool:
    return isinstance(critiques, list) and all(isinstance(one, str) and is_blank(one) for one in critiques)


@dataclasses.dataclass(frozen=True)
class RankedRecord:
    """A ranking group. `images` and `video` are paths relative to the media root; unknown fields are in `extra`.

    The tags in `prompt` are the places of the media (see `mmrlhf_jax.places`). If `media_places` gives their offsets, all other
    tags are text.

    An unknown field with the name of a known one (an ms-swift row may repeat its `query` as `prompt`) is kept as
    `original_NAME`.
    """

    id: str
    prompt: str
    responses: tuple[Response, ...]
    images: tuple[str, ...] = ()
    video: str | None = None
    source: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    media_places: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", under_free_names(self.extra, _FIELDS))

    def prompt_text(self, where: str | None = None) -> PromptText:
        """The prompt for a chat template: the text that follows the media, or the texts around them.

        Raises WrongMedia, which begins with `where` (default: the record's id), for tags that do not match the media.
        """
        places = self.media_places
        if places is None:
            where = f"record {shown(self.id)}" if where is None else where
            places = find_places(self.prompt, len(self.images), int(self.video is not None), where)
        return split_at(self.prompt, places)

    def with_media(self, images: tuple[str, ...], video: str | None) -> RankedRecord:
        """The record with other media in the same places; if their number or kind differs, they come before the text."""
        changed = dataclasses.replace(self, images=images, video=video)
        texts = self.prompt_text()
        if isinstance(texts, str) or (len(images), video is None) == (len(self.images), self.video is None):
            return changed
        return dataclasses.replace(changed, prompt="".join(texts).strip(), media_places=())

    def pairs(self) -> list[Pair]:
        """All strictly ordered pairs (chosen, rejected); ties and unranked responses give none."""
        return strict_pairs([r.rank for r in self.responses])

    def mean_scores(self) -> list[float | None]:
        """The mean human score of each response; None for a response that lacks a score that others of the record have, because
        means of different scores cannot be compared.
        """
        names = {name for response in self.responses for name in response.scores or ()}
        return [response.mean_score if names == set(response.scores or ()) else None for response in self.responses]

    def replace_responses(self, responses: Sequence[Response]) -> RankedRecord:
        return dataclasses.replace(self, responses=tuple(responses))

    def to_json(self) -> dict[str, Any]:
        """The record in the project's own JSONL form: known fields that are set, then unknown ones unchanged."""
        out: dict[str, Any] = {"id": self.id}
        if self.images:
            out["images"] = list(self.images)
        if self.video is not None:
            out["video"] = self.video
        out["prompt"] = self.prompt
        if self.media_places is not None:
            out["media_places"] = list(self.media_places)
        if self.source is not None:
            out["source"] = self.source
        out["responses"] = [_response_to_json(r) for r in self.responses]
        return out | dict(self.extra)


def is_blank(text: str) -> bool:
    """Whether a text has only spaces, control characters and zero-width characters."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


def ranks_of(scores: Sequence[float | None]) -> list[int | None]:
    """Ranks by scores: 1 for the highest, the same rank for equal scores, without gaps. None for a missing score."""
    levels = sorted({score for score in scores if score is not None}, reverse=True)
    return [None if score is None else levels.index(score) + 1 for score in scores]


def strict_pairs(ranks: Sequence[int | None]) -> list[Pair]:
    """(chosen, rejected) for every pair with different ranks, best rank first, in a deterministic order."""
    ranked = [(rank, i) for i, rank in enumerate(ranks) if rank is not None]
    ranked.sort()
    return [(i, j) for a, (rank_i, i) in enumerate(ranked) for rank_j, j in ranked[a + 1 :] if rank_i < rank_j]


def tied_pairs(ranks: Sequence[int | None]) -> list[Pair]:
    """Every pair of equal rank, each once, in a deterministic order; unranked responses tie with nothing."""
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if i < j and a is not None and a == b]


def choose_pairs(pairs: Sequence[Pair], policy: str | int) -> list[Pair]:
    """The pairs of one record to train on, out of all its strict pairs in the order of `strict_pairs`.

    `policy` is "all", "extreme" (one pair, of a best and a worst response), or an integer n: at most n pairs, spread evenly
    over the list.
    """
    if policy == "all" or not pairs:
        return list(pairs)
    if policy == "extreme":
        return [(pairs[0][0], pairs[-1][1])]
    count = min(int(policy), len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]


def record_from_json(row: Any, where: str, *, prompt_only: bool = False) -> RankedRecord:
    """Read a record in the project's own form. `where` (file and line) is the beginning of every error message. `prompt_only`
    accepts a record without responses.

    Raises UserError for a field that is missing or has the wrong type. Unknown fields are kept in `extra`.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(row).__name__}")
    row = dict(row)
    record_id = row.pop("id", None)
    if isinstance(record_id, int) and not isinstance(record_id, bool):
        record_id = str(record_id)
    if not isinstance(record_id, str) or not record_id:
        raise UserError(f"{where}: field 'id' must be a non-empty string, found {shown(record_id)}")
    where = f"{where} (record {shown(record_id)})"

    images, image = (_paths(row, name, where) for name in ("images", "image"))
    if images and image and images != image:
        raise WrongMedia(f"{where}: has both 'image' and 'images'; keep one of them")
    images = images or image
    video = row.pop("video", None)
    if video is not None and (not isinstance(video, str) or not video):
        raise UserError(f"{where}: field 'video' must be a path, found {shown(video)}")
    if images and video is not None:
        raise UserError(f"{where}: has both images and a video; keep one of the fields 'images' and 'video'")
    prompt = row.pop("prompt", None)
    if not isinstance(prompt, str):
        raise UserError(f"{where}: field 'prompt' must be a string, found {shown(prompt)}")
    places = row.pop("media_places", None)
    if places is not None:
        places = check_places(places, prompt, len(images) + (video is not None), where)
    responses = row.pop("responses", None)
    if prompt_only and responses is None:
        responses = []
    if not isinstance(responses, list) or not (responses or prompt_only):
        raise UserError(f"{where}: field 'responses' must be a non-empty list; a record needs at least one response")
    return RankedRecord(
        id=record_id,
        prompt=prompt,
        responses=tuple(_response_from_json(r, f"{where}, response {i}") for i, r in enumerate(responses)),
        images=images,
        video=video,
        source=_optional(row, "source", str, where),
        extra=row,
        media_places=places,
    )


def _paths(row: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = row.pop(name, None)
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"{where}: field {name!r} must be a list of paths, found {shown(value)}")
    return tuple(paths)


def _response_from_json(row: Any, where: str) -> Response:
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object with 'text', found {type(row).__name__}")
    row = dict(row)
    text = row.pop("text", None)
    if not isinstance(text, str):
        raise UserError(f"{where}: field 'text' must be a string, found {shown(text)}")
    rank = row.pop("rank", None)
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
        raise UserError(f"{where}: field 'rank' must be an integer (1 = best, equal = tie), found {shown(rank)}")
    scores = row.pop("scores", None)
    if scores is not None:
        if not isinstance(scores, dict) or not all(is_finite(v) for v in scores.values()):
            raise UserError(f"{where}: field 'scores' must map dimension names to finite numbers, found {shown(scores)}")
        scores = {name: float(value) for name, value in scores.items()}
    reward = row.pop("reward", None)
    if reward is not None and not is_finite(reward):
        raise UserError(f"{where}: field 'reward' must be a finite number, found {shown(reward)}")
    critique = _optional(row, "critique", str, where)
    if (critique is None or is_blank(critique)) and row.get("critiques"):
        # Critiques of several reviewers: the first one that is not blank is used, and all are kept in `extra`.
        several = row["critiques"]
        if not isinstance(several, list) or not all(isinstance(one, str) for one in several):
            raise UserError(f"{where}: field 'critiques' must be a list of strings, found {shown(several)}")
        critique = next((one for one in several if not is_blank(one)), None)
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
        raise UserError(f"{where}: field {name!r} must be a {kind.__name__}, found {shown(value)}")
    return value
