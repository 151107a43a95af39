"""`mmrlhf review export`: choose what people look through, and write it for the tool in which they do."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.digests import prompt_digest
from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import exists, write_atomically
from mmrlhf_jax.growing import argilla, label_studio, queue
from mmrlhf_jax.growing.directory import GrownDirectory, changes
from mmrlhf_jax.growing.review import Entry, fingerprint, new_entry, read_entries, write_entries
from mmrlhf_jax.growing.shown import GUIDELINES, LEVELS, SAME, Shown, shown_all
from mmrlhf_jax.pages.review import review_page
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord

FOLDER = "review"  # in the directory, unless another one is named


def export(path: str, tool: str, budget: int, *, seed: int, against: str | None, again: bool, out: str | None) -> None:
    """Bring the queue to `budget` records and write them in the form of `tool`: those without a verdict, or with `again` all.

    UserError for a directory that is not finished, and for a queue that was begun otherwise.
    """
    directory = GrownDirectory(path)
    examples = open_records(directory)
    with directory.held_for_review():
        entries = _selected(directory, examples.records, budget, seed, against)
    left = [entry for entry in entries if again or not entry.verdicts]
    if skipped := len(entries) - len(left):
        say(f"{skipped} records have verdicts already, and are left out (--again: for the verdicts of others)")
    if not left:
        raise UserError(f"{path}: all {len(entries)} records in the queue have verdicts; raise --budget, or give --again")
    target = epath.Path(out) if out is not None else directory.path / FOLDER
    for file in _TOOLS[tool](list(shown_all(examples, left)), target, fingerprint(entries)):
        say(f"see {file}")


def open_records(directory: GrownDirectory) -> SourceExamples:
    """The ranked records of a directory. UserError if they are not there yet."""
    directory.made_with()
    if not exists(directory.records):
        raise UserError(f"{directory.path}: has no records.jsonl yet; let `mmrlhf annotate` come to its end first")
    return SourceExamples(directory.records)


# The queue --------------------------------------------------------------------------------------------------------------


def _selected(
    directory: GrownDirectory, records: Sequence[RankedRecord], budget: int, seed: int, against: str | None
) -> list[Entry]:
    entries = read_entries(directory.review, {record.id: record for record in records})
    if len(entries) > budget:
        raise UserError(f"{directory.review}: has {len(entries)} records already; give a --budget of at least as many")
    second = None if against is None else open_records(GrownDirectory(against))
    _settle(directory, seed, None if second is None else _answers_fingerprint(second.records), bool(entries))
    others = _others(records, None if second is None else second.records, against)
    places = {record.id: index for index, record in enumerate(records)}
    before = {places[entry.id]: entry.selected_because for entry in entries}
    found = queue.select(records, budget, seed, others, before)
    if not found:
        raise UserError(f"{directory.records}: no record has two different answers to compare")
    known = {entry.id: entry for entry in entries}
    made = [_entry(records[index], because, seed, known) for index, because in found.items()]
    made.sort(key=lambda entry: (entry.id not in known, _mixed(entry, seed)))  # people who stop early have seen of everything
    _say_selected(made, len(known), budget, sum(map(queue.is_reviewable, records)), others)
    write_entries(directory.review, made)
    return made


def _entry(record: RankedRecord, because: str, seed: int, known: Mapping[str, Entry]) -> Entry:
    found = known.get(record.id) or new_entry(record, because, seed)
    return Entry(found.id, found.prompt, because, found.answers, found.verdicts)


def _mixed(entry: Entry, seed: int) -> str:
    return hashlib.sha256(f"{seed} {entry.id}".encode("utf-8", "surrogatepass")).hexdigest()


def _settle(directory: GrownDirectory, seed: int, against: str | None, begun: bool) -> None:
    """Keep the settings of the queue in job.json. UserError if a queue was begun with others."""
    settings = {"seed": seed, "against": against}
    before = directory.made_with().get("review", {}).get("settings")
    if begun and before is not None:
        for name in changes(before, settings):
            raise UserError(
                f"{directory.review}: was begun with another --{name}; give the same one, or remove the file, with the verdicts"
                " in it"
            )
    directory.note("review", directory.made_with().get("review", {}) | {"settings": settings})


def _answers_fingerprint(records: Sequence[RankedRecord]) -> str:
    found = hashlib.sha256()
    for record in records:
        found.update(strict_json.dumps([record.id, [(each.text, each.rank) for each in record.responses]]).encode())
    return found.hexdigest()[:16]


def _others(
    records: Sequence[RankedRecord], second: Sequence[RankedRecord] | None, named: str | None
) -> dict[int, list[list[int | None]]]:
    """Ranks by people, and by the second critic. UserError if the second one judged none of these answers."""
    found = {index: [queue.human_ranks(record)] for index, record in enumerate(records)}
    if second is not None:
        elsewhere = {record.id: record for record in second}
        shared = 0
        for index, record in enumerate(records):
            other = elsewhere.get(record.id)
            if other is None or prompt_digest(other) != prompt_digest(record):
                continue
            ranks = queue.ranks_elsewhere(record, other)
            shared += sum(rank is not None for rank in ranks) > 1
            found[index].append(ranks)
        if not shared:
            raise UserError(f"--against {named}: has ranks of none of these answers; make it by --reuse of this directory")
        say(f"{named}: ranks the answers of {shared} of {len(records)} records")
    return found


def _say_selected(entries: Sequence[Entry], known: int, budget: int, reviewable: int, others: Mapping[int, Any]) -> None:
    counts = collections.Counter(entry.selected_because for entry in entries)
    parts = ", ".join(f"{counts[name]} {name}" for name in queue.REASONS if counts[name])
    new = f", {len(entries) - known} of them new" if known else ""
    say(f"in the queue: {len(entries)} of {reviewable} records with different answers ({parts}){new}")
    if len(entries) < budget:
        say(f"that is all that there is to compare; the budget was {budget}")
    elsewhere = any(rank is not None for each in others.values() for ranks in each for rank in ranks)
    if not counts[queue.DISAGREEMENT] and not elsewhere:
        say("there are no other judgements to compare the critic with (--against, or `annotate --keep-responses`)")


# The tools --------------------------------------------------------------------------------------------------------------


def _write_page(records: Sequence[Shown], folder: epath.Path, queue_name: str) -> list[epath.Path]:
    rows = [record._asdict() | {"answers": [answer._asdict() for answer in record.answers]} for record in records]
    page = review_page("Answers to rate", queue_name, rows, LEVELS, SAME, GUIDELINES)
    return _write(folder, {"page.html": page})


def _write_label_studio(records: Sequence[Shown], folder: epath.Path, _: str) -> list[epath.Path]:
    tasks = strict_json.dumps([label_studio.task(record) for record in records], ensure_ascii=False)
    return _write(folder, {"label-studio.xml": label_studio.CONFIG, "label-studio.json": tasks})


def _write_argilla(records: Sequence[Shown], folder: epath.Path, _: str) -> list[epath.Path]:
    pictures, answers = (max(len(each) for each in column) for column in zip(*((r.pictures, r.answers) for r in records)))
    contents = {
        ".argilla/dataset.json": argilla.dataset(),
        ".argilla/settings.json": argilla.settings(pictures, answers),
        "records.json": [argilla.record(record) for record in records],
    }
    _write(folder / "argilla", {name: strict_json.dumps(content, ensure_ascii=False) for name, content in contents.items()})
    return [folder / "argilla"]


def _write(folder: epath.Path, files: Mapping[str, str]) -> list[epath.Path]:
    for name, content in files.items():
        write_atomically(folder / name, content.encode())
    return [folder / name for name in files]


_TOOLS: dict[str, Callable[[Sequence[Shown], epath.Path, str], list[epath.Path]]] = {
    "html": _write_page,
    "label-studio": _write_label_studio,
    "argilla": _write_argilla,
}
TOOLS = tuple(_TOOLS)
