"""Rewards of a running `mmrlhf serve` for trainers of other projects: OpenRLHF, verl, ms-swift and TRL.

This file needs only httpx and may be copied. The server's address and key are MMRLHF_REWARD_URL and MMRLHF_API_KEY. A
response is judged beside the picture of its record: by the record's id, if the server was started with `--data`, else by the
question and the pictures themselves. A reward that cannot be had raises `RewardError`, or is None for TRL; it is never a
number.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json  # noqa: TID251  (this file stands alone)
import logging
import math
import os
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import httpx

ID_COLUMNS = ("record_id", "id")
IMAGE_TAG = "<image>"
AT_A_TIME = 64  # requests of one event loop that are under way at a time, of all calls together
MOST_RESPONSES = 64  # of one request; the server refuses more
FIRST_WAIT, LONGEST_WAIT = 2.0, 30.0  # seconds before a request is sent again; each wait is twice as long as the last one
FAILED = {408, 409, 500, 502, 504}  # tried again, a few times
BUSY = {429, 503}  # waited for
REFUSED = {400, 404, 413, 415, 422}  # because of what was sent: other prompts may be accepted
PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"}

logger = logging.getLogger(__name__)


class RewardError(RuntimeError):
    """The server gave no reward. `refused`: because of this prompt or its responses."""

    def __init__(self, message: str, *, refused: bool = False):
        super().__init__(message)
        self.refused = refused


class RewardClient:
    """A client for one server. `settings` are fields of `/v1/rewards`: critique, n, temperature, seed, max_critique_tokens.

    A request that fails is sent again, `tries` times in all; a server that is full or starting is waited for, `patience`
    seconds at most.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 600.0,
        tries: int = 5,
        patience: float = 1800.0,
        **settings: Any,
    ):
        self._url = (url or os.environ.get("MMRLHF_REWARD_URL") or "http://127.0.0.1:8000").rstrip("/")
        key = key or os.environ.get("MMRLHF_API_KEY")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._timeout, self._tries, self._patience, self._settings = timeout, tries, patience, settings

    async def rewards(
        self,
        responses: Sequence[str],
        *,
        record_id: str | None = None,
        question: str | Sequence[Mapping[str, Any]] = "",
        images: Sequence[Any] = (),
    ) -> list[float]:
        """The rewards of responses to one prompt: a record's, or `question` with `images`.

        A question is a text or the parts of a chat message. An image is bytes, a PIL image, a data URL, the name of a file, or
        an object with `bytes` or `path`; images stand where the question has `<image>` or an image part, else before it.
        """
        prompt = _by_id(record_id) if record_id is not None else _about(question, images)
        return await self._of_prompt(prompt, responses)

    async def of_each(self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> list[float | RewardError]:
        """The reward of each response to its prompt (fields of `/v1/rewards`), or why there is none. Responses to equal prompts
        go together, so that their picture is sent and encoded once."""
        same: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            same.setdefault(json.dumps(prompt, sort_keys=True), []).append(place)
        firsts = [(places, first) for places in same.values() for first in range(0, len(places), MOST_RESPONSES)]
        groups = [places[first : first + MOST_RESPONSES] for places, first in firsts]

        async def one(places: Sequence[int]) -> Sequence[float | RewardError]:
            try:
                return await self._of_prompt(prompts[places[0]], [responses[place] for place in places])
            except RewardError as error:
                return [error] * len(places)

        values = await asyncio.gather(*map(one, groups))
        by_place = {place: value for places, found in zip(groups, values) for place, value in zip(places, found)}
        return [by_place[place] for place in range(len(responses))]

    async def of_all(self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> list[float]:
        """As `of_each`; RewardError if one is missing."""
        found = await self.of_each(prompts, responses)
        for each in found:
            if isinstance(each, RewardError):
                raise each
        return [each for each in found if not isinstance(each, RewardError)]

    async def _of_prompt(self, prompt: Mapping[str, Any], responses: Sequence[str]) -> list[float]:
        reply = await self.post("/v1/rewards", {**prompt, "responses": list(responses), **self._settings})
        try:
            found = [each["reward"] for each in reply["data"]]
        except (KeyError, TypeError):
            raise RewardError(f"{self._url}/v1/rewards: the reply has no rewards; is this mmrlhf serve?") from None
        return _checked(found, len(responses))

    async def post(self, path: str, body: Any) -> Any:
        """The reply to a request, when it is its turn."""
        async with _turn(), httpx.AsyncClient(timeout=self._timeout, headers=self._headers) as client:
            tried, patience = 0, time.monotonic() + self._patience
            while True:
                try:
                    reply = await client.post(f"{self._url}{path}", json=body)
                except httpx.TransportError as error:
                    reply, reason = None, f"{type(error).__name__}: {error}"
                else:
                    if reply.status_code == 200:
                        return _json_of(reply, f"{self._url}{path}")
                    reason = f"{reply.status_code}: {reply.text[:300]}"
                again, wait = self._again(reply, tried, patience)
                if not again:
                    refused = reply is not None and reply.status_code in REFUSED
                    raise RewardError(f"{self._url}{path}: {reason}", refused=refused)
                tried += reply is None or reply.status_code not in BUSY
                await asyncio.sleep(wait)

    def _again(self, reply: httpx.Response | None, tried: int, patience: float) -> tuple[bool, float]:
        """(whether a request is sent again, after how many seconds)."""
        wait = min(FIRST_WAIT * 2**tried, LONGEST_WAIT)
        if reply is not None and reply.headers.get("x-should-retry") == "false":
            return False, wait
        if reply is not None and reply.status_code in BUSY:
            asked = reply.headers.get("retry-after", "")
            wait = min(float(asked), LONGEST_WAIT) if asked.isdecimal() else wait
            return time.monotonic() + wait < patience, wait
        return tried + 1 < self._tries and (reply is None or reply.status_code in FAILED), wait


# OpenRLHF: --reward.remote_url reward_client.py ------------------------------------------------------------------------


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any) -> dict[str, Any]:
    """OpenRLHF's function. A label is a record's id, or an object (or its JSON) with `id`, or with `question` and `images`."""
    import torch

    columns = {"query": list(queries), "prompts": list(prompts), "labels": list(labels)}
    bodies = [
        {name: values[first : first + MOST_RESPONSES] for name, values in columns.items()}
        for first in range(0, len(queries), MOST_RESPONSES)
    ]

    async def rewards() -> list[float]:
        replies = await asyncio.gather(*(RewardClient().post("/get_reward", body) for body in bodies))
        pairs = zip(replies, bodies, strict=True)
        return [value for reply, body in pairs for value in _checked(reply["rewards"], len(body["query"]))]

    found = torch.tensor(_now(rewards()))
    return {"rewards": found, "scores": found, "extra_logs": {}}


# verl: reward.custom_reward_function.path reward_client.py, name compute_score -----------------------------------------


async def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any) -> float:
    """verl's function. `extra_info` has the record's id (`record_id` or `id`), or `question` and `images`."""
    said = extra_info or {}
    record_id = _id_of(said)
    if record_id is None and said.get("question") is None:
        raise RewardError(f"extra_info has no record's id ({' or '.join(ID_COLUMNS)}) and no question, but {sorted(said)}")
    prompt = _by_id(record_id) if record_id is not None else _about(said["question"], _listed(said.get("images")))
    (reward,) = await RewardClient().of_all([prompt], [solution_str])
    return reward


