"""The cases in which two models differ most, with their pictures."""

from __future__ import annotations

import dataclasses
import io
from base64 import b64decode

from PIL import Image

from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.report.shown_cases import MOST_PICTURES, SIDE_OF_SEVERAL
from tests.pages.html import text
from tests.suite.support.reports import page
from tests.suite.support.runs import COLOURS


def picture(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "JPEG")
    return file.getvalue()


def with_media(directory, *media: str, task=COLOURS):
    found = results.read(directory, task.name)
    documents = tuple(dataclasses.replace(each, media=media) for each in found.documents)
    results.write(directory, dataclasses.replace(found, documents=documents))


def test_cases_show_both_answers_and_the_pictures_of_either_run(tmp_path, model, base):
    for directory, names in ((model, ("a.jpg",)), (base, ("b.jpg",))):
        (directory / "media").mkdir()
        for name in names:
            (directory / "media" / name).write_bytes(picture((900, 300)))
        with_media(directory, "a.jpg", "b.jpg")
    tree = page(tmp_path, model, base)
    (case,) = [each for each in tree.findall(".//article") if text(each.find(".//h3")).startswith("Colours")]
    assert "".join(case.find(".//h3").itertext()) == "Colours, document 2"
    assert "Colours +100.00" in text(case) and "▲ better" in text(case)
    images = case.findall(".//img")
    assert [image.get("alt") for image in images] == [f"picture {n} of 2 of document 2 of Colours" for n in (1, 2)]
    for image in images:
        shown = Image.open(io.BytesIO(b64decode(image.get("src").partition(",")[2])))
        assert max(shown.size) == SIDE_OF_SEVERAL


def test_pictures_that_cannot_be_read_are_counted_and_no_path_leads_out(tmp_path, model, base, capsys):
    (tmp_path / "secret.jpg").write_bytes(picture((10, 10)))
    (model / "media").mkdir()
    (model / "media" / "broken.jpg").write_bytes(b"no picture")
    names = ("../../secret.jpg", str(tmp_path / "secret.jpg"), "broken.jpg", "none.jpg", "fifth.jpg")
    for directory in (model, base):
        with_media(directory, *names)
    tree = page(tmp_path, model, base)
    assert not tree.findall(".//img")
    assert f"{MOST_PICTURES} pictures of 1 of these cases cannot be read" in text(tree)
    assert "cannot be read" in capsys.readouterr().err and "and 1 more" in text(tree)


def test_an_answer_that_is_hostile_stays_text(tmp_path, model, base):
    hostile = "</p><script>alert(1)</script>\x00\u202e مرحبا"
    found = results.read(model, "colours")
    documents = tuple(dataclasses.replace(each, answer=hostile) for each in found.documents)
    results.write(model, dataclasses.replace(found, documents=documents))
    tree = page(tmp_path, model, base)
    assert "</p><script>alert(1)</script>\N{REPLACEMENT CHARACTER}\u202e مرحبا" in text(tree)
