"""The data path at MM-RLHF's full size: 62,545 synthetic pairs folded, built, indexed and planned, with the time of each stage.

    python -m tests.benchmarks.data_scale OUT [--tokenizer DIR] [--scale 1.0]

Sizes are the released set's: 16,342 prompts of five kinds in its proportions, tiers such that the pairs are 62,545, videos of
10 frames. Pictures are stand-ins of usual sizes: 400 different ones, used again and again, but stored anew for every prompt.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.index import build_index
from mmrlhf_jax.data.packing import auto_budget, fill, plan_rows
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.sources import read_records
from mmrlhf_jax.data.stats import ESTIMATED, estimated_encoder
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.models.llava_onevision import vision_plan
from mmrlhf_jax.records import strict_pairs

GEOMETRY = ESTIMATED.typical_geometry()

PROMPTS, PAIRS = 16_342, 62_545
KINDS = {"short": 6447, "long": 4704, "video": 2855, "mcq": 1352, "safety": 984}
# Tiers as in the RewardBench file, with their numbers there.
TIERS = {
    "1-1-1": 6,
    "2-1": 6,
    "1-1-2": 5,
    "1-1-1-1": 5,
    "1-2": 5,
    "1-2-1": 4,
    "3-1": 4,
    "2-2": 3,
    "1-3": 3,
    "4-1": 3,
    "2-1-1": 2,
}
WORDS = {"mcq": (2.5, 1.0), "short": (3.2, 0.7), "long": (4.9, 0.5), "safety": (4.5, 0.7), "video": (4.5, 0.6)}  # lognormal
AROUND = 25  # tokens of the template, and the prompt's number
SIZES = [(384, 384), (640, 480), (480, 640), (800, 600), (1024, 683), (500, 375), (1280, 720), (336, 448)]
VOCABULARY = [
    "the",
    "picture",
    "shows",
    "a",
    "person",
    "standing",
    "near",
    "the",
    "table",
    "with",
    "several",
    "objects",
    "and",
    "one",
    "of",
    "them",
    "is",
    "clearly",
    "visible",
    "because",
    "of",
    "its",
    "colour",
    "while",
    "others",
    "are",
    "partially",
    "hidden",
    "behind",
    "a",
    "window",
    "so",
    "that",
    "the",
    "answer",
    "depends",
    "on",
    "what",
    "we",
    "can",
    "actually",
    "see",
]


def write_source(root: Path, scale: float) -> Path:
    """`dpo_pairs.jsonl` with its media under `root`."""
    rng = np.random.default_rng(0)
    write_media(root, rng)
    prompts = round(PROMPTS * scale)
    kinds = rng.choice(list(KINDS), prompts, p=np.asarray(list(KINDS.values())) / sum(KINDS.values()))
    groups = draw_tiers(rng, prompts, round(PAIRS * scale))
    with (root / "dpo_pairs.jsonl").open("w") as file:
        for number, (kind, ranks) in enumerate(zip(kinds, groups, strict=True)):
            media = {"video": f"video/{number % 24}"} if kind == "video" else {"image": f"{kind}/{rng.integers(40)}.jpg"}
            texts = [words(rng, kind) for _ in ranks]
            critiques = [words(rng, "long") for _ in ranks]
            prompt = f"{number}: {words(rng, 'short')}"
            for i, j in strict_pairs(ranks):
                row = {"id": f"{kind}_{number}", **media, "prompt": prompt, "chosen": texts[i], "rejected": texts[j]}
                file.write(json.dumps(row | {"chosen_reason": critiques[i], "rejected_reason": critiques[j]}) + "\n")
    return root / "dpo_pairs.jsonl"


def draw_tiers(rng: np.random.Generator, prompts: int, pairs: int) -> list[list[int]]:
    """Ranks of every prompt's responses, with exactly `pairs` strict pairs in all."""
    weights = np.asarray(list(TIERS.values())) / sum(TIERS.values())
    patterns = {name: [tier + 1 for tier, n in enumerate(map(int, name.split("-"))) for _ in range(n)] for name in TIERS}
    groups = [patterns[name] for name in rng.choice(list(TIERS), prompts, p=weights)]
    counts = np.asarray([len(strict_pairs(ranks)) for ranks in groups])
    six, two = patterns["1-1-1-1"], patterns["2-1"]
    for number in rng.permutation(prompts):  # exchange whole groups until the number is met
        missing = pairs - counts.sum()
        if missing == 0:
            break
        new = six if missing > 0 else two
        if abs(missing) < abs(len(strict_pairs(new)) - counts[number]):
            new = next((p for p in patterns.values() if len(strict_pairs(p)) - counts[number] == missing), groups[number])
        groups[number] = new
        counts[number] = len(strict_pairs(new))
    assert counts.sum() == pairs
    return groups


