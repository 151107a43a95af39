"""The results of a document, from the answer to it."""

from __future__ import annotations

from typing import Any

from mmrlhf_jax.suite.answers import Answer
from mmrlhf_jax.suite.results import Document


def document_of(name: str, answer: Answer | None, **fields: Any) -> Document:
    """The document of this id. `fields` are those of `Document` that the answer does not say, or says wrongly."""
    said = {
        "cluster": cluster_of(name, answer),
        "prompt": answer.prompt if answer else "",
        "media": answer.media if answer else (),
        "answer": answer.answer if answer else None,
        "reference": None,
        "values": {},
    }
    return Document(id=name, **said | fields)


def cluster_of(name: str, answer: Answer | None) -> str:
    """The cluster of a document: its pictures or video, as of all others that show the same."""
    return (" ".join(answer.media) if answer else "") or name
