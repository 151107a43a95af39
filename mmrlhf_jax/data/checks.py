"""Checks of records that could be read: their tags, ranks, scores and texts.

`mmrlhf data validate` lists all findings; `data build` and `train` summarise them in one line. Tags that do not match the media
are an error wherever a record is used; records with other findings are used as they are.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

from mmrlhf_jax.errors import shown
from mmrlhf_jax.places import FOREIGN_TAG, WrongMedia
from mmrlhf_jax.records import RankedRecord, Response, is_blank

# Most characters of one prompt or response; a typical answer of a model has a hundredth of this.
MAX_TEXT = 200_000
# Fields with which other programs extend a prompt. They are kept in the record, but are not part of the prompt here.
_CONTEXT = ("system", "system_prompt", "history", "tools")


def check_record(record: RankedRecord, max_text: int = MAX_TEXT) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) for everything that is wrong with ranks, scores, tags and texts."""
    ranks = [response.rank for response in record.responses]
    given = sorted({rank for rank in ranks if rank is not None})
    if None in ranks and given:
        yield "ranks", f"{ranks.count(None)} of {len(ranks)} responses have no rank"
    places = [1 + sum(other < rank for other in ranks if other is not None) for rank in given]  # competition ranks: 1, 1, 3
    if given not in (list(range(1, len(given) + 1)), places):
        yield "ranks", f"ranks are {ranks}; the best is 1, and no number is left out but for a tie"
    texts: dict[str, int | None] = {}
    for response in record.responses:
        if texts.setdefault(response.text, response.rank) != response.rank:
            yield "ranks", f"the same text has the ranks {texts[response.text]} and {response.rank}"
    names = {frozenset(response.scores or ()) for response in record.responses}
    if len(names) > 1:
        yield "scores", f"responses have different scores: {', '.join(sorted(map(_named, names)))}"
    for better, worse in record.pairs():
        if _is_dominated(record.responses[better], record.responses[worse]):
            yield "scores", f"response {better} is ranked above response {worse}, which has the better scores"
    try:
        record.prompt_text()
    except WrongMedia as error:
        yield "media", str(error)
    if tag := FOREIGN_TAG.search(record.prompt):
        yield "media", f"the prompt has {tag[0]}, which is read as text; the place of a picture is <image>, of a video <video>"
    for name in _CONTEXT:
        if value := record.extra.get(name):
            yield "prompt", f"field {name!r} ({shown(value, 60)}) is not read as part of the prompt"
    for name, text in _texts(record):
        if is_blank(text):
            yield "text", f"{name} is empty"
        elif len(text) > max_text:
            yield "text", f"{name} has {len(text)} characters, more than {max_text}"
        elif "\ufffd" in text:
            yield "text", f"{name} holds U+FFFD, the trace of a wrong decoding"


def summarise_findings(records: Sequence[RankedRecord], source: str) -> str | None:
    """One line with the number of records with findings, their kinds, and the first finding; None if there is none.

    Raises WrongMedia for tags that do not match the media.
    """
    kinds: collections.Counter[str] = collections.Counter()
    wrong, first = 0, ""
    for record in records:
        found = list(check_record(record))
        if any(kind == "media" for kind, _ in found):
            record.prompt_text(f"{source}: record {shown(record.id)}")
        if found:
            wrong += 1
            first = first or f"record {shown(record.id)}: {found[0][1]}"
        kinds.update(kind for kind, _ in found)
    if not wrong:
        return None
    counted = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    return (
        f"{source}: {wrong} of {len(records)} records have something wrong ({counted}); the first is {first};"
        " `mmrlhf data validate` lists them"
    )


def _texts(record: RankedRecord) -> Iterator[tuple[str, str]]:
    yield "the prompt", record.prompt
    for number, response in enumerate(record.responses):
        yield f"response {number}", response.text
        if response.critique is not None:
            yield f"the critique of response {number}", response.critique


def _is_dominated(better: Response, worse: Response) -> bool:
    """Whether every shared score of the better-ranked response is at most the other's, and at least one is lower."""
    shared = (better.scores or {}).keys() & (worse.scores or {}).keys()
    differences = [better.scores[name] - worse.scores[name] for name in shared]
    return bool(differences) and max(differences) <= 0 and min(differences) < 0


def _named(names: frozenset[str]) -> str:
    return "+".join(sorted(names)) or "none"
