"""How fast one core feeds a chip: this pipeline against a torch DataLoader over transformers' processor, on the same photos.

    python -m tests.benchmarks.host_throughput PHOTOS [--tokenizer DIR] [--repeats 3]

Every photo is one ranking group of four responses with all six pairs. Ours: decode, cut tiles, tokenise, lay out and pack
rows. The DataLoader's dataset does what a trainer of pairs does per pair: decode, transformers' image processor of this model,
both conversations tokenised, collated to padded tensors. Both run in one process on one thread; CPU seconds count, so that a
busy machine does not matter. The last line gives the DataLoader what no such trainer has: every photo processed only once.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["TOKENIZERS_PARALLELISM"] = "1"

from PIL import Image

from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.examples import Example, Layout
from mmrlhf_jax.data.images import image_size
from mmrlhf_jax.data.packing import auto_budget
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.stats import ESTIMATED
from mmrlhf_jax.data.stream import Rows, batches
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.records import RankedRecord, Response

GEOMETRY = ESTIMATED.typical_geometry()

RANKS = (1, 2, 3, 4)
SENTENCE = "The picture shows a scene that can be described in a few words, and this answer does so at some length. "
SLOTS = 16384


class Photos:
    """Groups over photographs that are in memory."""

    weights = None
    fingerprint = "photos"

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files
        self.records = [
            RankedRecord(
                id=str(i),
                prompt="Describe the picture.",
                responses=tuple(Response(text=f"{rank}: " + SENTENCE * 8, rank=rank) for rank in RANKS),
                images=("photo",),
            )
            for i in range(len(files))
        ]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        return Example(self.records[index], (self.files[index],))

    def layout(self, index: int) -> Layout:
        return Layout((image_size(self.files[index], "photo"),))


def our_rows(photos: Photos, encoder: GroupEncoder) -> Rows:
    from mmrlhf_jax.data.index import build_index

    index = build_index(photos, encoder, jobs=1)
    return Rows(photos, encoder, index, Budget(*map(int, auto_budget(index.sizes, SLOTS))), seed=0)


def stream_once(rows: Rows) -> int:
    """Pairs delivered."""
    count = rows.count(1)
    return sum(
        int((batch.pair_weights > 0).sum()) for batch in batches(rows, batch_rows=1, steps=count, total=count, threads=1)
    )


def loader(photos: Photos, tokenizer: Any, image_processor: Any, cached: bool) -> Any:
    """A torch DataLoader of pairs in the trainer's shape."""
    import torch

    tokens_of: Callable[[str], list[int]] = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    pairs = [(photo, pair) for photo in range(len(photos)) for pair in photos.records[photo].pairs()]
    seen: dict[int, Any] = {}

    def process(photo: int) -> Any:
        if photo in seen:
            return seen[photo]
        image = Image.open(io.BytesIO(photos.files[photo])).convert("RGB")
        result = image_processor(image, return_tensors="pt")
        if cached:
            seen[photo] = result
        return result

    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pairs)

        def __getitem__(self, index: int) -> dict[str, Any]:
            photo, pair = pairs[index]
            record, visual = photos.records[photo], process(photo)
            start = tokens_of("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
            start += [image_token] * 2929 + tokens_of(f"\n{record.prompt}<|im_end|>\n<|im_start|>assistant\n")
            ends = [tokens_of(record.responses[i].text + "<|im_end|>\n") for i in pair]
            ids = [torch.tensor(start + end) for end in ends]
            return {"ids": ids, "prompt": len(start), "pixel_values": visual["pixel_values"]}

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        ids = [sequence for item in items for sequence in item["ids"]]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=0)
        labels = padded.clone()
        for row, item in enumerate(item for item in items for _ in range(2)):
            labels[row, : item["prompt"]] = -100
        return {
            "input_ids": padded,
            "labels": labels,
            "attention_mask": padded != 0,
            "pixel_values": torch.cat([item["pixel_values"] for item in items]),
        }

    return torch.utils.data.DataLoader(Pairs(), batch_size=1, collate_fn=collate, num_workers=0)


def cpu_seconds(work: Callable[[], Any], repeats: int) -> float:
    """The best of some repetitions."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    import torch
    from transformers import AutoTokenizer
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--tokenizer", required=True, help="Hugging Face directory")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(path for path in arguments.photos.iterdir() if path.suffix in (".jpg", ".png"))
    photos = Photos([path.read_bytes() for path in files])
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    pieces = PieceTokenizer(AutoTokenizer.from_pretrained(arguments.tokenizer), tokenizer.convert_tokens_to_ids("<image>"))
    encoder = GroupEncoder(pieces, GEOMETRY, "qwen_1_5")
    rows = our_rows(photos, encoder)
    pairs = stream_once(rows)
    ours = cpu_seconds(lambda: stream_once(rows), arguments.repeats)
    print(f"{len(photos)} photos, {pairs} pairs, {rows.count(1)} rows of {SLOTS} slots; CPU seconds on one core")
    print(f"{'this pipeline':<44}{ours:>8.2f} s{pairs / ours:>9.1f} pairs/s{rows.count(1) / ours:>8.2f} rows/s")
    for name, cached in (("DataLoader, transformers' processor", False), ("the same, every photo processed once", True)):
        work = lambda cached=cached: list(map(len, loader(photos, tokenizer, LlavaOnevisionImageProcessorPil(), cached)))
        theirs = cpu_seconds(work, arguments.repeats)
        print(f"{name:<44}{theirs:>8.2f} s{pairs / theirs:>9.1f} pairs/s{theirs / ours:>8.2f} x")


if __name__ == "__main__":
    main()
