"""Seconds that the quickstart's critic takes, with its models and data: `python -m tests.benchmarks.critic runs/quickstart`.

It scores what the quickstart scores: held-out scenes, the same with exchanged pictures, and all preferences. To compare two
versions, run it in turn in a checkout of each; a program is compiled once only with JAX_COMPILATION_CACHE_DIR set.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.evaluation.exchanged import exchange_media
from mmrlhf_jax.evaluation.reward_bench import accuracy
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.quickstart.pipeline import MAX_CRITIQUE, use_processors


def main(directory: Path) -> None:
    use_processors()
    started = time.perf_counter()
    engine = Engine.load(str(directory / "models" / "reward"), batch=64)
    held_out = open_examples(str(directory / "data" / "held_out"))
    named = {
        "held out": held_out,
        "exchanged pictures": exchange_media(held_out),
        "preferences": open_examples(str(directory / "data" / "preference")),
    }
    for name, examples in named.items():
        begun = time.perf_counter()
        scored = critic.score(engine, examples, max_new_tokens=MAX_CRITIQUE)
        print(f"{name}: {time.perf_counter() - begun:.1f} s, ACC {accuracy(scored).acc:.3f}", flush=True)
    print(f"all, with loading: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
