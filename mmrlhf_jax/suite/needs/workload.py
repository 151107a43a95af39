"""How much a policy and a judge have to do for tasks, and how long that may take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.task import Task

# Tokens a second of a model of 7B parameters on one accelerator, about. They are assumed, not measured.
READ, WRITTEN = 10_000, 1_000
# Tokens of an answer that may be longer, about.
USUAL = 300
# Tokens of a prompt with its pictures, and of each frame of a video, about. They depend on the model, and on the pictures.
PROMPT, FRAME = 2_000, 200


@dataclasses.dataclass(frozen=True)
class Workload:
    """What has to be done for a task, or for several.

    Attributes:
        documents: how many answers are to be made; a document has one.
        videos: how many of these are about a video.
        read: about how many tokens their prompts have.
        written, usual: how many tokens the answers have at most, and about how many if none has more than USUAL.
        judged: about how many calls of a judge there are.
        perhaps: how many more there may be, for answers that no rule can read.
        uncounted: tasks of which nobody knows how many documents they have; they are in no other number.
    """

    documents: int = 0
    videos: int = 0
    read: int = 0
    written: int = 0
    usual: int = 0
    judged: int = 0
    perhaps: int = 0
    uncounted: tuple[str, ...] = ()

    def __add__(self, other: Workload) -> Workload:
        names = [field.name for field in dataclasses.fields(self)]
        return Workload(*(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def reading(self) -> float:
        """Seconds for prompts, at the rate READ."""
        return self.read / READ

    @property
    def writing(self) -> tuple[float, float]:
        """Seconds for answers of usual length, and for those of the greatest length, at the rate WRITTEN."""
        return self.usual / WRITTEN, self.written / WRITTEN


def workload(task: Task, local: Local | None, limit: int | None, video_frames: int) -> Workload:
    """What has to be done for a task. `local`: a user's own documents, `limit`: how many documents are taken at most."""
    documents = task.data.documents if local is None else local.documents
    if documents is None:
        return Workload(uncounted=(task.name,))
    return _of_documents(task, documents if limit is None else min(documents, limit), video_frames)


def _of_documents(task: Task, documents: int, video_frames: int) -> Workload:
    is_video = task.media == "video"
    calls = round(documents * task.judge_calls)
    return Workload(
        documents=documents,
        videos=documents if is_video else 0,
        read=documents * (PROMPT + FRAME * video_frames if is_video else PROMPT),
        written=documents * task.new_tokens,
        usual=documents * min(task.new_tokens, USUAL),
        judged=calls if task.judge == "always" else 0,
        perhaps=calls if task.judge == "unparsable" else 0,
    )


def seconds_of_answer(task: Task, video_frames: int) -> float:
    """About how long one answer takes, at the assumed rates."""
    one = _of_documents(task, 1, video_frames)
    return one.reading + one.writing[0]


def of_all(tasks: Sequence[Task], local: Mapping[str, Local], limit: int | None, video_frames: int) -> Workload:
    """What has to be done for tasks. `local`: task -> a user's own documents."""
    return sum((workload(task, local.get(task.name), limit, video_frames) for task in tasks), Workload())
