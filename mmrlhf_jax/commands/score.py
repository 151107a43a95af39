"""`mmrlhf score`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding import distributed


def score(
    model: str,
    data: str,
    out: str,
    media_root: str | None,
    video_frames: int,
    critique: str,
    max_new_tokens: int,
    launch: str | None,
    video_fps: float | None = None,
    frames_per_second: float | None = None,
    critic_endpoint: str | None = None,
    critic_model: str | None = None,
    concurrency: int = 64,
    **loading: Any,
) -> None:
    """`loading` are options of `Engine.load`."""
    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    from mmrlhf_jax.data.mixture import open_examples
    from mmrlhf_jax.data.scores import say_flaws, score_line
    from mmrlhf_jax.inference import compilation_cache, critic
    from mmrlhf_jax.inference.endpoint import Endpoint
    from mmrlhf_jax.inference.engine import Engine, require_reward_model
    from mmrlhf_jax.inference.jobs import Share, reserved, run_job

    critic.check_mode(critique)
    endpoint = (
        None
        if critic_endpoint is None
        else Endpoint(critic_endpoint, critic_model, concurrency=concurrency, option="--critic-model")
    )
    if endpoint is not None and critique != "written":
        raise UserError(f"--critique {critique} needs no critiques of --critic-endpoint; give one of the two")
    if endpoint is None and critic_model is not None:
        raise UserError("--critic-model is the name of a model at --critic-endpoint; give its address")
    share = Share(*distributed.apart(where, launch))
    with reserved(out, share) as place:
        examples = open_examples(data, media_root, video_frames, video_fps=video_fps, frames_per_second=frames_per_second)
        compilation_cache.use()
        if endpoint is not None:
            _with_endpoint(endpoint, model, examples, place, share, max_new_tokens, **loading)
            return
        engine = Engine.load(model, **loading)
        require_reward_model(engine, model)
        critic.check_lengths(engine, examples, critique)

        def work(indices: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
            if critique != "written":
                for index, record in critic.score_each(engine, examples, indices, critique=critique):
                    yield index, score_line(examples, index, record)
                return
            how = critic.HowToCriticise(most=max_new_tokens)
            for index, critiques in critic.critiques_each(engine, examples, indices, how):
                yield index, score_line(examples, index, *critic.with_written(examples.records[index], critiques))

        run_job(examples, place, f"score {engine.fingerprint} {critique} {max_new_tokens}", work, share=share)
        say_flaws(place.out)


def _with_endpoint(endpoint, model: str, examples, place, share, max_new_tokens: int, **loading: Any) -> None:
    """Score with critiques that a running server writes. Where all of them are there already, it is not asked anything."""
    from mmrlhf_jax.data.scores import say_flaws
    from mmrlhf_jax.inference import critic, endpoint_critic
    from mmrlhf_jax.inference.engine import Engine, require_reward_model
    from mmrlhf_jax.inference.jobs import run_job
    from mmrlhf_jax.inference.step import Step

    if endpoint.model is None:
        asyncio.run(endpoint.check())
    writer = endpoint_critic.EndpointCritic(endpoint, critic.HowToCriticise(most=max_new_tokens))
    kept = Step(examples, place.out, writer.job, share=share, is_line=endpoint_critic.is_line)
    asks = bool(kept.missing(range(len(examples))))  # also of other hosts, whose share this one may take over
    if asks:
        asyncio.run(endpoint.check())
    engine = Engine.load(model, **loading)
    require_reward_model(engine, model)
    critic.check_lengths(engine, examples, "none")
    if asks:
        writer.check_tokens(examples, engine.encoder("uncritiqued"))

    def work(indices: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        return endpoint_critic.score_each(engine, examples, indices, writer, kept)

    run_job(examples, place, f"score {engine.fingerprint} {writer.job}", work, share=share)
    say_flaws(place.out)
    kept.clear()
