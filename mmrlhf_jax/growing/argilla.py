"""Review in Argilla (2.x): a dataset that `rg.Dataset.from_disk` reads, and the verdicts of `dataset.to_disk`.

Argilla's fields and questions are the same for all records of a dataset, so that there are as many as the record with the most
answers and pictures needs. Required are the question and the first answer's rating alone, which every record has (Argilla
publishes no dataset without a required question).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.growing.shown import GUIDELINES, LEVELS, SAME, Shown
from mmrlhf_jax.growing.verdicts import Rated, Said, rating_of

TOOL = "argilla"
NAME = "mmrlhf-review"
_SUBMITTED = "submitted"


def dataset() -> dict[str, Any]:
    """The content of .argilla/dataset.json."""
    return {"name": NAME, "guidelines": GUIDELINES, "allow_extra_metadata": True}


def settings(pictures: int, answers: int, people: int = 1) -> dict[str, Any]:
    """The content of .argilla/settings.json, for records of up to so many pictures and answers. A record is complete when so
    many people have rated it."""
    scale = "; ".join(f"{level}: {meaning}" for level, meaning in enumerate(LEVELS, 1))
    fields = [_field("question", "Question", {"type": "text", "use_markdown": False}, required=True)]
    fields += [_field(f"image_{n}", f"Picture {n}", {"type": "image"}) for n in range(1, pictures + 1)]
    fields += [_field(f"answer_{n}", f"Answer {n}", {"type": "text", "use_markdown": False}) for n in range(1, answers + 1)]
    questions = []
    for n in range(1, answers + 1):
        rating = {"type": "rating", "options": [{"value": level} for level in range(1, 6)]}
        questions.append(_field(f"rating_{n}", f"Answer {n}", rating, required=n == 1, description=scale))
        if n > 1:
            same = {"type": "label_selection", "options": [{"text": SAME, "value": SAME}], "visible_options": None}
            questions.append(_field(f"same_{n}", f"Answer {n} is the {SAME}", same))
    questions.append(_field("reason", "Why? (if you like)", {"type": "text", "use_markdown": False}))
    distribution = {"strategy": "overlap", "min_submitted": people}
    rest = {"vectors": [], "metadata": [], "allow_extra_metadata": True, "distribution": distribution, "mapping": None}
    return {"guidelines": GUIDELINES, "fields": fields, "questions": questions, **rest}


def _field(name: str, title: str, settings: Mapping[str, Any], *, required: bool = False, description: str | None = None):
    found = {"name": name, "title": title, "description": description, "required": required}
    return found | {"settings": dict(settings), "type": settings["type"]}


def record(shown: Shown) -> dict[str, Any]:
    """A record of records.json."""
    fields = {"question": shown.question}
    fields |= {f"image_{n}": url for n, url in enumerate(shown.pictures, 1)}
    fields |= {f"answer_{n}": answer.text for n, answer in enumerate(shown.answers, 1)}
    metadata = {"record": shown.id, "prompt": shown.prompt, "answers": " ".join(answer.digest for answer in shown.answers)}
    return {"id": shown.id, "fields": fields, "metadata": metadata, "suggestions": {}, "responses": {}, "vectors": {}}


def is_export(content: Any) -> bool:
    """Whether a file's content is a records.json."""
    return isinstance(content, list) and any(
        isinstance(each, dict) and {"fields", "responses"} <= each.keys() for each in content
    )


def verdicts(records: Iterable[Any], file: str) -> Iterator[Said]:
    """Yield what each person says of each record. UserError for what is no record of ours.

    Where the export does not say whether a response was submitted, one with all ratings is taken for finished.
    """
    for number, each in enumerate(records, 1):
        where = f"{file}, record {number}"
        try:
            metadata, fields = each["metadata"], each["fields"]
            name, prompt, digests = metadata["record"], metadata["prompt"], metadata["answers"].split()
            answers = [(digest, fields[f"answer_{n}"]) for n, digest in enumerate(digests, 1)]
            by_person = _by_person(each["responses"])
            if not all(isinstance(each, str) for each in (name, *(text for _, text in answers))):
                raise TypeError
        except (LookupError, TypeError, AttributeError):
            raise UserError(f"{where}: {shown(each)} is not of the dataset that `mmrlhf review export` made") from None
        for who, given in by_person.items():
            reason = str(given.get("reason") or "")
            yield Said(where, name, prompt, _rated(answers, given, where), who, None, TOOL, reason, skipped=not given)


def _by_person(responses: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Person -> question -> value. Drafts and discarded responses have no values."""
    found: dict[str, dict[str, Any]] = {}
    for question, given in responses.items():
        for each in given:
            submitted = found.setdefault(str(each["user_id"]), {})
            if each.get("status", _SUBMITTED) == _SUBMITTED:
                submitted[question] = each["value"]
    return found


def _rated(answers: Sequence[tuple[str, str]], given: Mapping[str, Any], where: str) -> tuple[Rated, ...]:
    return tuple(
        Rated(digest, text, rating_of(given.get(f"rating_{n}"), f"{where}, rating_{n}"), given.get(f"same_{n}") == SAME)
        for n, (digest, text) in enumerate(answers, 1)
    )
