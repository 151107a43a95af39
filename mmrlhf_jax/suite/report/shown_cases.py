"""The documents on which two runs differ most, with their pictures, for the page."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from etils import epath

from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import read_bytes
from mmrlhf_jax.pages.differences import Difference, Differences, ShownAnswer
from mmrlhf_jax.progress import say
from mmrlhf_jax.suite.pictures import FOLDER
from mmrlhf_jax.suite.report.cases import Both, Case, choose

SIDE, SIDE_OF_SEVERAL = 360, 220  # longest side of a picture in pixels, where it is the only one, and where it is not
QUALITY, MOST_PICTURES = 75, 4  # of JPEG files; most pictures of a case


def differences_of(pairs: Iterable[Both], names: Sequence[str], directories: Sequence[epath.Path]) -> Differences:
    """The chosen cases of results of two runs, with the runs' names and directories, in which their pictures are."""
    chosen = choose(pairs)
    folders = [directory / FOLDER for directory in directories]
    lacking: Counter[str] = Counter()
    found = [_difference(case, names, folders, lacking) for case in chosen.cases]
    remarks = []
    if lacking:
        remarks.append(
            f"{lacking['pictures']} pictures of {lacking['cases']} of these cases cannot be read, and are not shown."
        )
        say(f"{remarks[0][:-1]} ({folders[0]})")
    return Differences(found, chosen.counts, chosen.compared, remarks)


def _difference(case: Case, names: Sequence[str], folders: Sequence[epath.Path], lacking: Counter[str]) -> Difference:
    answers = [
        ShownAnswer(name, each.answer or "", [(row.title, each.values.get(row.name)) for row in case.rows])
        for name, each in zip(names, (case.model, case.base), strict=False)
    ]
    media = case.model.media or case.base.media
    pictures = []
    for number, name in enumerate(media[:MOST_PICTURES], 1):
        found = _picture(name, folders, SIDE if len(media) == 1 else SIDE_OF_SEVERAL)
        if found is not None:
            of = f"picture {number} of {len(media)}" if len(media) > 1 else "the picture"
            pictures.append((found, f"{of} of document {case.model.id} of {case.benchmark}"))
    count = min(len(media), MOST_PICTURES) - len(pictures)
    lacking.update({"pictures": count, "cases": 1} if count else {})
    new, old = case.model.values[case.row.name], case.base.values[case.row.name]
    return Difference(
        case.benchmark, case.model.id, case.model.prompt, case.model.reference, case.row.title, new - old, case.direction,
        answers, pictures, len(media) - min(len(media), MOST_PICTURES),
    )  # fmt: skip


def _picture(name: str, folders: Sequence[epath.Path], side: int) -> bytes | None:
    """A picture of the first folder that has it, no larger than `side`. None if none has it, or if it is no picture."""
    for folder in folders if re.fullmatch(r"\w[\w.-]*", name) else ():  # a name is no path
        path = folder / name
        try:
            image = decode_image(read_bytes(path), f"{path}")
        except (OSError, UserError):
            continue
        image.thumbnail((side, side))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()
    return None
