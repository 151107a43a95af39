"""`mmrlhf review import`: people's verdicts become the ranks of the records, and show how good the critic is."""

from __future__ import annotations

import collections
import datetime
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import exists, write_json_lines
from mmrlhf_jax.growing import queue
from mmrlhf_jax.growing.directory import GrownDirectory
from mmrlhf_jax.growing.export import open_records
from mmrlhf_jax.growing.review import Entry, read_entries, reviewed, write_entries
from mmrlhf_jax.growing.verdict_files import read_verdicts
from mmrlhf_jax.growing.verdicts import Said, Unfinished, agreed_ranks, checked, in_utc
from mmrlhf_jax.intervals import ratio_interval
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord, strict_pairs

LEAST_RECORDS = 10  # without which resampling them says nothing


def import_verdicts(path: str, files: Sequence[str]) -> None:
    """Add the verdicts in these files to the queue, and rank the records by all verdicts that there are.

    UserError, and nothing is changed, for verdicts on other answers, prompts or records than those of the directory.
    """
    directory = GrownDirectory(path)
    directory.made_with()
    if not exists(directory.review):
        raise UserError(f"{path}: nothing was exported from it; `mmrlhf review export {path}` makes the queue")
    with directory.held_for_review():
        records = open_records(directory).records
        by_id = {record.id: record for record in records}
        said = [each for file in files for each in read_verdicts(file)]
        entries = {entry.id: entry for entry in read_entries(directory.review, by_id)}
        _add(entries, by_id, said)
        write_entries(directory.review, entries.values())  # first, so that a kill leaves nothing that cannot be done again
        made = [reviewed(record, entries[record.id]) if record.id in entries else record for record in records]
        if made != records:
            write_json_lines(directory.records, [record.to_json() for record in made])
        done = [entry for entry in entries.values() if entry.verdicts]
        people = len({verdict.person for entry in done for verdict in entry.verdicts})
        changed = sum(_ranks(record) != _critic_ranks(record) for record in made)
        queued = f"{len(done)} of {len(entries)} records in the queue have verdicts, of {people} people"
        say(f"{queued}; {changed} have other ranks than the critic's")
        found = {"verdicts": len(done), "people": people, "other_ranks": changed}
        found |= {"critic_agrees": _critic_agrees(done, by_id), "people_agree": _people_agree(done)}
        directory.note("review", {**directory.made_with().get("review", {}), "results": found})


def _ranks(record: RankedRecord) -> list[int | None]:
    return [response.rank for response in record.responses]


def _critic_ranks(record: RankedRecord) -> list[int | None]:
    return [response.extra.get("critic_rank", response.rank) for response in record.responses]


def _add(entries: dict[str, Entry], records: Mapping[str, RankedRecord], said: Iterable[Said]) -> None:
    """Add what people say to the entries, and say what became of it. UserError for a record that is not in the queue."""
    now = in_utc(datetime.datetime.now(datetime.UTC))
    counts: collections.Counter[str] = collections.Counter()
    unfinished: list[str] = []
    differing: dict[tuple[str, str], str] = {}
    for each in said:
        if each.record not in entries:
            there = "not in the queue" if each.record in records else "no record of this directory"
            raise UserError(f"{each.where}: {each.record!r} is {there}; import into the directory of the export")
        try:
            verdict = checked(each, records[each.record], now)
        except Unfinished as reason:
            unfinished.append(f"{each.where}, record {each.record!r}: {reason}")
            continue
        entries[each.record], became = entries[each.record].with_verdict(verdict)
        counts[became] += 1
        if became in ("replaced", "older"):
            differing[verdict.person] = verdict.who
    older = f", {counts['older']} left out because later ones are there" if counts["older"] else ""
    say(f"verdicts: {counts['new']} new, {counts['replaced']} in place of earlier ones, {counts['known']} known already{older}")
    if differing:
        names = ", ".join(map(shown, differing.values()))
        say(f"some records have two different verdicts of {names}: the later one counts; two people need two names")
    if unfinished:
        say(f"{len(unfinished)} verdicts are not finished, and are not used; the first is {unfinished[0]}")


# How good the critic is ---------------------------------------------------------------------------------------------------


def _critic_agrees(entries: Sequence[Entry], records: Mapping[str, RankedRecord]) -> dict[str, Any]:
    """Per reason of selection: of the pairs that people order, the share that the critic's rewards order so; said as well."""
    found = {}
    for reason in queue.REASONS:
        pairs = [_right(entry, records[entry.id]) for entry in entries if entry.selected_because == reason]
        right, ordered = [sum(each) for each in pairs], [len(each) for each in pairs]
        if not sum(ordered):
            continue
        interval = ratio_interval(right, ordered) if len(pairs) >= LEAST_RECORDS else None
        share = sum(right) / sum(ordered)
        found[reason] = {"records": len(pairs), "pairs": sum(ordered), "agreement": share}
        found[reason]["interval"] = None if interval is None else list(interval)
        within = "too few for an interval" if interval is None else f"95 % interval {interval[0]:.1%} to {interval[1]:.1%}"
        what = "; the estimate for all records" if reason == queue.RANDOM else ""
        say(f"the critic agrees on {share:.1%} of {sum(ordered)} pairs in {len(pairs)} {reason} records ({within}{what})")
    if entries and queue.RANDOM not in found:
        say("no random record has verdicts yet: how good the critic is on all records is not known")
    return found


def _right(entry: Entry, record: RankedRecord) -> list[bool]:
    """Whether the critic's rewards order each pair as people do; pairs that people tie are left out."""
    ranks = agreed_ranks([verdict.ratings for verdict in entry.verdicts])
    rewards = {text_digest(response.text): response.reward for response in record.responses}
    answers = list(ranks)
    pairs = strict_pairs([ranks[answer] for answer in answers])
    return [rewards[answers[better]] > rewards[answers[worse]] for better, worse in pairs]


def _people_agree(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """Of the pairs of answers that two people have compared, the share on which they say the same; said as well. None if no two
    have."""
    same = [
        _order(one.ratings, a, b) == _order(other.ratings, a, b)
        for entry in entries
        for one, other in itertools.combinations(entry.verdicts, 2)
        for a, b in itertools.combinations(entry.answers, 2)
    ]
    if not same:
        return None
    say(f"people agree with each other on {sum(same) / len(same):.1%} of {len(same)} pairs")
    return {"pairs": len(same), "agreement": sum(same) / len(same)}


def _order(ratings: Mapping[str, int], one: str, other: str) -> int:
    return (ratings[one] > ratings[other]) - (ratings[one] < ratings[other])
