"""The policy that answers the benchmarks' requests: a model in this process, or one behind an endpoint of OpenAI's protocol."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.media import read_video_frames
from mmrlhf_jax.data.videos import video_layout
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.answerable import Prompts, sound_and_refused
from mmrlhf_jax.inference.endpoint import Endpoint
from mmrlhf_jax.inference.endpoint import Request as EndpointRequest
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.from_endpoint import checked
from mmrlhf_jax.inference.prompts import Prompt
from mmrlhf_jax.places import IMAGE_TAG, TAG, VIDEO_TAG
from mmrlhf_jax.progress import Progress
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.suite.request import Request

# Requests that are answered together: a model's slots run empty at the end of each such part, and its media are in memory.
AT_ONCE, BYTES_AT_ONCE = 512, 2**29
VIDEOS_KEPT = 256  # of which the frames, a few MB each, are in memory


class PolicyAnswer(NamedTuple):
    """A policy's answer, or the reason why there is none."""

    text: str = ""
    finish_reason: str = "stop"
    error: str | None = None


class Policy(Protocol):
    """Who answers. `made_with` is what answers depend on besides the requests and what tells the model from others
    (`Model.identity`): template, dtype."""

    made_with: Mapping[str, Any]

    def answers(self, requests: Iterable[Request], progress: Progress) -> Iterator[tuple[Request, PolicyAnswer]]:
        """Yield every request with its answer, in any order, as they are finished. Requests are taken when their turn comes.

        UserError for what concerns every request.
        """
        ...


class EnginePolicy:
    """A model in this process."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.made_with = {"template": engine.template, "dtype": str(engine.dtype)}

    def answers(self, requests: Iterable[Request], progress: Progress) -> Iterator[tuple[Request, PolicyAnswer]]:
        for part in _parts(requests):
            for _, alike in itertools.groupby(part, key=lambda request: request.options["max_new_tokens"]):
                yield from self._answers(list(alike), progress)

    def _answers(self, requests: Sequence[Request], progress: Progress) -> Iterator[tuple[Request, PolicyAnswer]]:
        """The same for some requests with the same limit."""
        engine = self._engine
        asked = engine.asked(requests[0].options["max_new_tokens"])
        read = _Examples(requests)
        sound, refused = sound_and_refused(engine, lambda number: [Prompt(read(number))], range(len(requests)), asked)
        for number, reason in refused.items():
            progress.update()
            yield requests[number], PolicyAnswer(error=reason)
        prompts = Prompts(lambda number: Prompt(read(number)), sound)
        for place, (written,) in engine.write_each(prompts, asked, progress):
            request = requests[sound[place]]
            yield request, _ended(request, engine.decode(written.tokens), written.reason)


class EndpointPolicy:
    """A model at an address. UserError if the server does not answer, or has no such model."""

    def __init__(self, url: str, model: str | None, concurrency: int):
        self._endpoint = Endpoint(url, model, concurrency=concurrency)
        self.made_with = {"model": asyncio.run(self._endpoint.check())}

    def answers(self, requests: Iterable[Request], progress: Progress) -> Iterator[tuple[Request, PolicyAnswer]]:
        taken: list[Request] = []  # in the order of the endpoint's numbers
        refused: list[tuple[Request, str]] = []

        def asked() -> Iterator[EndpointRequest]:
            for request in requests:
                try:
                    example = checked(example_of(request))
                except UserError as error:
                    refused.append((request, str(error)))
                    continue
                taken.append(
                    dataclasses.replace(request, media=tuple(dataclasses.replace(m, data=None) for m in request.media))
                )
                yield EndpointRequest(example.record.prompt_text(), example, request.options["max_new_tokens"])

        for number, text in self._endpoint.texts(asked()):
            progress.update()
            request = taken[number]
            if text.error is not None:
                yield request, PolicyAnswer(error=text.error)
            else:
                yield request, _ended(request, text.text, text.finish_reason)
        for request, reason in refused:
            progress.update()
            yield request, PolicyAnswer(error=reason)


def example_of(request: Request) -> Example:
    """A request as an example. UserError for media that cannot be read, or that no model here takes together.

    Where all media come first and the text has as many tags as there are media, these are the places of the media, as in the
    model of lmms-eval that the paper used; other tags are text.
    """
    where = f"document {request.document}"
    images = [medium for medium in request.media if medium.kind == "image"]
    videos = [medium for medium in request.media if medium.kind == "video"]
    if len(videos) > 1 or (videos and images):
        raise UserError(f"{where}: has {len(videos)} videos and {len(images)} pictures; a prompt has pictures or one video")
    prompt = request.prompt
    tags = [match for match in TAG.finditer(prompt) if match[0] in ((VIDEO_TAG, IMAGE_TAG) if videos else (IMAGE_TAG,))]
    if any(request.texts[:-1]) and len(tags) != len(request.media):
        raise UserError(f"{where}: its text has tags of media beside the {len(request.media)} that it has")
    places = tuple(match.start() for match in tags) if len(tags) == len(request.media) else ()
    names = tuple(f"picture {number + 1}" for number in range(len(images)))
    record = RankedRecord(where, prompt, (), names, "video" if videos else None, media_places=places)
    pictures = tuple(medium.data for medium in images)
    if not videos:
        return Example(record, pictures)
    return Example(record, pictures, *_frames(videos[0].path, videos[0].digest, request.options["video_frames"]))


@functools.lru_cache(maxsize=VIDEOS_KEPT)
def _frames(path: str, digest: str, count: int) -> tuple[tuple[bytes, ...], VideoLayout]:
    """The frames of a video and their layout, kept: there are several questions about it, and a request is looked at several
    times. A file with another content has another digest."""
    return tuple(read_video_frames(path, count)), video_layout(path, count)


class _Examples:
    """The examples of requests; the last one is kept, since it is looked at several times in a row."""

    def __init__(self, requests: Sequence[Request]):
        self._requests, self._last = requests, (-1, None)

    def __call__(self, number: int) -> Example:
        if self._last[0] != number:
            self._last = number, example_of(self._requests[number])
        return self._last[1]


def _ended(request: Request, text: str, reason: str) -> PolicyAnswer:
    """The answer, up to the first of the texts at which it ends, if there are any."""
    ends = [place for stop in request.options.get("until", ()) if (place := text.find(stop)) >= 0]
    return PolicyAnswer(text[: min(ends)], "stop") if ends else PolicyAnswer(text, reason)


def _parts(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Parts of at most AT_ONCE requests and about BYTES_AT_ONCE bytes of pictures."""
    part: list[Request] = []
    size = 0
    for request in requests:
        part.append(request)
        size += sum(len(medium.data or b"") for medium in request.media)
        if len(part) >= AT_ONCE or size >= BYTES_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part