def write_media(root: Path, rng: np.random.Generator) -> None:
    for kind in KINDS:
        (root / kind).mkdir(parents=True, exist_ok=True)
        if kind != "video":
            for i in range(40):
                (root / kind / f"{i}.jpg").write_bytes(picture(rng, SIZES[i % len(SIZES)]))
    for clip in range(24):
        (root / "video" / str(clip)).mkdir(parents=True, exist_ok=True)
        for i in range(10):
            (root / "video" / str(clip) / f"{i:03d}.jpg").write_bytes(picture(rng, (640, 360)))


def picture(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """Smooth colours with some grain: a JPEG of about a photograph's size in bytes."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (size[1], size[0], 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def words(rng: np.random.Generator, kind: str) -> str:
    return " ".join(rng.choice(VOCABULARY, length(rng, kind)))


def length(rng: np.random.Generator, kind: str) -> int:
    mean, deviation = WORDS[kind]
    return int(np.clip(rng.lognormal(mean, deviation), 1, 600))


def approximate_sizes(prompts: int, frames: int = 10) -> np.ndarray:
    """int64[prompts, resources of `Budget`]: what an index of such a source holds, without source, media and tokenizer.

    A word counts as a token. `main` measures how near that comes.
    """
    rng = np.random.default_rng(0)
    pictures = [vision_plan.plan_image(height, width, GEOMETRY) for width, height in SIZES]
    video = vision_plan.plan_video(frames, GEOMETRY)
    kinds = rng.choice(list(KINDS), prompts, p=np.asarray(list(KINDS.values())) / sum(KINDS.values()))
    sizes = []
    for kind, ranks in zip(kinds, draw_tiers(rng, prompts, round(PAIRS * prompts / PROMPTS)), strict=True):
        plan = video if kind == "video" else pictures[rng.integers(len(pictures))]
        targets = sum(length(rng, kind) + 1 for _ in ranks)
        slots = plan.tokens + length(rng, "short") + AROUND + targets + len(ranks)
        sizes.append((slots, plan.tiles, plan.tokens, targets, len(ranks), len(strict_pairs(ranks))))
    return np.asarray(sizes, np.int64)


def timed(name: str, stage: Callable[[], Any], count: Callable[[Any], int], unit: str) -> Any:
    start, before = time.perf_counter(), cpu_seconds()
    result = stage()
    wall, cpu = time.perf_counter() - start, cpu_seconds() - before
    print(f"{name:<24}{wall:>9.1f} s wall{cpu:>9.1f} s CPU{count(result) / cpu:>10.0f} {unit} per CPU second", flush=True)
    return result


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended; what a busy machine does not change."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", help="Hugging Face directory; default: an estimate of lengths")
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    root = arguments.out / "source"
    source = root / "dpo_pairs.jsonl"
    if not source.exists():
        write_source(root, arguments.scale)
    rows = sum(1 for _ in source.open())
    records = timed("fold", lambda: read_records(source), lambda _: rows, "pairs")
    print(f"{rows} pairs are {len(records)} groups with {sum(len(r.pairs()) for r in records)} strictly ordered pairs")
    built = timed("build", lambda: build(source, arguments.out / "built", video_frames=10), len, "groups")
    encoder = estimated_encoder()
    if arguments.tokenizer:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
        encoder = GroupEncoder(PieceTokenizer(tokenizer, tokenizer.convert_tokens_to_ids("<image>")), GEOMETRY, "qwen_1_5")
        index = timed("index", lambda: build_index(built, encoder), lambda index: len(index.groups), "groups")
        sizes = index.sizes
    else:
        from mmrlhf_jax.data.stats import measure

        sizes = timed("index", lambda: measure(built, encoder), len, "groups")
    plan(sizes)
    print("The same from approximate lengths, as the tests have them:")
    plan(approximate_sizes(len(sizes)))


def plan(sizes: np.ndarray) -> None:
    for slots in (8192, 16384):
        budget = auto_budget(sizes[sizes[:, 0] <= slots], slots)
        fitting = sizes[(sizes <= budget).all(axis=1)]
        rows = timed(f"plan, rows of {slots}", lambda b=budget, f=fitting: plan_rows(f, b, seed=0, epoch=0), len, "rows")
        left = len(sizes) - len(fitting)
        share, most = 100 * fill(fitting, rows, slots), dict(zip(Budget.names(), budget.tolist(), strict=True))
        print(f"  {len(fitting)} groups in {len(rows)} rows, {share:.1f} % full, {left} too large; budgets {most}")


if __name__ == "__main__":
    main()
