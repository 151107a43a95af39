"""The model that is evaluated: in a directory or on the hub, or behind a server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from mmrlhf_jax.errors import UserError, of_option
from mmrlhf_jax.files import exists, is_address
from mmrlhf_jax.huggingface import chat_templates, generation_config
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.model_files import TOKENIZER_FILES
from mmrlhf_jax.inference.endpoint import Endpoint
from mmrlhf_jax.suite import run_directory
from mmrlhf_jax.suite.servers import of_server

if TYPE_CHECKING:
    from mmrlhf_jax.suite.policy import Policy


@dataclasses.dataclass(frozen=True)
class Loading:
    """How a model is loaded: the options of `Engine.load`."""

    dtype: str | None = None
    batch: int = 16
    template: str | None = None
    slots: int = 8192
    workers: int = 0


@dataclasses.dataclass(frozen=True)
class Model:
    """What is evaluated: a directory or hub id, or the address of a server and the name that the model has there.

    Attributes:
        path: the directory or hub id.
        endpoint, name: the address, and the name; None where the server has a single model.
        concurrency: how many requests are under way at a server.
        loading: how that of a directory is loaded.
        option, server_option: the command line's options that name it, and that have its server's address; for messages.
    """

    path: str | None = None
    endpoint: str | None = None
    name: str | None = None
    concurrency: int = 64
    loading: Loading = Loading()
    option: str = "--policy-model"
    server_option: str = "--policy-endpoint"

    def base(self, against: str | None, name: str | None) -> Model:
        """The model that it is compared with, loaded or found in the same way: at a place, or at the same server by its name.

        UserError for a name without a server.
        """
        if name is not None and not (is_address(against) or (against is None and self.endpoint is not None)):
            raise UserError("--against-model is the name of a model at a server; give its address by --against")
        if against is None or is_address(against):
            place = {"path": None, "endpoint": against or self.endpoint}
        else:
            place = {"path": against, "endpoint": None}
        option = "--against-model" if place["endpoint"] else "--against"
        server_option = self.server_option if against is None else "--against"
        return dataclasses.replace(self, name=name, option=option, server_option=server_option, **place)

    def known(self, directory: epath.Path) -> Model:
        """The same with the name that it has at its server, so that a server that has another one meanwhile is refused. If its
        run in this directory was begun, the server is not asked. UserError if it is needed and does not answer."""
        if self.endpoint is None or self.name is not None:
            return self
        begun = exists(directory / run_directory.FILE)
        name = run_directory.read(directory)["settings"].get("model") if begun else None
        return dataclasses.replace(self, name=name or self.served())

    def served(self) -> str:
        """The name of the model at its server. UserError if the server does not answer, or does not have it."""
        with of_server(self.server_option):
            return asyncio.run(Endpoint(self.endpoint, self.name, option=self.option).check())

    @property
    def title(self) -> str:
        """What it is called in tables."""
        return self.path or self.name

    def identity(self) -> dict[str, Any]:
        """What tells it from other models, without loading it, whoever answers with it: the same keys in every run of it. A
        model of a server has its name alone (`known`), since the same one may be served at another address later. UserError for
        what is no model."""
        if self.endpoint is not None:
            return {"model": self.name}
        with of_option(self.option) if self.option == "--against" else contextlib.nullcontext():
            directory = Path(local_directory(self.path))
            return {
                "fingerprint": model_fingerprint(directory),
                "tokenizer": _digest(directory / name for name in TOKENIZER_FILES),
                "chat_template": _digest(_chat_templates(directory)),
                "generation_config": _digest([directory / generation_config.FILE]),
            }

    @property
    def given(self) -> dict[str, Any]:
        """What was said of how it is loaded, as far as its answers depend on that."""
        said = {"dtype": self.loading.dtype, "template": self.loading.template}
        return {name: value for name, value in said.items() if value is not None}

    def open(self) -> Policy:
        """Load it, or find its server."""
        from mmrlhf_jax.inference import compilation_cache  # these import jax, which the launch file is read before
        from mmrlhf_jax.inference.engine import Engine
        from mmrlhf_jax.suite.policy import EndpointPolicy, EnginePolicy

        if self.endpoint is not None:
            return EndpointPolicy(self.endpoint, self.name, self.concurrency)
        compilation_cache.use()
        return EnginePolicy(Engine.load(self.path, **dataclasses.asdict(self.loading)))


def _chat_templates(directory: Path) -> list[Path]:
    """The files of chat templates. (They may also be in the tokenizer's and the processor's files, of which there are digests,
    too.)"""
    more = directory / chat_templates.FOLDER
    return [
        directory / chat_templates.FILE,
        directory / chat_templates.LEGACY,
        *(sorted(more.iterdir()) if more.is_dir() else ()),
    ]


def _digest(files: Iterable[Path]) -> str | None:
    """A digest of those of some files that there are; None without any."""
    there = [(path.name, path.read_bytes()) for path in files if path.is_file()]
    return hashlib.sha256(repr(there).encode()).hexdigest()[:16] if there else None
