"""Which replies of a judge the harness's own tasks can read.

Where they cannot, they go on with -1, 0, a tie or a letter at random, which looks like a verdict. What is no verdict for one of
these readers is none for the harness either; they are stricter where the harness reads a number that does not mean a score.
(lmms-eval 0.7.3, `tasks/*/utils.py`, `tasks/mmbench/mmbench_evals.py`, `llm_judge/utils.py`.)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from mmrlhf_jax.suite.own.replies import two_scores

Reader = Callable[[str], bool]


def reader_of(harness_task: str) -> Reader:
    """What says whether a task can read a reply of its judge. KeyError for a task that has no judge."""
    for prefix, reader in _READERS.items():
        if harness_task.startswith(prefix):
            return reader
    raise KeyError(harness_task)


def scores(reply: str) -> bool:
    """The scores of two assistants."""
    return two_scores(reply) is not None


def preference(reply: str) -> bool:
    """One of the five labels in double brackets, and no other one."""
    found = set(re.findall(r"\[\[([AB<>=]+)\]\]", reply))
    return len(found) == 1 and found <= {"A>>B", "A>B", "A=B", "B>A", "B>>A"}


def score_of_five(reply: str) -> bool:
    """A Python dictionary with a `score` from 0 to 5, and nothing else."""
    try:
        found = ast.literal_eval(reply.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False
    score = found.get("score") if isinstance(found, dict) else None
    return isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 5


def zero_or_one(reply: str) -> bool:
    """The number 0 or the number 1, and not both. (The harness takes every reply with a digit 1 for right.)"""
    numbers = set(re.findall(r"\d+", reply))
    return numbers in ({"0"}, {"1"})


def option(reply: str) -> bool:
    """One letter from A to E that stands alone in a form that the harness knows. An "A" among other words may be an article."""
    words = reply.split()
    letters = [word for word in words if word.strip("().:,") in ("A", "B", "C", "D", "E")]
    return len(letters) == 1 and _OPTION.fullmatch(letters[0]) is not None and ("A" not in letters[0] or len(words) <= 3)


# A, A. A, A: A) A). (A) (A). :A :A, :A. :A) :A).
_OPTION = re.compile(r"[A-E](?:[.,:)]|\)\.)?|\([A-E]\)\.?|:[A-E](?:[,.)]|\)\.)?")


def extraction(reply: str) -> bool:
    """Any text: it is compared with the right answer."""
    return bool(reply.strip())


_READERS: dict[str, Reader] = {
    "llava_in_the_wild": scores,
    "wildvision": preference,
    "mathvista": extraction,
    "mathverse": zero_or_one,
    "mmbench": option,
    "videochatgpt": score_of_five,
    "video_dc499": score_of_five,
}