# TRL: GRPOTrainer(reward_funcs=[trl_reward]) ---------------------------------------------------------------------------


async def trl_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """TRL's function. The data set has a column `record_id` or `id`, or pictures in `image`, `images` or the prompts.

    TRL leaves out of a group's baseline what has None: responses that the server refuses. RewardError if it refuses all of
    them, or fails.
    """
    rows = _rows(columns, len(completions))
    asked = [_prompt(row, _last(prompt, "user")) for row, prompt in zip(rows, prompts, strict=True)]
    found = await RewardClient().of_each(asked, [_text(_last(each, "assistant")) for each in completions])
    errors = [each for each in found if isinstance(each, RewardError)]
    for error in errors:
        if not error.refused or len(errors) == len(found):
            raise error
    if errors:
        logger.warning("%d of %d responses have no reward: %s", len(errors), len(found), errors[0])
    return [None if isinstance(each, RewardError) else each for each in found]


# ms-swift: --external_plugins reward_client.py --reward_funcs mmrlhf ---------------------------------------------------

try:
    from swift.rewards import AsyncORM, orms
except ImportError:  # this process is no trainer of ms-swift
    pass
else:

    class MmrlhfReward(AsyncORM):
        """The data set has a column `record_id` or `id`, or `images` beside its messages."""

        async def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
            rows = _rows(columns, len(completions))
            asked = [_prompt(row, _last(row.get("messages") or "", "user")) for row in rows]
            return await RewardClient().of_all(asked, list(completions))

    orms["mmrlhf"] = MmrlhfReward


# Prompts: rows of a trainer's columns to fields of /v1/rewards ---------------------------------------------------------


