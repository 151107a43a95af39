"""The figures as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GiB = 2**30
Result = Mapping[str, Any]


def line(name: str, row: Mapping[str, Any]) -> str:
    """A part's status, as it ends."""
    reason = f": {row['reason']}" if row["reason"] else ""
    return f"{name}: {row['status']} in {row['seconds']:.1f} s{reason}"


def as_text(figures: Mapping[str, Any]) -> str:
    """Everything that is known, part by part. What was not measured is a dash."""
    parts = figures["parts"]
    known = {name: row["result"] for name, row in parts.items()}
    lines = ["", "small shapes: these figures measure nothing of interest"] if figures["small"] else [""]
    for name, row in parts.items():
        result = row["result"]
        lines.append(line(name, row))
        shown = SHOWN[name.split()[0]]
        lines += [f"    {each}" for each in shown(result, known)] if result else []
    return "\n".join(lines)


def _card(result: Result, _: Mapping[str, Result]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    return [
        f"{result.get('kind')}, {_bytes(result.get('memory_bytes'))}, driver {result.get('driver') or '-'}; {versions}",
        f"bfloat16 products {_tera(result.get('matmul_flops_per_second'))} TFLOP/s (published"
        f" {_tera(result.get('published_peak_flops'))}), memory {_tera(result.get('memory_bytes_per_second'), 2)} TB/s",
    ]


def _attention(result: Result, _: Mapping[str, Result]) -> list[str]:
    lines = [
        f"largest error in {dtype}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        for dtype, errors in result.get("errors", {}).items()
    ]
    lines.append(f"{'row':<24}{'forward':>12}{'with backward':>16}{'cuDNN':>12}{'with backward':>16}  TFLOP/s of visible pairs")
    for row in result.get("rows", []):
        theirs = row.get("cudnn", {})
        cells = [_tera(side.get(f"{kind}_flops_per_second")) for side in (row["ours"], theirs) for kind in ("forward", "both")]
        lines.append(
            f"{row['mask'] + ' ' + str(row['slots']):<24}" + "".join(f"{c:>{w}}" for c, w in zip(cells, (12, 16, 12, 16)))
        )
        if "reason" in theirs:
            lines.append(f"  no cuDNN: {theirs['reason']}")
    return lines


def _step(result: Result, known: Mapping[str, Result]) -> list[str]:
    card, learns = known.get("card", {}), "LoRA" if result["lora"] else "full"
    lines = [
        f"{result['size']} {learns}, {result['layout']} layout: {result['groups']} groups, {result['pairs']} pairs,"
        f" {result['tokens']} tokens in {result['pieces']} pieces"
    ]
    if "seconds" in result:
        rate = result["flops"] / result["seconds"]
        share = rate / card["matmul_flops_per_second"] if card.get("matmul_flops_per_second") else None
        lines.append(
            f"{result['seconds']:.4g} s, {result['pairs_per_second']:.4g} pairs/s, {_tera(rate)} TFLOP/s useful,"
            f" {'-' if share is None else f'{share:.1%}'} of the measured products"
        )
    if "compiler_peak_bytes" in result:
        measured, said = result.get("peak_bytes"), result["compiler_peak_bytes"]
        ratio = "" if not measured or not said else f", {measured / said:.3f} of it"
        compiling = f"{result['compile_seconds']:.0f} s to compile"
        lines.append(f"peak {_bytes(measured)} measured{ratio}; the compiler's {_bytes(said)}; {compiling}")
    return lines


def _torch(result: Result, known: Mapping[str, Result]) -> list[str]:
    if "seconds" not in result:
        return []
    ours = known.get(f"step {result['size']}", {}).get("pairs_per_second")
    ratio = f"; our step has {ours / result['pairs_per_second']:.3g} times as many pairs/s" if ours else ""
    return [
        f"{result['size']} full, PyTorch {result['torch']}: {result['seconds']:.4g} s,"
        f" {result['pairs_per_second']:.4g} pairs/s, peak {_bytes(result.get('peak_bytes'))}{ratio}"
    ]


def _determinism(result: Result, _: Mapping[str, Result]) -> list[str]:
    if "bit_exact" not in result:
        return []
    if result["bit_exact"]:
        return [f"two steps are alike bit for bit; {result['seconds']:.4g} s a step {result['flags']}".rstrip()]
    return [
        f"two steps differ in {result['parameters_that_differ']} entries of parameters and {result['moments_that_differ']} of"
        f" moments; {result['seconds']:.4g} s a step {result['flags']}".rstrip()
    ]


def _decode(result: Result, _: Mapping[str, Result]) -> list[str]:
    if "seconds" not in result:
        return []
    return [
        f"{result['size']}: {result['tokens_per_second']:,.0f} tokens/s, {result['sequences']} answers at a time behind"
        f" trunks of {result['trunk']}; {result['seconds'] * 1e3:.2f} ms a token"
    ]


def _plan(result: Result, known: Mapping[str, Result]) -> list[str]:
    ends = [result.get(f"by_{library}_bytes") for library in ("cublas", "triton")]
    measured = next((step.get("peak_bytes") for name, step in known.items() if _measures(name, step, result)), None)
    ratio = f"; the measured peak is {measured / ends[0]:.3f} of the first" if measured and ends[0] else ""
    return [f"{result['size']} on {result['card']}: peak {_bytes(ends[0])} with cuBLAS, {_bytes(ends[1])} with Triton{ratio}"]


def _measures(name: str, step: Result, plan: Result) -> bool:
    return name.startswith("step ") and step.get("size") == plan["size"]


# By the first word of a part's name.
SHOWN = {
    "card": _card,
    "attention": _attention,
    "step": _step,
    "pairs": _step,
    "torch": _torch,
    "determinism": _determinism,
    "decode": _decode,
    "plan": _plan,
}


def _bytes(count: float | None) -> str:
    return "-" if count is None else f"{count / GiB:.2f} GiB"


def _tera(rate: float | None, digits: int = 1) -> str:
    return "-" if rate is None else f"{rate / 1e12:.{digits}f}"
