"""`mmrlhf score`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmrlhf_jax import config
from mmrlhf_jax.commands.options import preference
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line, in_words
from mmrlhf_jax.progress import say
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
    beta: float | None = None,
    w: float | None = None,
    k: str | None = None,
    **loading: Any,
) -> None:
    """`beta`, `w` and `k` are those of the report on margins. `loading` are options of `Engine.load`."""
    objective = preference(beta, w, k)
    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    from mmrlhf_jax.data.mixture import open_examples
    from mmrlhf_jax.data.scores import score_line
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
            _report(examples, place.out, data, share, objective)
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
        _report(examples, place.out, data, share, objective)


def _report(examples, out, data: str, share, objective: config.Preference) -> None:
    """Say what is wrong with the complete score file `out`, and in the first process print what its margins are worth. An error
    in doing so is said and ends nothing, because the file is whole."""
    from mmrlhf_jax.data.margin_text import lines
    from mmrlhf_jax.data.scores import say_flaws

    summary = None
    try:
        if share.process:
            say_flaws(out)
        else:
            summary = _margins(examples, out, data, objective)
    except Exception as error:
        if not isinstance(error, UserError) and in_words(error) is None:
            raise
        shows = f"`mmrlhf data margins {data} --rewards {out}` shows what its margins are worth"
        say(f"{out} is complete, but could not be read again ({first_line(error)}); {shows}")
    if summary is not None:
        print("\n".join(lines(summary)))


def _margins(examples, out, data: str, objective: config.Preference) -> dict[str, Any]:
    """The summary of the margins in the score file `out`; without β where they have none with `--k median`, which is said."""
    from mmrlhf_jax.data.margin_summary import every_pair, margins_of, scale_of, summarise, without_reward
    from mmrlhf_jax.data.rewarded import scored_records

    records = [scored.record for scored in scored_records(examples, out, data)]  # says the file's flaws, too
    margins, scale = margins_of(records), None
    if np.isfinite(every_pair(margins)).any():
        try:
            scale = scale_of(objective, margins, str(out))
        except UserError as error:
            say(str(error))
    return summarise(margins, scale, unrewarded=without_reward(records))


def _with_endpoint(endpoint, model: str, examples, place, share, max_new_tokens: int, **loading: Any) -> None:
    """Score with critiques that a running server writes. Where all of them are there already, it is not asked anything."""
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
    kept.clear()
