"""What a run needs, said before it begins: downloads, local data, judges, time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mmrlhf_jax.pages.parts import duration
from mmrlhf_jax.progress import counted
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.needs import hub_cache, workload
from mmrlhf_jax.suite.needs.downloads import downloads, size_of
from mmrlhf_jax.suite.needs.workload import FRAME, PROMPT, READ, USUAL, WRITTEN, Workload
from mmrlhf_jax.suite.task import Task


def lines(
    tasks: Sequence[Task], local: Mapping[str, Local], judge: str | None, limit: int | None, video_frames: int
) -> Iterator[str]:
    """What is local and what must be downloaded; how much has to be answered and judged, by whom, and how long that may take.

    `limit`: how many documents of a task are taken at most; None: all.
    """
    own = [task for task in tasks if task.name in local]
    cached = [task for task in tasks if task.name not in local and hub_cache.has(task)]
    work = workload.of_all(tasks, local, limit, video_frames)
    yield f"{counted(len(tasks), 'task')} with about {counted(work.documents, 'document')}"
    if work.uncounted:
        yield f"  not counted, because nobody knows how many documents they have: {', '.join(work.uncounted)}"
    if own:
        yield f"  local data (--data): {_names(own)}"
    if cached:
        yield f"  in the hub's cache: {_names(cached)}"
    yield from _downloads(left := [task for task in tasks if task not in own and task not in cached])
    yield from _judged(tasks, work, judge)
    is_judged = judge is not None and any(task.judge != "none" for task in tasks)
    yield from _time(work, video_frames, (["downloads"] if left else []) + (["the judge"] if is_judged else []))


def _downloads(tasks: Sequence[Task]) -> Iterator[str]:
    """The data sets of tasks with their sizes, those of unknown size, and the sum as far as it is known."""
    found = downloads(tasks)
    sizes = {each.name: each.size for each in found if each.size is not None}
    if sizes:
        named, together = ", ".join(f"{name} {size_of(size)}" for name, size in sizes.items()), size_of(sum(sizes.values()))
        yield f"  to be downloaded: {named}"
    if unknown := [each.name for each in found if each.size is None]:
        yield f"  to be downloaded, of a size that is not known here: {', '.join(unknown)}"
    if len(found) > 1 and sizes:
        more = f"at least {together}, and {counted(len(unknown), 'download')} of unknown size" if unknown else together
        yield f"  all downloads together: {more}"


def _judged(tasks: Sequence[Task], work: Workload, judge: str | None) -> Iterator[str]:
    who = "there is none (--judge): their answers are kept, and can be judged later" if judge is None else judge
    always = [task for task in tasks if task.judge == "always"]
    perhaps = [task for task in tasks if task.judge == "unparsable"]
    if always:
        yield f"  need a judge, about {counted(work.judged, 'call')}: {_names(always)}; {who}"
    if perhaps:
        most = f"at most {counted(work.perhaps, 'call')}"
        yield f"  need a judge for answers that no rule can read, {most}: {_names(perhaps)}; {who}"


def _time(work: Workload, video_frames: int, others: Sequence[str]) -> Iterator[str]:
    """How many tokens there are, and how long they may take. `others`: what takes time beside that, nobody knows how much."""
    if not work.documents:
        return
    videos = ""
    if work.videos:
        videos = f", and {FRAME * video_frames:,} more for a video of {video_frames} frames, which {work.videos:,} have"
    yield (
        f"  answers: to {counted(work.documents, 'prompt')} of about {PROMPT:,} tokens{videos}; at most {work.written:,} tokens"
        " are written, and most answers are shorter than they may be"
    )
    usual, longest = map(duration, work.writing)
    longer = f" of at most {USUAL} tokens, or up to {longest} if all are as long as they may be" if longest != usual else ""
    unknown = f" Not known: how long {' and '.join(others)} {'takes' if others == ['the judge'] else 'take'}." if others else ""
    yield (
        f"  time: {duration(work.reading)} for the prompts, and {usual} for answers{longer}. This assumes that {READ:,} tokens"
        f" a second are read and {WRITTEN:,} written, about as by a 7B model on one accelerator. With the first answers the"
        f" measured time is said.{unknown}"
    )


def _names(tasks: Sequence[Task]) -> str:
    return ", ".join(task.name for task in tasks)
