"""Pictures that a user's own file of documents names."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite import rows
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.local import Local


@pytest.fixture
def file(tmp_path):
    """A file of documents with a picture beside it, and two links that lead to each other."""
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "one.png").symlink_to("two.png")
    (tmp_path / "two.png").symlink_to("one.png")
    return tmp_path / "own.jsonl"


WRONG = [
    ("x\0.png", r"'x\\x00\.png' is no path"),
    ("folder/\0", "is no path"),
    ("\0", "is no path"),
    ("one.png", "'one.png' is a link that leads to itself"),
    ("one.png/a.png", "is a link that leads to itself"),
    ("../own.png", r"the picture '\.\./own\.png' is outside of the folder"),
]


@pytest.mark.parametrize(("path", "says"), WRONG)
@pytest.mark.parametrize("form", ["path", "object"])
def test_what_is_no_path_is_said_with_its_record(file, path, says, form):
    cell = path if form == "path" else {"bytes": None, "path": path}
    with pytest.raises(UserError, match=rf"^own\.jsonl, line 2: column 'image': .*{says}") as error:
        rows.picture(cell, file, "own.jsonl, line 2: column 'image'")
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_the_reason_of_its_document(file):
    assert rows.picture("a.png", file, "") == (b"picture", None)
    assert rows.picture("b.png", file, "") == (None, rows.NO_PICTURE)
    assert rows.picture("b" * 5000, file, "")[1] == "its picture cannot be read (File name too long)"
    assert rows.picture("", file, "")[1] == "its picture cannot be read (Is a directory)"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"a": "\\ud800"}', "line 1: not valid UTF-8: field 'a' holds half of a character"),
        ('{"a": 1, "a": 2}', "line 1: field 'a' stands twice in one object"),
        ('{"a": 1e999}', "line 1: field 'a' must be a finite number"),
        ('{"a": }', r"line 1 is not JSON \(Expecting value\)"),
    ],
)
def test_only_what_is_no_json_is_said_to_be_none(file, line, says):
    file.write_text(line + "\n")
    with pytest.raises(UserError, match=f"own.jsonl: {says}"):
        list(rows.json_lines(file))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_no_path_does_not_hide_the_other_pictures_from_a_fingerprint(file, suffix):
    documents = [{"image": path} for path, _ in WRONG] + [{"image": "a.png"}]
    own = file.with_suffix(suffix)
    if suffix == ".jsonl":
        own.write_text("".join(json.dumps(row) + "\n" for row in documents))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(documents), own)
    before = Local(str(own)).fingerprint(TASKS["mme"])
    (file.parent / "a.png").write_bytes(b"another picture")
    assert Local(str(own)).fingerprint(TASKS["mme"]) != before
