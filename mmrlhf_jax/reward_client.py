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
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

RETRIED = {408, 409, 429, 500, 502, 503, 504}
ID_COLUMNS = ("record_id", "id")


class RewardError(RuntimeError):
    """The server gave no reward."""


class RewardClient:
    """A client for one server. `settings` are fields of `/v1/rewards`: critique, n, temperature, seed, max_critique_tokens."""

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout: float = 180.0, tries: int = 5, **settings: Any
    ):
        self._url = (url or os.environ.get("MMRLHF_REWARD_URL") or "http://127.0.0.1:8000").rstrip("/")
        key = key or os.environ.get("MMRLHF_API_KEY")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._timeout, self._tries, self._settings = timeout, tries, settings

    async def rewards(
        self,
        responses: Sequence[str],
        *,
        record_id: str | None = None,
        question: str | None = None,
        images: Sequence[Any] = (),
    ) -> list[float]:
        """The rewards of responses to one prompt: a record's, or `question` about `images` (bytes, PIL images or data URLs)."""
        body: dict[str, Any] = {"responses": list(responses), **self._settings}
        if record_id is not None:
            body["record_id"] = record_id
        else:
            parts = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
            body["messages"] = [{"role": "user", "content": [*parts, {"type": "text", "text": question or ""}]}]
        found = [each["reward"] for each in (await self._post("/v1/rewards", body))["data"]]
        if len(found) != len(responses):
            raise RewardError(f"{len(found)} rewards for {len(responses)} responses")
        return found

    async def of_many(self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> list[float]:
        """The reward of each response to its prompt, the arguments of `rewards`. Responses to equal prompts go together."""
        groups: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            groups.setdefault(repr(sorted(prompt.items())), []).append(place)
        tasks = [self.rewards([responses[place] for place in places], **prompts[places[0]]) for places in groups.values()]
        found: list[float] = [0.0] * len(responses)
        for places, values in zip(groups.values(), await asyncio.gather(*tasks), strict=True):
            for place, value in zip(places, values, strict=True):
                found[place] = value
        return found

    async def _post(self, path: str, body: Any) -> Any:
        reason = "no answer"
        async with httpx.AsyncClient(timeout=self._timeout, headers=self._headers) as client:
            for attempt in range(self._tries):
                if attempt:
                    await asyncio.sleep(min(2.0**attempt, 30.0))
                try:
                    reply = await client.post(f"{self._url}{path}", json=body)
                except httpx.TransportError as error:
                    reason = f"{type(error).__name__}: {error}"
                    continue
                if reply.status_code == 200:
                    return reply.json()
                reason = f"{reply.status_code}: {reply.text[:300]}"
                if reply.status_code not in RETRIED or reply.headers.get("x-should-retry") == "false":
                    break
        raise RewardError(f"{self._url}{path}: {reason}")


# OpenRLHF: --reward.remote_url reward_client.py ------------------------------------------------------------------------


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **_: Any) -> dict[str, Any]:
    """OpenRLHF's function. A label is a record's id, or a JSON object with `id`, or with `question` and `images`."""
    import torch

    responses = [query[len(prompt) :] for query, prompt in zip(queries, prompts, strict=True)]
    found = torch.tensor(_now(RewardClient().of_many([_labelled(label) for label in labels], list(map(_plain, responses)))))
    return {"rewards": found, "scores": found, "extra_logs": {}}


def _labelled(label: str) -> dict[str, Any]:
    if not label.lstrip().startswith("{"):
        return {"record_id": label}
    said = json.loads(label)
    return {"record_id": said["id"]} if "id" in said else {"question": said["question"], "images": said.get("images", ())}


def _plain(text: str) -> str:
    """The response without ChatML's closing token, which OpenRLHF leaves in it."""
    return text.rstrip("\n").removesuffix("<|im_end|>").removesuffix("<|endoftext|>")


# verl: reward.custom_reward_function.path reward_client.py, name compute_score -----------------------------------------


async def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any) -> float:
    """verl's function. `extra_info` has the record's id (`record_id` or `id`), or `question` and `images`."""
    (reward,) = await RewardClient().rewards([solution_str], **_named(extra_info or {}))
    return reward


def _named(columns: Mapping[str, Any]) -> dict[str, Any]:
    for name in ID_COLUMNS:
        if columns.get(name) is not None:
            return {"record_id": str(columns[name])}
    if "question" not in columns:
        raise RewardError(f"neither a record's id ({' or '.join(ID_COLUMNS)}) nor a question is among {sorted(columns)}")
    return {"question": columns["question"], "images": list(columns.get("images") or ())}


# TRL: GRPOTrainer(reward_funcs=[trl_reward]) ---------------------------------------------------------------------------


async def trl_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """TRL's function. The data set has a column `record_id` or `id`, or pictures in `image` or `images`. None if there is no
    reward, as TRL has it."""
    try:
        return await RewardClient().of_many(_prompts(prompts, columns), list(map(_text, completions)))
    except RewardError:
        return [None] * len(completions)


def _prompts(prompts: Sequence[Any], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    for name in ID_COLUMNS:
        if columns.get(name) is not None:
            return [{"record_id": str(value)} for value in columns[name]]
    images = columns.get("images") or [[image] for image in columns.get("image") or [None] * len(prompts)]
    pictures = [[image for image in of_prompt or () if image is not None] for of_prompt in images]
    return [{"question": _text(prompt), "images": found} for prompt, found in zip(prompts, pictures, strict=True)]


def _text(messages: Any) -> str:
    """The text of a prompt or completion: a string, or the last message of a conversation."""
    if isinstance(messages, str):
        return messages
    content = messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


# ms-swift: --external_plugins reward_client.py --reward_funcs mmrlhf ---------------------------------------------------

try:
    from swift.rewards import AsyncORM, orms
except ImportError:  # this process is no trainer of ms-swift
    pass
else:

    class MmrlhfReward(AsyncORM):
        """The data set has a column `record_id` or `id`, or `images` beside its messages."""

        async def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
            turns = columns.get("messages") or [None] * len(completions)
            prompts = [_text([turn for turn in of_row if turn["role"] == "user"]) if of_row else "" for of_row in turns]
            return await RewardClient().of_many(_prompts(prompts, columns), list(completions))

    orms["mmrlhf"] = MmrlhfReward


def _data_url(image: Any) -> str:
    if isinstance(image, str) and image.startswith("data:"):
        return image
    if isinstance(image, bytes):
        data = image
    elif hasattr(image, "save"):
        file = io.BytesIO()
        image.save(file, "PNG")
        data = file.getvalue()
    else:
        raise RewardError(f"an image is bytes, a PIL image or a data URL, not {type(image).__name__}")
    return f"data:{_kind(data)};base64,{base64.b64encode(data).decode()}"


def _kind(data: bytes) -> str:
    kinds = {
        b"\xff\xd8": "image/jpeg",
        b"\x89PNG": "image/png",
        b"GIF8": "image/gif",
        b"RIFF": "image/webp",
        b"BM": "image/bmp",
    }
    return next((kind for start, kind in kinds.items() if data.startswith(start)), "image/png")


def _now(work: Any) -> Any:
    """The result of a coroutine, also from a thread whose event loop is running."""
    found: list[Any] = []

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
