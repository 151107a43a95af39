"""Messages of a request to a conversation: texts that stay texts, and media in their places."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.turns import Turn
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.places import IMAGE_TAG, VIDEO_TAG
from mmrlhf_jax.records import RankedRecord, Response
from mmrlhf_jax.serving import media
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.limits import Limits
from mmrlhf_jax.serving.protocol import ImagePart, Message, TextPart


@dataclasses.dataclass(frozen=True)
class Conversation:
    """The turns of a request with their media: images, or the frames of one video, which are all that there is of it. `low`:
    every image is shown in low detail."""

    turns: tuple[Turn, ...]
    images: tuple[bytes, ...] = ()
    frames: tuple[bytes, ...] = ()
    low: bool = False
    rate: float | None = None  # frames per second

    @property
    def example(self) -> Example:
        """The media as those of a record, which has no texts."""
        names = tuple(f"{number}" for number in range(len(self.images)))
        count = len(self.frames)
        video = VideoLayout(count, numbers=tuple(range(count)), total=count, rate=self.rate) if count else None
        record = RankedRecord("request", "", (), names, "video" if count else None)
        return Example(record, self.images, self.frames, video)

    def question(self, responses: Sequence[Response]) -> Example:
        """The single user turn as a record's prompt, with these responses. ApiError if there is anything else."""
        asked = self.turns
        if len(asked) != 1 or asked[0].role != "user":
            raise ApiError(400, "messages: a reward is of responses to one user message, without others", param="messages")
        if self.low:
            raise ApiError(400, "messages: a reward is given with the whole picture; leave out detail low", param="messages")
        tag = VIDEO_TAG if self.frames else IMAGE_TAG
        prompt, places = asked[0].prompt, []
        if not isinstance(prompt, str):
            texts, prompt = prompt, prompt[0]
            for text in texts[1:]:
                places.append(len(prompt))
                prompt += tag + text
        record = dataclasses.replace(self.example.record, prompt=prompt, responses=tuple(responses), media_places=tuple(places))
        return dataclasses.replace(self.example, record=record)


def read_conversation(messages: Sequence[Message], limits: Limits) -> Conversation:
    """The conversation of a request's messages; its media are decoded by nobody yet. ApiError for what is not allowed."""
    if len(messages) > limits.messages:
        raise ApiError(400, f"messages: {len(messages)} of them; at most {limits.messages} are allowed", param="messages")
    turns: list[Turn] = []
    images: list[bytes] = []
    frames: list[list[bytes]] = []
    details: set[str] = set()
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        role: Literal["system", "user", "assistant"] = "system" if message.role == "developer" else message.role
        if role == "system" and number:
            raise ApiError(400, f"{where}: only the first message may be the system's", param=where)
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        if role != "user" and any(not isinstance(part, TextPart) for part in parts):
            raise ApiError(400, f"{where}: only messages of the user have media", param=where)
        texts: list[list[str]] = [[]]  # what stands before, between and behind the media
        for place, part in enumerate(parts):
            param = f"{where}.content.{place}"
            if isinstance(part, TextPart):
                texts[-1].append(part.text)
                continue
            if isinstance(part, ImagePart):
                images.append(media.picture(part.image_url.url, limits, f"{param}.image_url"))
                details.add("low" if part.image_url.detail == "low" else "full")
            else:
                frames.append(media.frames(part.video_url.url, limits, f"{param}.video_url"))
            texts.append([])
            if len(images) > limits.media:
                raise ApiError(400, f"messages: more than {limits.media} pictures", param="messages")
            if len(frames) > 1 or (frames and images):
                raise ApiError(400, "messages: a conversation may have pictures or one video", param="messages")
        joined = ["".join(each) for each in texts]
        turns.append(Turn(role, joined[-1] if not any(joined[:-1]) else tuple(joined), len(joined) - 1))
    if turns[-1].role == "assistant":
        raise ApiError(400, "messages: the last one must not be the assistant's", param="messages")
    if len(details) > 1:
        raise ApiError(400, "messages: all pictures must have the same detail", param="messages")
    text = sum(len(each) for turn in turns for each in ((turn.prompt,) if isinstance(turn.prompt, str) else turn.prompt))
    if text > limits.text:
        raise ApiError(400, f"messages: {text} characters; at most {limits.text} are allowed", param="messages")
    one_video = tuple(frames[0]) if frames else ()
    media.check_together([*images, *one_video], limits, "messages")
    return Conversation(tuple(turns), tuple(images), one_video, low="low" in details, rate=limits.frames_per_second)
