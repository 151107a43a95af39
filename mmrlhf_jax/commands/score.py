"""`mmrlhf score`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmrlhf_jax import config
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
    **loading: Any,
) -> None:
    """`loading` are options of `Engine.load`."""
    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    from mmrlhf_jax.data.mixture import open_examples
    from mmrlhf_jax.data.scores import score_line
    from mmrlhf_jax.inference import compilation_cache, critic
    from mmrlhf_jax.inference.engine import Engine, require_reward_model
    from mmrlhf_jax.inference.jobs import Share, reserved, run_job

    critic.check_mode(critique)
    share = Share(*distributed.apart(where, launch))
    with reserved(out, share) as place:
        examples = open_examples(data, media_root, video_frames)
        compilation_cache.use()
        engine = Engine.load(model, **loading)
        require_reward_model(engine, model)
        critic.check_lengths(engine, examples, critique)

        def work(indices: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
            how = dict(critique=critique, max_new_tokens=max_new_tokens)
            for index, record in critic.score_each(engine, examples, indices, **how):
                yield index, score_line(examples, index, record)

        run_job(examples, place, f"score {engine.fingerprint} {critique} {max_new_tokens}", work, share=share)