def _rows(columns: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The values of the columns that matter here, row by row."""
    names = [name for name in (*ID_COLUMNS, "images", "image", "videos", "messages") if columns.get(name) is not None]
    return [{name: columns[name][place] for name in names} for place in range(count)]


def _prompt(row: Mapping[str, Any], question: Any) -> dict[str, Any]:
    """The prompt of a row: its record, or the question with its pictures."""
    if (record_id := _id_of(row)) is not None:
        return _by_id(record_id)
    if _listed(row.get("videos")):
        raise RewardError("a video is judged by its record's id alone; add a column record_id")
    return _about(question, _listed(row.get("images")) or _listed(row.get("image")))


def _id_of(row: Mapping[str, Any]) -> str | None:
    return next((str(row[name]) for name in ID_COLUMNS if row.get(name) is not None), None)


def _listed(value: Any) -> list[Any]:
    """A column's value as a list: of several things, of one, or of none."""
    if value is None:
        return []
    several = isinstance(value, list | tuple) or hasattr(value, "tolist")  # or an array of NumPy
    return [each for each in value if each is not None] if several else [value]


def _by_id(record_id: str) -> dict[str, Any]:
    return {"record_id": str(record_id)}


def _last(messages: Any, role: str) -> Any:
    """The content of a conversation's only message of a role. A text is the content itself."""
    if isinstance(messages, str):
        return messages
    found = [message["content"] for message in messages if message["role"] == role]
    if role == "user" and len(found) > 1:
        raise RewardError(f"a reward is of a response to one question; this prompt has {len(found)} messages of the user")
    return found[-1] if found else ""


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content or ())


def _about(question: str | Sequence[Mapping[str, Any]], images: Sequence[Any]) -> dict[str, Any]:
    """The message of a question with its images in their places."""
    if isinstance(question, str):
        texts = question.split(IMAGE_TAG)
        parts: list[Mapping[str, Any]] = [{"type": "text", "text": texts[0]}]
        for text in texts[1:]:
            parts += [{"type": "image"}, {"type": "text", "text": text}]
    else:
        parts = list(question)
    own = [_image_in(part) for part in parts]
    places = [place for place, part in enumerate(parts) if part["type"] != "text"]
    empty = [place for place in places if own[place] is None]
    if not empty and all(image is None for image in own):
        content = [_image_part(image) for image in images]
    elif len(empty) in (0, len(images)):
        content = []
        for place, image in zip(empty, images):
            own[place] = image
    else:
        raise RewardError(f"the question has places for {len(empty)} images, and there are {len(images)}")
    for part, image in zip(parts, own):
        if image is not None:
            content.append(_image_part(image))
        elif part["text"]:
            content.append({"type": "text", "text": part["text"]})
    return {"messages": [{"role": "user", "content": content}]}


def _image_in(part: Mapping[str, Any]) -> Any:
    """What a part has of an image: itself, or None if it is another's place, or a text."""
    if part["type"] not in ("text", "image", "image_url"):
        raise RewardError(f"a question has texts and images, not {part['type']!r}; give its record's id")
    url = part.get("image_url")
    return url["url"] if isinstance(url, Mapping) else url or part.get("image")


def _image_part(image: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": _data_url(image)}}


def _data_url(image: Any) -> str:
    if isinstance(image, Mapping):  # as the data sets of Hugging Face and ms-swift have it
        image = image.get("bytes") or image.get("path") or image
    if isinstance(image, str) and image.startswith("data:"):
        return image
    if isinstance(image, bytes):
        data = image
    elif isinstance(image, str | os.PathLike):
        try:
            with open(image, "rb") as file:
                data = file.read()
        except OSError as error:
            raise RewardError(f"an image cannot be read: {error}") from None
    elif hasattr(image, "save"):
        file = io.BytesIO()
        (image if image.mode in PNG_MODES else image.convert("RGB")).save(file, "PNG")
        data = file.getvalue()
    else:
        raise RewardError(f"an image is bytes, a PIL image, a data URL or a file, not {type(image).__name__}")
    return f"data:{_kind(data)};base64,{base64.b64encode(data).decode()}"


def _kind(data: bytes) -> str:
    kinds = {b"\xff\xd8": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
    return "image/" + next((kind for start, kind in kinds.items() if data.startswith(start)), "png")


# Replies ---------------------------------------------------------------------------------------------------------------


def _json_of(reply: httpx.Response, address: str) -> Any:
    try:
        return reply.json()
    except ValueError:
        raise RewardError(f"{address}: the reply is no JSON; is this mmrlhf serve?") from None


def _checked(values: Any, count: int) -> list[float]:
    """The rewards as numbers. RewardError unless there is a finite one for each response."""
    if len(values) != count:
        raise RewardError(f"{len(values)} rewards for {count} responses")
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in values):
        raise RewardError(f"a reward is not a finite number: {values}")
    return [float(each) for each in values]


_turns: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


def _turn() -> asyncio.Semaphore:
    """What lets AT_A_TIME requests of the running event loop go at a time. verl asks for each of thousands of responses in a
    call of its own, and a server closes connections that are too many."""
    for loop in list(_turns):
        if loop.is_closed():
            _turns.pop(loop, None)
    return _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(AT_A_TIME))


def _now(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine, also in a thread whose event loop is running."""
    found: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            found.append((asyncio.run(work), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    result, error = found[0]
    if error is not None:
        raise error
    return result
