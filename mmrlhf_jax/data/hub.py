"""Paths on the Hugging Face hub, `hf://datasets/OWNER/NAME[@REVISION]/...`: their errors are translated into one line.

`epath` reads them through `huggingface_hub.HfFileSystem`. The token comes from the environment (HF_TOKEN) or from a login, the
address of the hub from HF_ENDPOINT.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from mmrlhf_jax.errors import UserError

PREFIX = "hf://"


@contextlib.contextmanager
def hub_errors(path: os.PathLike | str, instead: str = "name local files") -> Iterator[None]:
    """A context that turns errors of the hub and the network into a UserError about `path`; without effect for other paths.
    `instead` is what to do where the hub cannot be reached."""
    text = os.fspath(path)
    if not text.startswith(PREFIX):
        yield
        return
    try:
        yield
    except (*_of_the_network(), OSError) as error:
        raise UserError(f"{text}: {_explained(error, text, instead)}") from error


def check_repository(path: os.PathLike | str) -> None:
    """UserError if the repository or revision of a hub path is not available. Does nothing for other paths."""
    text = os.fspath(path)
    if not text.startswith(PREFIX):
        return
    import fsspec

    with hub_errors(text):
        try:
            fsspec.filesystem("hf").resolve_path(text)
        except (ValueError, NotImplementedError) as error:  # replaced, because huggingface_hub's own messages are long
            raise UserError(f"{text}: not a path on the hub; a data set's is hf://datasets/OWNER/NAME/...") from error


def content_id(file: Any) -> str | None:
    """The hub's content id of a file (for an image embedded in a parquet file, of that file). None for files elsewhere."""
    text = os.fspath(getattr(file, "parquet", file))
    if not text.startswith(PREFIX) or hasattr(file, "archive"):
        return None
    import fsspec

    with hub_errors(text):
        return fsspec.filesystem("hf").info(text).get("blob_id")


def _of_the_network() -> tuple[type[Exception], ...]:
    """The error types of the HTTP library that the installed huggingface_hub uses (requests or httpx)."""
    from huggingface_hub import errors

    return errors.HfHubHTTPError.__bases__


def _explained(error: Exception, path: str, instead: str) -> str:
    from huggingface_hub import constants, errors

    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)

    def has(*kinds: Any) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    login = "`hf auth login`, or HF_TOKEN in the environment"
    if has(errors.GatedRepoError):
        return f"the repository is gated; accept its conditions on {constants.ENDPOINT}, then log in ({login})"
    if has(errors.RevisionNotFoundError):
        return "the repository has no such revision; @REVISION is a branch, a tag or a commit"
    if has(errors.RepositoryNotFoundError):
        other = "" if path.startswith(f"{PREFIX}datasets/") else "; a data set's path is hf://datasets/OWNER/NAME/..."
        return f"no such repository on {constants.ENDPOINT}, or it is private and wants a login ({login}){other}"
    if has(errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set; unset it, or {instead}"
    if has(ConnectionError, TimeoutError) or (has(*_of_the_network()) and not has(errors.HfHubHTTPError, FileNotFoundError)):
        return f"{constants.ENDPOINT} cannot be reached ({_line(causes[-1])}); try again, or {instead}"
    if has(errors.EntryNotFoundError, FileNotFoundError):
        return "no such file in the repository"
    return f"cannot be read from the hub ({_line(error)})"


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
