"""`mmrlhf logprobs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmrlhf_jax import config
from mmrlhf_jax.sharding import distributed

PIECE = 512  # records of a pass over rows; a kill loses at most one pass


def logprobs(
    model: str,
    data: str,
    out: str,
    media_root: str | None,
    video_frames: int,
    launch: str | None,
    video_fps: float | None = None,
    frames_per_second: float | None = None,
    **loading: Any,
) -> None:
    """`loading` are options of `Engine.load`."""
    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    from mmrlhf_jax.data.mixture import open_examples
    from mmrlhf_jax.data.subset import Subset
    from mmrlhf_jax.inference import compilation_cache
    from mmrlhf_jax.inference.engine import Engine, all_finite, batched
    from mmrlhf_jax.inference.jobs import Share, reserved, run_job

    share = Share(*distributed.apart(where, launch))
    with reserved(out, share) as place:
        examples = open_examples(data, media_root, video_frames, video_fps=video_fps, frames_per_second=frames_per_second)
        compilation_cache.use()
        engine = Engine.load(model, **loading)
        engine.check_lengths(examples, "answer")

        def work(indices: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
            for here in batched(indices, PIECE):
                part = Subset(examples, here)
                scores = engine.score_responses(part, "answer", description="log-probs")
                for index, record, found in zip(here, part.records, scores, strict=True):
                    pairs = zip(all_finite(found["logps"], record, "log-prob"), found["lengths"], strict=True)
                    responses = [{"logprob": float(p), "tokens": int(n)} for p, n in pairs]
                    yield index, {"id": record.id, "responses": responses}

        run_job(examples, place, f"logprobs {engine.fingerprint}", work, share=share)
