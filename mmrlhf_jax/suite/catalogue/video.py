"""Videos: multiple choice, and descriptions that a judge scores.

References: lmms-eval 0.7.3, `tasks/videomme`, `tasks/videochatgpt` and `tasks/video_detail_description`.
"""

from __future__ import annotations

from mmrlhf_jax.suite.task import Benchmark, Data, Row, Task, single

_VIDEO = "video"
_VIDEO_MME_FILES = ("videomme/data/{videoID}.mp4",)
_CHATGPT_FILES = ("videochatgpt/Test_Videos/{video_name}.mp4",)
_CHATGPT_VIDEOS = 11_300_000_000


def _video_mme(name: str, title: str, harness_task: str, files: tuple[str, ...]) -> Task:
    return Task(
        name=harness_task,
        harness_task=harness_task,
        data=Data("lmms-eval/Video-MME", None, "test", 2700, 101_000_000_000, files),
        rows=(Row(name, title, ("videomme_perception_score",), _VIDEO),),
        media="video",
        judge="none",
        max_new_tokens=16,
        columns={
            **dict.fromkeys(("videoID", "question_id", "question"), "text"),
            "options": "list of 4 texts",
            "answer": "letter",
            "duration": "short, medium or long",
            **dict.fromkeys(("domain", "sub_category", "task_type"), "one of the names in lmms_eval/tasks/videomme/utils.py"),
        },
    )


VIDEO_MME = Benchmark(
    "video_mme",
    "Video-MME",
    (
        # Where a video has no file of subtitles, the prompt says so.
        _video_mme("video_mme_w", "Video-MME w", "videomme_w_subtitle", (*_VIDEO_MME_FILES, "videomme/subtitle/{videoID}.srt")),
        _video_mme("video_mme_wo", "Video-MME wo", "videomme", _VIDEO_MME_FILES),
    ),
)

_CHATGPT_COLUMNS = {
    "video_name": "text",
    "question": "text",
    "answer": "text",
    **dict.fromkeys(("question_1", "question_2"), "text; None, as text, where it is not used"),
}


def _videochatgpt(kind: str, config: str, documents: int, scores: tuple[str, ...], calls: float) -> Task:
    """Judge's scores from 0 to 5. The row of the paper's table is taken to be the mean of the five."""
    return Task(
        name=f"videochatgpt_{kind}",
        harness_task=f"videochatgpt_{kind}",
        data=Data("lmms-eval/VideoChatGPT", config, "test", documents, _CHATGPT_VIDEOS, _CHATGPT_FILES),
        rows=tuple(
            Row(
                f"videochatgpt_{score}",
                f"VideoChatGPT {score.replace('_', ' ')}",
                (f"gpt_eval_score_{score}",),
                _VIDEO,
                unit="of 5",
                full=5.0,
                part_of="videochatgpt",
            )
            for score in scores
        ),
        media="video",
        judge="always",
        max_new_tokens=1024,
        columns=_CHATGPT_COLUMNS,
        judge_calls=calls,
    )


VIDEOCHATGPT = Benchmark(
    "videochatgpt",
    "VideoChatGPT",
    (
        _videochatgpt("gen", "Generic", 1996, ("correctness", "detailed_orientation", "context"), 3),
        _videochatgpt("temporal", "Temporal", 499, ("temporal",), 1),
        # Two questions about a video have one call.
        _videochatgpt("consistency", "Consistency", 998, ("consistency",), 0.5),
    ),
)

VIDEO_DC = Task(
    name="video_dc499",
    harness_task="video_dc499",
    data=Data("lmms-lab/VideoDetailDescription", None, "test", 499, None, _CHATGPT_FILES),
    rows=(Row("video_dc", "VideoDC", ("gpt_eval_score",), _VIDEO, unit="of 5", full=5.0),),
    media="video",
    judge="always",
    max_new_tokens=None,
    columns=_CHATGPT_COLUMNS,
)

BENCHMARKS = (VIDEO_MME, VIDEOCHATGPT, single("VideoDC", VIDEO_DC))
