"""The `mmrlhf data` verbs."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import shlex

from mmrlhf_jax import strict_json
from mmrlhf_jax.data import stats as figures
from mmrlhf_jax.data.builder import build as build_data
from mmrlhf_jax.data.checks import summarise_findings
from mmrlhf_jax.data.encode import GroupEncoder, make_encoder
from mmrlhf_jax.data.index import beyond_positions
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.sources import drop_contradictions
from mmrlhf_jax.data.validate import validate as check
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.pages import card_page, stats_page
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
