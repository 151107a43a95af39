"""A DPO step as TRL does it in PyTorch, with SDPA, bfloat16 autocast and gradient checkpointing, on the pairs of our step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from mmrlhf_jax.models.llava_onevision.published import published_settings
from tests import tiny
from tests.benchmarks.gpu.cases import make_case
from tests.benchmarks.gpu.parts import Skipped

SIZE, TURNS = "0.5b", 3


def measure(small: bool, report: Callable[[dict[str, Any]], None]) -> None:
    try:
        import torch
        from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

        from tests.benchmarks import torch_dpo
    except ImportError as error:
        raise Skipped(f"PyTorch is not installed: {error}") from None
    if not small and not torch.cuda.is_available():
        raise Skipped(f"PyTorch {torch.__version__} has no CUDA here")
    device = "cpu" if small else "cuda"
    case = make_case(SIZE, small)
    settings = tiny.config() if small else published_settings(SIZE)
    settings |= {"image_token_index": case.sizes.image_token}
    model = LlavaOnevisionConfig(**{name: value for name, value in settings.items() if name != "dtype"})

    def made(dtype: torch.dtype) -> torch.nn.Module:
        torch.manual_seed(0)
        with torch.device(device):
            return LlavaOnevisionForConditionalGeneration._from_config(model, dtype=dtype, attn_implementation="sdpa")

    # As in TRL under `bf16`: the policy in float32 under autocast, the reference in bfloat16.
    turn = torch_dpo.make_turn(
        made(torch.float32),
        made(torch.bfloat16),
        # A micro-batch is the pairs of one group.
        [torch_dpo.expanded_group(group, alone, device) for group, alone in case.groups],
        checkpointing=True,
        autocast=device,
    )
    report({"torch": torch.__version__, "size": SIZE, "pairs": case.pairs, "micro_batches": len(case.groups)})
    seconds: list[float] = []
    for number in range((1 if small else TURNS) + 1):  # the first one warms up
        started = time.perf_counter()
        loss = turn()  # reading the loss waits for the device
        seconds.append(time.perf_counter() - started)
        if number:
            took = statistics.median(seconds[1:])
            report({"loss": loss, "turns": number, "seconds": took, "pairs_per_second": case.pairs / took})
    if device == "cuda":
        report({"peak_bytes": torch.cuda.max_memory_allocated()})
