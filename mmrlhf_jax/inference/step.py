"""The lines of a step that comes before a job's own, such as critiques from a server before their rewards.

They are kept in a folder of their own beside the output until that is written. So they outlive a kill, and also a second step
that ends with an error, or is done again in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmrlhf_jax.files import hidden_beside
from mmrlhf_jax.inference.jobs import ALONE, Share, job_key, remove_kept
from mmrlhf_jax.inference.journal import Journal
from mmrlhf_jax.records import RankedRecord


class Step(Journal):
    """`job` is a text with everything that the lines depend on besides the data."""

    def __init__(
        self,
        examples,
        out,
        job: str,
        *,
        share: Share = ALONE,
        is_line: Callable[[RankedRecord, Any], bool],
    ):
        folder = hidden_beside(out, f"{job_key(job, examples)}.step")
        has_line = lambda index, line: 0 <= index < len(examples) and is_line(examples.records[index], line)
        super().__init__(folder, share.process, has_line)

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Those of these records that no process has stored a line of."""
        done = self.refresh()
        return [index for index in indices if index not in done]

    def clear(self) -> None:
        """Remove the lines, when the output is there."""
        remove_kept(self._folder)
