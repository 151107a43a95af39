"""MM-DPO's group step against a plain PyTorch DPO step, as TRL does it, on the same checkpoint, pairs and cores.

    python -m tests.benchmarks.torch_dpo [--responses 4] [--images 1] [--repeats 5] [--json]

The PyTorch side is pair-expanded ([chosen; rejected] along the batch, padded to the longest), encodes the images of every side,
runs the reference model in every step, projects completion tokens only, and learns with AdamW: TRL 1.16's `DPOTrainer` with
`loss_type ["sigmoid", "sft"]`. Its modules are transformers' own. Ours has the reference's log-probs from one pass before the
first step. Both take an optimizer step per turn, and their losses must stay equal from turn to turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlavaOnevisionForConditionalGeneration

from mmrlhf_jax import config
from mmrlhf_jax.data.rows import EncodedGroup
from mmrlhf_jax.data.unshared import exact_batch
from mmrlhf_jax.huggingface.load import load_model
from mmrlhf_jax.inference.scoring import make_scoring_step
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.models.llava_onevision import FAMILY
from mmrlhf_jax.planning.synthetic import synthetic_group
from mmrlhf_jax.sharding.feed import place
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.optimizer import make_optimizer
from mmrlhf_jax.training.state import init_state, split_model
from mmrlhf_jax.training.step import make_train_step
from tests import tiny

BETA, SFT_WEIGHT, RATE = 0.1, 0.25, 1e-5
SIZES = {
    "text": {
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    "vision": {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 384,
        "patch_size": 14,
    },
    "image_grid_pinpoints": [[384, 384]],
}

Turn = Callable[[], float]  # one optimizer step; its loss


def our_turn(directory: Path, group: EncodedGroup) -> Turn:
    """The train step of the project on one group, without remat, its reference log-probs computed beforehand."""
    mesh = make_mesh({}, jax.devices()[:1])
    objective = config.Preference(beta=BETA, sft_weight=SFT_WEIGHT, scaling=config.Scaling(mode="fixed"))
    settings = config.Optimizer(learning_rate=RATE, warmup_ratio=0.0, schedule="constant")
    with use_mesh(mesh), matmul_precision("float32"):
        model = load_model(directory, mesh=mesh, remat="none")
        graphdef, params, frozen = split_model(model, config.Trains())
        rows = exact_batch([group], model.config.geometry)
        scored, _ = make_scoring_step(graphdef, chunk=256)(params, frozen, place(rows, mesh))
        rows = place(rows._replace(reference_logps=np.asarray(scored.logps)), mesh)
        tx = make_optimizer(settings, 1000, FAMILY.parts)
        state = init_state(params, frozen, tx, mesh)
        places = jax.tree.map(lambda x: x.sharding, state)
        step = make_train_step(graphdef, task_of(objective), tx, chunk=256, shardings=places).lower(state, rows).compile()

    def turn() -> float:
        nonlocal state
        state, figures = jax.block_until_ready(step(state, rows))
        return float(figures["loss"])

    return turn


def torch_turn(directory: Path, group: EncodedGroup, alone: list[EncodedGroup], checkpointing: bool) -> Turn:
    """TRL's step: policy and live reference on [all chosen; all rejected]."""
    policy, reference = (
        LlavaOnevisionForConditionalGeneration.from_pretrained(directory, dtype=torch.float32) for _ in range(2)
    )
    return make_turn(policy, reference, [expanded_group(group, alone)], checkpointing=checkpointing)


def make_turn(
    policy, reference, batches: list[dict[str, torch.Tensor]], *, checkpointing: bool, autocast: str | None = None
) -> Turn:
    """An optimizer step over micro-batches of pairs (`expanded`), each of equal weight. With `autocast`, a device's type, the
    policy computes in bfloat16 there."""
    reference.requires_grad_(False)
    policy.model.vision_tower.requires_grad_(False)
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    policy.train()
    learnt = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(autocast or "cpu", torch.bfloat16, enabled=autocast is not None):
            logps, counts = summed_logps(policy, batch)
            with torch.no_grad():
                reference_logps, _ = summed_logps(reference, batch)
        chosen, rejected = (logps - reference_logps).chunk(2)
        half = len(counts) // 2
        sft = -logps[:half].sum() / counts[:half].sum()
        return -F.logsigmoid(BETA * (chosen - rejected)).mean() + SFT_WEIGHT * sft

    def turn() -> float:
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            loss = loss_of(batch) / len(batches)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        return float(total)

    return turn


