"""What an annotation is made with, in a form by which the same one is recognised: by contents, not by names."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import exists, is_address, read_bytes, write_atomically
from mmrlhf_jax.growing.criticised import Judging
from mmrlhf_jax.growing.directory import GrownDirectory, changes
from mmrlhf_jax.growing.samples import HowToSample
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.inference.endpoint import Endpoint
from mmrlhf_jax.inference.sampling import Sampling

PACKAGE = "mmrlhf-jax"


@dataclasses.dataclass(frozen=True)
class Annotation:
    """What is to be made of prompts.

    Attributes:
        policy: directory or hub id of the model that answers, or the address of a server; None: `reuse` has its answers.
        policy_model: the model's name at the server.
        sampling: how it answers.
        critic: directory or hub id of the reward model.
        critic_endpoint: the address of a server that writes the critiques, which the reward model scores; None: it does both.
        critic_model: the critic's name at that server.
        judging: how it judges.
        tie: the margin below which neighbours tie; None: it is measured on `calibrate`.
        z: standard errors within which neighbours tie.
        keep: the number of best answers that remain; None: all.
        calibrate: ranked data of people.
        held_out_of: benchmarks whose prompts are left out.
        reuse: directory of an earlier annotation, whose samples (and scores, if they are the same critic's) are taken.
        round: how many policies have been annotated in turn, for provenance.
    """

    policy: str | None
    policy_model: str | None
    sampling: HowToSample | None
    critic: str
    judging: Judging
    tie: float | None
    critic_endpoint: str | None = None
    critic_model: str | None = None
    z: float = 1.0
    keep: int | None = None
    calibrate: str | None = None
    held_out_of: tuple[str, ...] = ()
    reuse: str | None = None
    keep_responses: bool = False
    round: int = 1
    concurrency: int = 64


@dataclasses.dataclass(frozen=True)
class Data:
    """How media of prompts are read."""

    path: str
    media_root: str | None = None
    video_frames: int = 32
    video_fps: float | None = None
    frames_per_second: float | None = None


def package_version() -> str:
    """The version of this package; of a source tree that is not installed, "source"."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "source"


def settings_of(
    wanted: Annotation,
    contents: Mapping[str, Any],
    calibrate: str | None,
    loading: Mapping[str, Any],
    directory: GrownDirectory,
    source: GrownDirectory | None,
) -> dict[str, Any]:
    """The settings of job.json. `contents` and `calibrate` identify the data, `loading` are options of `Engine.load`, and
    `source` is the directory whose samples are used again. UserError if that one was made of other prompts."""
    ranking = {"tie": wanted.tie, "calibrate": calibrate, "z": wanted.z, "keep": wanted.keep}
    return {
        **contents,
        **(_policy(wanted, loading, directory) if source is None else _policy_of(source, contents)),
        "critic": _critic(wanted, loading, directory),
        "critiques": {
            "critiques": wanted.judging.count,
            "max_critique_tokens": wanted.judging.most,
            "critique_temperature": wanted.judging.temperature,
            "seed": wanted.judging.seed,
        },
        "keep_responses": wanted.keep_responses,
        "ranking": ranking,
        "round": wanted.round,
    }


def names_of(wanted: Annotation, data: Data, source: GrownDirectory | None) -> dict[str, Any]:
    """What the user calls things whose contents the settings identify."""
    names = {"data": data.path, "policy": wanted.policy if source is None else source.made_with()["names"]["policy"]}
    names |= {"critic": wanted.critic, "held_out_of": list(wanted.held_out_of)}
    return names if wanted.calibrate is None else names | {"calibrate": wanted.calibrate}


def how_to_sample(settings: Mapping[str, Any]) -> HowToSample:
    """Of the settings `sampling` of job.json."""
    rest = dict(settings)
    samples, most = rest.pop("samples"), rest.pop("max_new_tokens")
    return HowToSample(samples, most, Sampling(**rest))


def _policy(wanted: Annotation, loading: Mapping[str, Any], directory: GrownDirectory) -> dict[str, Any]:
    sampling = {"samples": wanted.sampling.samples, "max_new_tokens": wanted.sampling.most}
    sampling |= dataclasses.asdict(wanted.sampling.sampling)
    if not is_address(wanted.policy):
        return {"policy": _checkpoint(wanted.policy, loading), "sampling": sampling}
    return {"policy": _served(wanted.policy, wanted.policy_model, directory, "policy"), "sampling": sampling}


def _critic(wanted: Annotation, loading: Mapping[str, Any], directory: GrownDirectory) -> dict[str, str]:
    found = _checkpoint(wanted.critic, loading)
    if wanted.critic_endpoint is None:
        return found
    return found | _served(wanted.critic_endpoint, wanted.critic_model, directory, "critic")


def _served(address: str, model: str | None, directory: GrownDirectory, role: str) -> dict[str, str]:
    """An address with the model's name there: the given one, else the only one that the server has."""
    if model is None and exists(directory.job):  # the server need not run any more when its texts are there
        model = directory.made_with()["settings"][role].get("model")
    if model is None:
        model = asyncio.run(Endpoint(address, option=f"--{role}-model").check())
    return {"endpoint": address, "model": model}


def _policy_of(source: GrownDirectory, contents: Mapping[str, Any]) -> dict[str, Any]:
    before = source.made_with()["settings"]
    for name, what in (("data", "prompts"), ("held_out_of", "benchmarks")):
        if before[name] != contents[name]:
            raise UserError(f"--reuse {source.path}: was made with other {what}; its samples are not those of these prompts")
    if not exists(source.samples):
        raise UserError(f"--reuse {source.path}: has no {source.samples.name} yet; let that run go on first")
    return {name: before[name] for name in ("policy", "sampling")}


def _checkpoint(path: str, loading: Mapping[str, Any]) -> dict[str, str]:
    settings = {name: loading.get(name) or "default" for name in ("dtype", "template")}
    return {"fingerprint": model_fingerprint(local_directory(path), **settings)}


def take(source: GrownDirectory, directory: GrownDirectory, settings: Mapping[str, Any]) -> None:
    """Copy an earlier directory's steps that are the same in one with these settings."""
    before = source.made_with()["settings"]
    steps = [(source.held_out, directory.held_out), (source.samples, directory.samples)]
    of_scores = ("critic", "critiques", "keep_responses")
    if not changes({name: before[name] for name in of_scores}, {name: settings[name] for name in of_scores}):
        steps += [(source.critiques, directory.critiques), (source.scores, directory.scores)]
    for path, copy in steps:
        if exists(path) and not exists(copy):
            write_atomically(copy, read_bytes(path))
