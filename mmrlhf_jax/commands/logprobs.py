"""`mmrlhf logprobs`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.inference.engine import Engine, all_finite
from mmrlhf_jax.inference.jobs import reserved, write_in_pieces


def logprobs(model: str, data: str, out: str, media_root: str | None, video_frames: int, **loading: Any) -> None:
    """`loading` are options of `Engine.load`."""
    with reserved(out) as place:
        examples = open_examples(data, media_root, video_frames)
        engine = Engine.load(model, **loading)
        engine.check_lengths(examples, "answer")

        def work(piece: Subset) -> Iterator[dict[str, Any]]:
            scores = engine.score_responses(piece, "answer", description="log-probs")
            for record, found in zip(piece.records, scores, strict=True):
                pairs = zip(all_finite(found["logps"], record, "log-prob"), found["lengths"], strict=True)
                yield {"id": record.id, "responses": [{"logprob": float(p), "tokens": int(n)} for p, n in pairs]}

        write_in_pieces(examples, place, f"logprobs {engine.fingerprint}", work)
