"""`mmrlhf annotate` and `mmrlhf best-of-n`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding import distributed

TIE = 0.3


def annotate(
    policy: str | None,
    policy_model: str | None,
    critic: str,
    data: str,
    out: str,
    launch: str | None,
    *,
    tie: float | None,
    calibrate: str | None,
    **how: Any,
) -> None:
    """`how` are the other options, as in `_run`."""
    if tie is not None and calibrate is not None:
        raise UserError("--tie and --calibrate: give one of them; --calibrate measures the tie")
    if tie is None and calibrate is None:
        say(f"answers whose rewards are nearer than {TIE} tie; --calibrate measures the margin on pairs that people ranked")
        tie = TIE
    _run(policy, policy_model, critic, data, out, launch, tie=tie, calibrate=calibrate, **how)


def best_of_n(
    policy: str | None, policy_model: str | None, critic: str, data: str, out: str, launch: str | None, *, keep: int, **how: Any
) -> None:
    """`how` are the other options, as in `_run`."""
    if how["reuse"] is None and keep > how["samples"]:
        raise UserError(f"--keep {keep}: more than --samples {how['samples']}")
    _run(policy, policy_model, critic, data, out, launch, tie=0.0, keep=keep, **how)


def _run(
    policy: str | None,
    policy_model: str | None,
    critic: str,
    data: str,
    out: str,
    launch: str | None,
    *,
    samples: int,
    max_new_tokens: int,
    sampling: Mapping[str, Any],
    judging: Mapping[str, Any],
    held_out_of: Sequence[str] | None,
    media: tuple[str | None, int, float | None, float | None],
    loading: Mapping[str, Any],
    **others: Any,
) -> None:
    """`sampling` are fields of `Sampling`, `judging` of `Judging`, `loading` options of `Engine.load`, and `others` fields of
    `Annotation`."""
    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    from mmrlhf_jax.growing.annotate import annotate as run
    from mmrlhf_jax.growing.annotation import Annotation, Data
    from mmrlhf_jax.growing.criticised import Judging
    from mmrlhf_jax.growing.samples import HowToSample
    from mmrlhf_jax.inference.jobs import Share
    from mmrlhf_jax.inference.sampling import Sampling

    if samples > 1 and sampling["temperature"] == 0:
        raise UserError(f"--samples {samples}: at --temperature 0 all of them are the same; raise it, or ask for one")
    if others["critic_endpoint"] is None and others["critic_model"] is not None:
        raise UserError("--critic-model is the name of a model at --critic-endpoint; give its address")
    if others["critic_endpoint"] is not None and not judging["count"]:
        raise UserError("--critiques 0 needs no critiques of --critic-endpoint; give one of the two")
    if judging["count"] > 1 and judging["temperature"] == 0:
        raise UserError(f"--critiques {judging['count']}: at --critique-temperature 0 all of them are the same; raise it")
    wanted = Annotation(
        policy=policy,
        policy_model=policy_model,
        sampling=HowToSample(samples, max_new_tokens, Sampling(**sampling)),
        critic=critic,
        judging=Judging(**judging),
        held_out_of=tuple(dict.fromkeys(held_out_of or ())),
        **others,
    )
    run(wanted, Data(data, *media), out, Share(*distributed.apart(where, launch)), loading)
