"""The `mmrlhf data` verbs."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import shlex

import numpy as np

from mmrlhf_jax import strict_json
from mmrlhf_jax.commands.options import preference
from mmrlhf_jax.data import stats as figures
from mmrlhf_jax.data.builder import build as build_data
from mmrlhf_jax.data.checks import summarise_findings
from mmrlhf_jax.data.encode import GroupEncoder, make_encoder
from mmrlhf_jax.data.index import beyond_positions
from mmrlhf_jax.data.margin_summary import every_pair, margins_of, scale_of, summarise, without_reward
from mmrlhf_jax.data.margin_text import agreement, ends, gate, left_out
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.overlay import with_human_margins
from mmrlhf_jax.data.pair_margins import lacking_pair_margins
from mmrlhf_jax.data.rewarded import scored_records
from mmrlhf_jax.data.sources import drop_contradictions
from mmrlhf_jax.data.validate import validate as check
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.pages import card_page, margins_page, stats_page
from mmrlhf_jax.progress import StagedProgress, say, track
from mmrlhf_jax.records import RankedRecord


def build(
    source: str,
    out: str,
    media_root: str | None,
    video_frames: int,
    jobs: int | None,
    beam: str | None,
    contradictions: str,
    rank_by: str | None = None,
    video_fps: float | None = None,
    frames_per_second: float | None = None,
) -> None:
    """`beam` are options of Apache Beam, or None for processes on this machine. `contradictions` is "error" or "drop",
    `rank_by` a score's name."""
    if contradictions not in ("error", "drop"):
        raise UserError(f"--contradictions {contradictions!r}: give error or drop")
    left_out: list[UserError] = []
    built = build_data(
        source,
        out,
        media_root,
        video_frames=video_frames,
        jobs=jobs,
        beam_options=None if beam is None else shlex.split(beam),
        on_error=drop_contradictions(left_out.append) if contradictions == "drop" else None,
        rank_by=rank_by,
        video_fps=video_fps,
        frames_per_second=frames_per_second,
        on_note=say,
        progress=StagedProgress(),
    )
    for error in left_out:
        say(str(error))
    if found := summarise_findings(built.records, source):
        say(found)
    if unranked := sum(_has_scores_alone(record) for record in built.records):
        say(
            f"{unranked} groups have scores but no ranks, so they give no pair; rank them with --rank-by mean_score (or a name)"
        )
    responses = sum(len(record.responses) for record in built.records)
    pairs = sum(len(record.pairs()) for record in built.records)
    dropped = f"; {len(left_out)} contradictory groups left out" if left_out else ""
    say(f"{out}: {len(built)} groups, {responses} responses, {pairs} strictly ordered pairs{dropped}")


def _has_scores_alone(record: RankedRecord) -> bool:
    return all(response.rank is None for response in record.responses) and any(response.scores for response in record.responses)


def validate(
    source: str,
    media_root: str | None,
    video_frames: int,
    max_text: int,
    most: int,
    as_json: bool,
    video_fps: float | None = None,
    frames_per_second: float | None = None,
) -> bool:
    """Print the findings. Returns whether there are any."""
    how = dict(video_frames=video_frames, video_fps=video_fps, frames_per_second=frames_per_second, max_text=max_text)
    report = check(source, media_root, **how, progress=StagedProgress())
    kinds = collections.Counter(finding.kind for finding in report.findings)
    if as_json:
        strict_json.print_figures(dataclasses.asdict(report) | {"kinds": kinds})
        return bool(report.findings)
    print(f"records read: {report.records}; findings: {len(report.findings)}")
    for kind, count in kinds.most_common():
        print(f"\n{kind}: {count}")
        messages = [finding.message for finding in report.findings if finding.kind == kind]
        print("".join(f"  {message}\n" for message in messages[:most]), end="")
        if count > most:
            print(f"  ... and {count - most} more (--most, --json)")
    for remark in report.remarks:
        print(f"\nnote: {remark}")
    for note, count in report.notes.most_common():
        print(f"\nnote: {count} {note}; they give no pair")
    return bool(report.findings)


