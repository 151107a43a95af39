"""The documents of a task as requests: what the harness asks, with its media."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite.harness.channel import Channel
from mmrlhf_jax.suite.harness.content import Contents
from mmrlhf_jax.suite.harness.job import Job, reason_of
from mmrlhf_jax.suite.harness.loading import each_request, load, texts_and_media
from mmrlhf_jax.suite.harness.local_data import BROKEN
from mmrlhf_jax.suite.request import key_of

BLOCK = 2**20  # bytes of a video file that are digested at each of three places


def ask(job: Job, channel: Channel) -> None:
    """Send a frame with the number of documents, and one for each that is this process's share.

    A document is sent with a digest of its content and with its media; without media, but with `"answered": true`, if the job
    says that this very request has an answer; and with the reason in `"missing"` if the harness cannot ask about it.
    """
    task = load(job)
    documents, broken = task.eval_docs, _broken(job, task)
    contents = Contents(documents)
    process, count = job.share
    total = len(documents) if job.limit is None else min(job.limit, len(documents))
    channel.send({"documents": total})
    for number, instance in each_request(task, range(process, total, count)):
        name = str(number)
        if name in broken:
            channel.send({"document": name, "missing": broken[name]})
            continue
        try:
            texts, media = texts_and_media(instance.args[1](documents[number]))
            sent = [medium(each) for each in media]
        except (Exception, SystemExit) as error:  # the task's own code; some tasks end the process where a video is missing
            channel.send({"document": name, "missing": reason_of(error)})
            continue
        described = [each for each, _ in sent]
        options = options_of(job, instance.args[2], described)
        frame = {"document": name, "content": contents.of(number), "texts": texts, "media": described, "options": options}
        if key_of(texts, [(each["kind"], each["digest"]) for each in described], options) in job.answered.get(name, ()):
            channel.send(frame | {"answered": True})
        else:
            channel.send(frame, *(blob for _, blob in sent if blob is not None))


def options_of(job: Job, stated: Any, media: list[dict[str, Any]]) -> dict[str, Any]:
    """How a request is answered: greedily, whatever the harness states."""
    options: dict[str, Any] = {"max_new_tokens": job.new_tokens, "temperature": 0.0}
    if any(each["kind"] == "video" for each in media):
        options["video_frames"] = job.video_frames
    if job.until:
        until = stated.get("until") or []
        options["until"] = [until] if isinstance(until, str) else list(until)
    return options


def _broken(job: Job, task: Any) -> dict[str, str]:
    """Document -> why it cannot be used, for documents of a user's own file that the task takes as they are."""
    path = Path(job.folder) / BROKEN
    if job.data is None or task.config.process_docs is not None or not path.exists():
        return {}
    return strict_json.loads(path.read_text())


def medium(shown: Any) -> tuple[dict[str, Any], bytes | None]:
    """(what is said of a medium, its bytes; None of a video, which is read where it is)."""
    if isinstance(shown, Image.Image):
        file = io.BytesIO()
        shown.save(file, "PNG", compress_level=1)
        pixels = np.ascontiguousarray(shown)
        content = hashlib.sha256(f"{shown.mode} {shown.size} {pixels.dtype} ".encode() + pixels.tobytes())
        return {"kind": "image", "digest": content.hexdigest()}, file.getvalue()
    path = os.fspath(shown)
    if not os.path.exists(path):
        raise UserError(f"the video {path} is missing")
    return {"kind": "video", "digest": _file_digest(path), "path": path}, None


def _file_digest(path: str) -> str:
    """A digest of a file's size and of its beginning, middle and end: a set of videos has hundreds of gigabytes."""
    size = os.path.getsize(path)
    found = hashlib.sha256(f"{size} ".encode())
    with open(path, "rb") as file:
        for place in (0, max(0, size // 2 - BLOCK // 2), max(0, size - BLOCK)):
            file.seek(place)
            found.update(file.read(BLOCK))
    return found.hexdigest()
