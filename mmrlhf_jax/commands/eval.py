"""The `mmrlhf eval` verbs."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.evaluation.exchanged import exchange_media
from mmrlhf_jax.evaluation.reward_bench import by_category, longer_wins
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.engine import Engine, require_reward_model
from mmrlhf_jax.progress import say


def reward_bench(
    model: str,
    data: str,
    media_root: str | None,
    video_frames: int,
    critique: str,
    blind: bool,
    max_new_tokens: int,
    as_json: bool,
    **loading: Any,
) -> None:
    """`loading` are options of `Engine.load`."""
    critic.check_mode(critique)
    examples = open_examples(data, media_root, video_frames)
    for note in getattr(examples, "notes", ()):
        say(note)
    engine = Engine.load(model, **loading)
    require_reward_model(engine, model)
    critic.check_lengths(engine, examples, critique)
    examples = exchange_media(examples) if blind else examples
    table = by_category(critic.score(engine, examples, critique=critique, max_new_tokens=max_new_tokens))
    longer = longer_wins(examples.records)
    if as_json:
        strict_json.print_figures({name: dataclasses.asdict(row) for name, row in table.items()} | {"acc_longer_wins": longer})
        return
    print(f"{'category':<16}{'pairs':>7}{'groups':>8}{'ACC':>8}{'ACC+':>8}")
    for name, row in table.items():
        print(f"{name:<16}{row.pairs:>7}{row.groups:>8}{_shown(row.acc):>8}{_shown(row.acc_plus):>8}")
    print(f"{'longer wins':<31}{longer:>8.3f}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
