"""Generation against transformers' batched `generate`: 32 prompts, 4 answers each, same model, same number of new tokens.

    python -m tests.benchmarks.generation [--turns 3] [--batch 32] [--prompts text pictures] [--lengths equal lognormal]

The model has random weights and the shapes of SmolLM2-135M behind a SigLIP tower of the published geometry, two layers deep: a
picture of 384 x 384 pixels is two tiles. Both sides write the same number of tokens for every text: first equal numbers, then
lognormal ones (sigma 0.5), where transformers computes every sequence of a batch up to its longest. Turns of both sides
alternate; medians and their ratio are printed, and the share of slots that were busy. float32, which both sides compute in full
precision on a CPU. With pictures a turn of transformers takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import torch

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.inference.engine import Engine, Prompt
from mmrlhf_jax.inference.lanes import lanes_for
from mmrlhf_jax.inference.prompts import prompt_trees
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.inference.scheduler import Scheduler
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.sharding.mesh import make_mesh
from tests import ranked, tiny
from tests.families import llava_onevision

PROMPTS, ANSWERS = 32, 4
SIDE = 384
TEXT = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": False,
}
TOWER = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 14,
}


def make_model(directory: Path) -> Path:
    grid = [[SIDE * i, SIDE * j] for i in range(1, 7) for j in range(1, 7)]
    return tiny.checkpoint(
        directory, tiny.config(text=TEXT, vision=TOWER, image_grid_pinpoints=grid, vision_aspect_ratio="pad")
    )


def make_prompts(pictures: bool) -> list[Prompt]:
    """Prompts of about 100 bytes, each one token."""
    found = []
    for number in range(PROMPTS):
        text = ranked.sentence(np.random.default_rng(number), 18)
        images = (ranked.picture((SIDE, SIDE), number),) if pictures else ()
        names = tuple(f"{place}.png" for place in range(len(images)))
        found.append(Prompt(Example(RankedRecord(f"{number}", text, (), names), images)))
    return found


class Ours(NamedTuple):
    """`busy` is the share of the slots that wrote a token, `busy_while_texts_wait` that until the last text has begun: then
    slots become free one after the other, whatever the scheduler does."""

    seconds: float
    busy: float
    busy_while_texts_wait: float


def ours(engine: Engine, prompts: Sequence[Prompt], lengths: np.ndarray, batch: int) -> Ours:
    asked = dataclasses.replace(
        engine.asked(int(lengths.max()), sampling=Sampling(temperature=1.0, seed=1), samples=ANSWERS), stops=frozenset()
    )
    started = time.perf_counter()
    trees = []
    for made, wanted in zip(prompt_trees(prompts, engine.encoder("answer"), asked), lengths, strict=True):
        branches = [dataclasses.replace(b, most=int(most)) for b, most in zip(made.tree.branches, wanted, strict=True)]
        trees.append(dataclasses.replace(made.tree, branches=branches))
    useful = total = useful_before = total_before = 0
    for lane, chosen in lanes_for(trees, batch, 1):
        running = Scheduler(engine.programs(lane), engine.model.apart())
        for number in chosen:
            running.submit(trees[number])
        before = 0, 0
        for _ in running.run():
            if any(left for _, left in running.queue) or any(group.waiting for group in running.groups):
                before = running.useful, running.steps * lane.slots
        useful, total = useful + running.useful, total + running.steps * lane.slots
        useful_before, total_before = useful_before + before[0], total_before + before[1]
    assert useful == lengths.sum()
    return Ours(time.perf_counter() - started, useful / total, useful_before / max(total_before, 1))


def theirs(model, engine: Engine, prompts: Sequence[Prompt], lengths: np.ndarray, batch: int, directory: Path) -> float:
    """Seconds of batches of prompts with 4 samples each; every sequence of a batch is written to its longest."""
    started = time.perf_counter()
    count = batch // ANSWERS
    for first in range(0, len(prompts), count):
        here = prompts[first : first + count]
        ids = []
        for prompt in here:
            (made,) = prompt_trees([prompt], engine.encoder("answer"), engine.asked(1))
            ids.append(np.concatenate([made.tree.tokens, made.tree.branches[0].tokens]))
        longest = max(map(len, ids))
        padded, mask = np.zeros((len(ids), longest), np.int64), np.zeros((len(ids), longest), np.int64)
        for row, tokens in enumerate(ids):
            padded[row, longest - len(tokens) :], mask[row, longest - len(tokens) :] = tokens, 1
        inputs = {"input_ids": torch.from_numpy(padded), "attention_mask": torch.from_numpy(mask)}
        pictures = [decode_image(data, "prompt") for prompt in here for data in prompt.example.images]
        if pictures:
            inputs |= llava_onevision.picture_inputs(directory, pictures)
        most = int(lengths[first : first + count].max())
        with torch.no_grad():
            model.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                num_return_sequences=ANSWERS,
                max_new_tokens=most,
                min_new_tokens=most,
                pad_token_id=0,
            )
    return time.perf_counter() - started


def main() -> None:
    from transformers import AutoModelForImageTextToText

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a text, or their median where they differ")
    parser.add_argument("--batch", type=int, default=32, help="sequences at a time, for both sides")
    parser.add_argument("--prompts", nargs="+", default=["text", "pictures"], choices=["text", "pictures"])
    parser.add_argument("--lengths", nargs="+", default=["equal", "lognormal"], choices=["equal", "lognormal"])
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        directory = make_model(Path(name))
        engine = Engine.load(str(directory), batch=given.batch, mesh=make_mesh({}, jax.devices()[:1]))
        model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = None
        model.generation_config.top_k = 0
        spread = np.exp(np.random.default_rng(0).normal(np.log(given.tokens), 0.5, (PROMPTS, ANSWERS)))
        numbers = {
            "equal": np.full((PROMPTS, ANSWERS), given.tokens),
            "lognormal": np.clip(spread, 4, 4 * given.tokens).astype(int),
        }
        for each in given.prompts:
            prompts = make_prompts(each == "pictures")
            for kind, lengths in ((kind, numbers[kind]) for kind in given.lengths):
                ours(engine, prompts, lengths, given.batch)
                compiled = engine.compiled
                turns = []
                for turn in range(given.turns):
                    found = ours(engine, prompts, lengths, given.batch)
                    turns.append((found.seconds, theirs(model, engine, prompts, lengths, given.batch, directory)))
                    print(f"  turn {turn + 1}: {found.seconds:.1f} s against {turns[-1][1]:.1f} s", flush=True)
                assert engine.compiled == compiled, "a program was compiled later"
                most = max(collections.Counter(each.split(": ")[0] for each in compiled).values())
                mine, other = (statistics.median(column) for column in zip(*turns, strict=True))
                (made,) = prompt_trees(prompts[:1], engine.encoder("answer"), engine.asked(1))
                what = f"{len(made.tree.visual)} visual tokens in a prompt of {len(made.tree.tokens)}"
                print(
                    f"{what}, {kind} lengths: {mine:.1f} s against {other:.1f} s, {other / mine:.2f} times;"
                    f" slots busy {found.busy:.1%}, {found.busy_while_texts_wait:.1%} while texts wait;"
                    f" at most {most} programs for a lane",
                    flush=True,
                )


if __name__ == "__main__":
    main()
