"""Small pictures of what a model was shown, for the page: media/DIGEST.jpg in a run's directory, one per content."""

from __future__ import annotations

import dataclasses
import io

from etils import epath
from PIL import Image

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.files import exists, write_atomically
from mmrlhf_jax.pages.small_pictures import small_pictures
from mmrlhf_jax.suite.request import Request

FOLDER = "media"  # in a run's directory
SIDE, FRAMES, QUALITY = 512, 4, 80


def keep(directory: epath.PathLike, request: Request, example: Example) -> None:
    """Keep the pictures of a request, and of its video a strip of frames, as far as they are not there.

    UserError for one that cannot be read.
    """
    folder = epath.Path(directory) / FOLDER
    missing = [place for place, name in enumerate(request.names) if not exists(folder / name)]
    if not missing:
        return
    if example.frames:
        small = [each.jpeg for each in small_pictures(example, side=SIDE // 2, frames=FRAMES, quality=QUALITY)]
        write_atomically(folder / request.names[0], _strip(small))
        return
    for place in missing:
        one = dataclasses.replace(example.record, images=example.record.images[place : place + 1], media_places=())
        (found,) = small_pictures(Example(one, example.images[place : place + 1]), side=SIDE, quality=QUALITY)
        write_atomically(folder / request.names[place], found.jpeg)


def _strip(pictures: list[bytes]) -> bytes:
    """Pictures of one size beside each other."""
    opened = [Image.open(io.BytesIO(each)) for each in pictures]
    strip = Image.new("RGB", (sum(each.width for each in opened), max(each.height for each in opened)))
    left = 0
    for each in opened:
        strip.paste(each, (left, 0))
        left += each.width
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