def expanded_group(group: EncodedGroup, alone: list[EncodedGroup], device: str = "cpu") -> dict[str, torch.Tensor]:
    """The pairs of a group as [all chosen; all rejected], on a device."""
    batch = expanded([alone[i] for i in [*group.pairs[:, 0], *group.pairs[:, 1]]])
    return {name: x.to(device) for name, x in batch.items()}


def expanded(sides: list[EncodedGroup]) -> dict[str, torch.Tensor]:
    """Conversations padded on the right to the longest, their pictures normalised, one set per side."""
    length = max(len(side.tree.tokens) for side in sides)
    ids, completion = np.zeros((2, len(sides), length), np.int64)
    mask = np.zeros((len(sides), length), np.int64)
    for row, side in enumerate(sides):
        tokens = side.tree.tokens
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        completion[row, side.tree.predictors + 1] = 1
    pixels = np.stack([side.media.tiles for side in sides]).astype(np.float32) / 255
    processor = tiny.image_processor({"vision_config": {"image_size": pixels.shape[2]}, "image_grid_pinpoints": []})
    pixels = (pixels - np.float32(processor["image_mean"])) / np.float32(processor["image_std"])
    pixels = pixels.transpose(0, 1, 4, 2, 3)
    arrays = {"ids": ids, "mask": mask, "completion": completion.astype(bool), "pixels": pixels}
    return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()}


def summed_logps(model, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the completion's log-probs and its tokens, per conversation."""
    core = model.model
    embeddings = core.language_model.embed_tokens(batch["ids"])
    rows, images = batch["pixels"].shape[:2]
    hidden = core.vision_tower(batch["pixels"].flatten(0, 1), output_hidden_states=True).hidden_states[-1]
    features = core.multi_modal_projector(hidden)
    newline = core.image_newline[None, None].expand(rows * images, 1, -1)
    visual = torch.cat([features, newline], dim=1).reshape(-1, features.shape[-1])
    where = (batch["ids"] == model.config.image_token_id)[..., None].expand_as(embeddings)
    embeddings = embeddings.masked_scatter(where, visual)
    hidden = core.language_model(inputs_embeds=embeddings, attention_mask=batch["mask"], use_cache=False).last_hidden_state
    learnt = batch["completion"][:, 1:]
    logits = model.lm_head(hidden[:, :-1][learnt])
    logps = -F.cross_entropy(logits.float(), batch["ids"][:, 1:][learnt], reduction="none")
    owner = torch.arange(rows, device=logps.device)[:, None].expand_as(learnt)[learnt]
    return torch.zeros(rows, device=logps.device).index_add(0, owner, logps), learnt.sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=4)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--checkpointing", action="store_true", help="gradient checkpointing on the PyTorch side, TRL's default"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    print(json.dumps(compare(args)) if args.json else compare(args))


def compare(args: argparse.Namespace, sizes: dict = SIZES, response_tokens: int = 200) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        directory = tiny.checkpoint(Path(folder) / "model", tiny.config(**sizes))
        mesh = make_mesh({}, jax.devices()[:1])
        found = load_model(directory, mesh=mesh, dtype=jnp.float32).config
        made = dict(images=args.images, responses=args.responses, response_tokens=response_tokens)
        group, alone = synthetic_group(found, **made)
        turns = [our_turn(directory, group), torch_turn(directory, group, alone, args.checkpointing)]
    seconds, cpu_seconds, losses = [], [], []
    for number in range(args.repeats + 1):  # the first turn warms up
        for column in (seconds, cpu_seconds, losses):
            column.append([])
        for turn in turns:
            start, cpu_start = time.perf_counter(), time.process_time()
            losses[-1].append(turn())
            seconds[-1].append(time.perf_counter() - start)
            cpu_seconds[-1].append(time.process_time() - cpu_start)
        print(f"turn {number}: ours, torch: {seconds[-1]} s, losses {losses[-1]}", file=sys.stderr, flush=True)
    np.testing.assert_allclose(*np.transpose(losses), rtol=1e-3)
    ours, theirs = (statistics.median(column) for column in np.transpose(seconds[1:]))
    return {
        "pairs": len(group.pairs),
        "image_tokens": args.images * found.vision.patches,
        "our_seconds": ours,
        "torch_seconds": theirs,
        "ratio": statistics.median(b / a for a, b in seconds[1:]),
        "cpu_ratio": statistics.median(b / a for a, b in cpu_seconds[1:]),  # of the cores' time: what a busy machine shows
        "our_pairs_per_second": len(group.pairs) / ours,
        "torch_pairs_per_second": len(group.pairs) / theirs,
        "threads": torch.get_num_threads(),
        "losses": losses,
    }


if __name__ == "__main__":
    main()