def stats(
    data: str,
    model: str | None,
    media_root: str | None,
    video_frames: int,
    slots: int,
    template: str | None,
    out: str,
    as_json: bool,
    video_fps: float | None = None,
    frames_per_second: float | None = None,
) -> None:
    encoder, lengths_from = (
        figures.estimated_encoder(),
        f"estimated from words and {figures.ESTIMATED.title}'s tiles; name a --model",
    )
    if model is not None:
        encoder, lengths_from = _encoder_of(model, template), f"those of {model}"
    examples = open_examples(data, media_root, video_frames, video_fps=video_fps, frames_per_second=frames_per_second)
    sizes = figures.measure(examples, encoder, track)
    layouts = [examples.layout(i) for i in range(len(examples))]
    too_long = beyond_positions(sizes, range(len(sizes)), examples, encoder) > 0
    found = figures.summarise(examples.records, layouts, sizes, slots, too_long)
    if as_json:
        strict_json.print_figures(found | {"lengths_from": lengths_from})
        return
    write_atomically(out, stats_page(data, found, sizes, slots, lengths_from).encode())
    fill = found["packing"][str(slots)]["fill"]
    say(
        f"{data}: {found['groups']} groups, {found['pairs']} pairs; rows of {slots} would be {100 * fill:.1f} % full; see {out}"
    )


def _encoder_of(model: str, template: str) -> GroupEncoder:
    # Imported here, because these modules import transformers and jax, which the other verbs do not need.
    from mmrlhf_jax.huggingface.hub import local_directory
    from mmrlhf_jax.huggingface.model_config import read_config
    from mmrlhf_jax.huggingface.tokenizer import load_tokenizer

    directory = local_directory(model)
    return make_encoder(load_tokenizer(directory), read_config(directory), template)


def show(
    data: str,
    record_id: str,
    media_root: str | None,
    video_frames: int,
    out: str,
    video_fps: float | None = None,
    frames_per_second: float | None = None,
) -> None:
    examples = open_examples(data, media_root, video_frames, video_fps=video_fps, frames_per_second=frames_per_second)
    ids = [record.id for record in examples.records]
    if record_id not in ids:
        near = difflib.get_close_matches(record_id, ids, n=3, cutoff=0.5) or ids[:3]
        raise UserError(f"{data}: no record {record_id!r}; there is {', '.join(map(repr, near))}")
    write_atomically(out, card_page(examples[ids.index(record_id)]).encode())
    say(f"see {out}")


def margins(
    data: str,
    rewards: str | None,
    source: str,
    media_root: str | None,
    out: str,
    as_json: bool,
    beta: float | None = None,
    w: float | None = None,
    k: str | None = None,
    negative_margins: str | None = None,
) -> None:
    """`rewards` is a score file, or None for the numbers that the data has. `beta`, `w`, `k` and `negative_margins` are
    settings of the objective; None: its defaults."""
    objective = preference(beta, w, k, margins=source, negative_margins=negative_margins)
    if rewards is not None and source != "rewards":
        raise UserError(f"--margins {source} takes no rewards; leave --rewards {rewards} out")
    examples = open_examples(data, media_root)
    if source == "human_scores":
        records = with_human_margins(examples).records
    elif rewards is not None:
        records = [scored.record for scored in scored_records(examples, rewards, data)]
    else:
        records = examples.records
    if source == "stored":
        lacking_pair_margins(examples, data)  # refuses what is no number
    found = margins_of(records, source)
    every = every_pair(found)
    named = f"{data} with {rewards}" if rewards is not None else data
    if not len(every):
        raise UserError(f"{named}: no record has a strictly ordered pair (of different ranks), so that there are no margins")
    if not np.isfinite(every).any():
        raise UserError(f"{named}: none of {len(every)} strictly ordered pairs has a margin from {source}; {_INSTEAD[source]}")
    unrewarded = without_reward(records) if source == "rewards" else 0
    summary = summarise(found, scale_of(objective, found, named), unrewarded=unrewarded)
    if as_json:
        strict_json.print_figures({"data": data, "rewards": rewards, "margins": source} | summary)
        return
    write_atomically(out, margins_page(named, summary).encode())
    for line in (agreement(summary), ends(summary), gate(summary), left_out(summary)):
        if line is not None:
            say(line)
    say(f"see {out}")


_INSTEAD = {
    "rewards": "`mmrlhf score` it, and give the file as --rewards, or --margins human_scores",
    "human_scores": "take --margins rewards",
    "stored": "take --margins rewards or human_scores",
}
