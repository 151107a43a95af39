"""What tells a document from another one: a digest of all of its columns, with the files of its pictures as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

COLUMN = "mmrlhf_content"  # of the digest, in converted files of users: those for scoring may lack the pictures


def digest(row: Mapping[str, Any]) -> str:
    """The digest of a document's columns, in their order."""
    return hashlib.sha256(repr(_without_files(dict(row))).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _without_files(value: Any) -> Any:
    """The value with digests in the place of bytes."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).digest()
    if isinstance(value, dict):
        return {name: _without_files(each) for name, each in value.items()}
    return [_without_files(each) for each in value] if isinstance(value, list) else value


class Contents:
    """The digests of a task's documents, as the library `datasets` has them. Their pictures are not decoded."""

    def __init__(self, documents: Any):
        self._rows = documents.with_format("arrow")
        if COLUMN in documents.column_names:
            self._rows = self._rows.select_columns([COLUMN])

    def of(self, number: int) -> str:
        (row,) = self._rows[number : number + 1].to_pylist()
        return row[COLUMN] if COLUMN in row else digest(row)
