"""LLaVA-Wilder: a judge that sees the picture scores an answer beside a reference answer.

Reference: lmms-eval 0.7.3, task llava_wilder_small, whose prompt this is. The harness opens the picture's base64 text as a
file: its judge is never called, every answer has the scores -1 and -1, and the figure of any model is 100.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.suite.judges.judging import known
from mmrlhf_jax.suite.judges.question import Question, single_message
from mmrlhf_jax.suite.own.grader import Columns, Graded, Grader, check_text
from mmrlhf_jax.suite.own.replies import two_scores

TOKENS = 1024
RULES = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user question displayed"
    " above. The user asks the question on observing an image shown to you. \nPlease rate the helpfulness, relevance, accuracy,"
    " level of details of their responses. Each assistant receives an overall score on a scale of 1 to 10, where a higher score"
    " indicates better overall performance. Assume assistant 1 always receive a score of 10 and is the correct answer.\nPlease"
    " first output a single line containing only two values indicating the scores for Assistant 1 and 2, respectively. The two"
    " scores are separated by a space.\nIn the subsequent line, please provide a comprehensive explanation of your evaluation,"
    " avoiding any potential bias and ensuring that the order in which the responses were presented does not affect your"
    " judgment."
)


class Wilder(Grader):
    """100 times the mean score of the answers over that of the reference answers."""

    metrics = ("gpt_eval_llava_all",)
    reference = "Answer"

    def check(self, row: Columns, where: str) -> None:
        check_text(row, "Question", where)
        check_text(row, "Answer", where)

    def prompt(self, row: Columns) -> str:
        return row["Question"]

    def questions(self, document: str, row: Columns, answer: str) -> tuple[Question, ...]:
        text = (
            f"[Question]\n{row['Question']}\n\n[Assistant 1]\n{row['Answer']}\n\n[End of Assistant 1]\n\n"
            f"[Assistant 2]\n{answer}\n\n[End of Assistant 2]\n\n[System]\n{RULES}\n\n"
        )
        picture = {"type": "image_url", "image_url": {"url": _png(row["image"], f"document {document}")}}
        return (single_message(document, [{"type": "text", "text": text}, picture], TOKENS),)

    def grade(self, row: Columns, answer: str, replies: Sequence[str]) -> Graded:
        reference, score = known(two_scores(replies[0]))
        return Graded({"gpt_eval_llava_all": 100 * score / reference}, {"gpt_eval_llava_all": reference})


def _png(data: bytes, where: str) -> str:
    """A picture's file as the URL of a PNG file with the same pixels. UserError for what is no picture."""
    file = io.BytesIO()
    decode_image(data, where).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
