"""What is known of a video without its pixels. No jax here: data workers import it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class VideoLayout:
    """The sampled frames of a video: how many, how large, and where in the video they are.

    Attributes:
        frames: the number of sampled frames.
        size: (height, width) of a frame in pixels, as it is shown; None: not known.
        numbers: the frames' numbers in the video, counted from 0; a short video's frames may be repeated. None: not known.
        total: the number of frames of the whole video; 0: not known.
        rate: the video's frames per second, from which times follow; None: not known.
    """

    frames: int
    size: tuple[int, int] | None = None
    numbers: tuple[int, ...] | None = None
    total: int = 0
    rate: float | None = None

    @property
    def times(self) -> tuple[float, ...] | None:
        """The time of every frame in seconds, number / rate; None: not known.

        This is what the processors of Qwen's families compute, also for videos whose frames do not follow each other evenly, so
        that models have learnt it; the times at which such frames are presented may differ.
        """
        if self.numbers is None or not self.rate:
            return None
        return tuple(number / self.rate for number in self.numbers)

    @property
    def interval(self) -> float | None:
        """The mean number of seconds from a frame to the next; None: not known.

        Where the last frame of the video is taken, the first and the last tell it. Else it is the length of the video by the
        number of its sampled frames, as for those that Qwen2's processors take, whose numbers are rounded down.
        """
        if self.numbers is None or not self.rate or self.frames < 2:
            return None
        apart = self.numbers[-1] - self.numbers[0]
        reaches_end = self.numbers[-1] == self.total - 1
        return (apart / (self.frames - 1) if reaches_end else self.total / self.frames) / self.rate

    @property
    def distinct(self) -> list[int]:
        """The indices of the sampled frames without repetitions."""
        numbers = range(self.frames) if self.numbers is None else self.numbers
        return [index for index, number in enumerate(numbers) if index == 0 or number != numbers[index - 1]]

    def keep(self, indices: Sequence[int]) -> VideoLayout:
        """The video of which only the sampled frames with these indices are taken."""
        numbers = None if self.numbers is None else tuple(self.numbers[index] for index in indices)
        return dataclasses.replace(self, frames=len(indices), numbers=numbers)
