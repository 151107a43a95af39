"""Files of made-up documents of the harness's tasks, with their pictures and videos, as a user has them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from tests.suite.support.made_up_documents import DOCUMENTS, picture

__all__ = ["documents", "picture", "write", "write_video"]

# Where the videos of a task lie below HF_HOME, and its subtitles.
VIDEOS = {
    "videomme": "videomme/data",
    "videomme_w_subtitle": "videomme/data",
    "videochatgpt_gen": "videochatgpt/Test_Videos",
    "videochatgpt_temporal": "videochatgpt/Test_Videos",
    "videochatgpt_consistency": "videochatgpt/Test_Videos",
    "video_dc499": "videochatgpt/Test_Videos",
}


def documents(task: str) -> list[dict[str, Any]]:
    """The documents of a task of the harness."""
    return DOCUMENTS[task]


def write(task: str, folder: Path, name: str | None = None, form: str = "jsonl") -> Path:
    """A file of a task's documents in a folder, with their pictures and videos beside it, as a user has them.

    `jsonl` has pictures as files, `parquet` within, as structs of bytes and path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out, rows = folder / f"{name or task}.{form}", []
    for place, document in enumerate(documents(task)):
        rows.append(row := dict(document))
        for column, value in document.items():
            if isinstance(value, Image.Image):
                file = io.BytesIO()
                value.save(file, "PNG")
                row[column] = {"bytes": file.getvalue(), "path": f"{task}-{place}-{column}.png"}
                if form == "jsonl":
                    (folder / row[column]["path"]).write_bytes(file.getvalue())
                    row[column] = row[column]["path"]
    if form == "jsonl":
        out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    for number in range(2 if task in VIDEOS else 0):
        write_video(folder / VIDEOS[task] / f"clip{number}.mp4", number)
    if task == "videomme_w_subtitle":
        subtitle = folder / "videomme" / "subtitle" / "clip0.srt"
        subtitle.parent.mkdir(parents=True, exist_ok=True)
        text = '1\n00:00:00,000 --> 00:00:30,000\n<font color="white" size=".72c">A ball rolls.</font>\n'
        subtitle.write_text(text)
    return out


def write_video(path: Path, number: int, frames: int = 6) -> None:
    """A video of some frames, written with PyAV."""
    import av  # which the environment of the harness need not have

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for place in range(frames):
            pixels = np.full((48, 64, 3), 40 * place, np.uint8)
            pixels[:, : 8 * (number + 1)] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
