"""A summary of margins (`margin_summary.summarise`) in words: sentences that several places show, and plain tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmrlhf_jax.data.margin_summary import GATE, NEAR
from mmrlhf_jax.progress import percent

NO_PAIRS = "no strictly ordered pair has a margin, so that there is nothing to say about margins"


def formula(scale: Mapping[str, Any]) -> str:
    """β(δ) with its numbers."""
    clamped = "δ" if scale["negative_margins"] == "unclamped" else "max(δ, 0)"
    return f"β(δ) = {scale['beta']:g} · (1 + {scale['w']:g} · (1 − exp(−{scale['k']:.4g} · {clamped})))"


def left_out(summary: Mapping[str, Any]) -> str | None:
    """What of the data the summary could not count; None if nothing."""
    said = {
        "missing": ("pair lacks a margin", "pairs lack a margin"),
        "not_finite": ("margin is not finite", "margins are not finite"),
        "responses_without_reward": ("response has no reward", "responses have no reward"),
    }
    found = [f"{summary[name]:,} {words[summary[name] != 1]}" for name, words in said.items() if summary[name]]
    return f"left out: {', '.join(found)}" if found else None


def agreement(summary: Mapping[str, Any]) -> str:
    """One sentence: how many pairs are ordered as the ranks say, and how large margins are."""
    ties = f" ({summary['ties']:,} ties, δ = 0, count half)" if summary["ties"] else ""
    return (
        f"δ agrees with the rank for {percent(summary['share_right'])} of {summary['pairs']:,} pairs{ties};"
        f" the median |δ| is {summary['quantiles']['50']:.3g}"
    )


def ends(summary: Mapping[str, Any]) -> str:
    """One sentence: the shares of pairs whose β is near the ends of its range."""
    scale, beta = summary["scale"], summary["beta"]
    if beta is None:
        if summary["histogram"] is None:
            return "no pair has a β, because all margins are negative and negative_margins: drop leaves them out"
        cause = "k is 0" if scale["w"] and not scale["k"] else f"w is {scale['w']:g}"
        lost = ", which is lost in rounding" if scale["w"] and scale["k"] else ""
        return f"β of every pair is {scale['beta']:g}, because {cause}{lost}"
    low, high = (f"{scale[name]:.3g}" for name in ("lowest", "highest"))
    return (
        f"β of {percent(beta['at_floor'])} of {beta['pairs']:,} pairs is within {100 * NEAR:g} % of the rise from the floor"
        f" {low}, and of {percent(beta['at_ceiling'])} from the ceiling {high}"
    )


def gate(summary: Mapping[str, Any]) -> str | None:
    """Why β is no scale of the margins, and what to do about it; None if it is one."""
    beta, scale = summary["beta"], summary["scale"]
    if beta is None or not beta["is_gate"]:
        return None
    floor, ends = beta["at_floor"], beta["at_floor"] + beta["at_ceiling"]
    start, end = beta["rises_over"]
    cause = (
        f"because at k = {scale['k']:.4g} it rises only from δ = {start:.2g} to {end:.2g}, and the median |δ| is"
        f" {summary['quantiles']['50']:.3g}"
    )
    remedy, not_above_0 = None if scale["by_median"] else _median_remedy(beta, ends), beta["not_above_0"]
    if floor > GATE and not_above_0 > (floor / 2 if remedy is None else GATE):
        return (
            f"β is no scale: {percent(floor)} of the pairs are at its floor, because δ is not above 0 for"
            f" {percent(not_above_0)}; look whether ranks or rewards are the wrong way round, or train a reward model"
            " that tells these responses apart"
        )
    if floor > GATE:
        return (
            f"β is nearly the same for all pairs, as in plain DPO: {percent(floor)} of them are at its floor, {cause};"
            f" {remedy or 'give a larger objective.scaling.k'}"
        )
    calibrate = (
        "calibrate the reward model (objective.centring, or stop its training earlier by held-out data), so that its margins"
        " mean something"
    )
    return (
        f"β is a gate, not a scale: for {percent(ends)} of the pairs it is at one of its two ends, {cause};"
        f" {', or '.join(filter(None, (remedy, calibrate)))}"
    )


def _median_remedy(beta: Mapping[str, Any], ends: float) -> str | None:
    """What `k: median` does; None if it leaves no fewer pairs at the ends of the range of β than the share `ends`."""
    found = beta["with_median_k"]
    if found is None or not found["at_ends"] < ends:
        return None
    gives = f"it is {found['k']:.4g} for these pairs, and leaves {percent(found['at_ends'])} at the ends"
    return f"set objective.scaling.k: median ({gives})"


def lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """The summary as tables of plain text."""
    if not summary["pairs"]:
        yield NO_PAIRS
    else:
        yield agreement(summary)
        yield "".join(f"{name:>10}" for name in ("|δ|", *(f"{q} %" for q in list(summary["quantiles"])[:-1]), "max"))
        yield "".join([f"{'':>10}", *(f"{value:>10.3g}" for value in summary["quantiles"].values())])
        yield ""
        yield f"{'|δ| from':>10}{'to':>10}{'pairs':>8}{'right':>8}{'ties':>7}{'share':>9}{'95 %':>16}{'calibrated':>12}"
        yield from map(_bin, summary["reliability"])
        yield "calibrated: the share that a Bradley–Terry reward model would have right with these margins, the mean of σ(|δ|)"
        if summary["scale"] is not None:
            yield ""
            yield from _betas(summary)
    if (rest := left_out(summary)) is not None:
        yield rest


def _bin(row: Mapping[str, Any]) -> str:
    interval = "–".join(f"{100 * end:.1f}" for end in row["interval"])
    shares = f"{percent(row['share_right']):>9}{interval:>16}{percent(row['calibrated']):>12}"
    return f"{row['low']:>10.3g}{row['high']:>10.3g}{row['pairs']:>8}{row['right']:>8}{row['ties']:>7}{shares}"


def _betas(summary: Mapping[str, Any]) -> Iterator[str]:
    yield formula(summary["scale"])
    yield ends(summary)
    if (beta := summary["beta"]) is not None:
        edges, counts = beta["edges"][::2], [a + b for a, b in zip(beta["counts"][::2], beta["counts"][1::2], strict=True)]
        yield f"{'β from':>10}{'to':>10}{'pairs':>8}{'share':>9}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            yield f"{low:>10.4g}{high:>10.4g}{count:>8}{percent(count / beta['pairs']):>9}"
    if (warning := gate(summary)) is not None:
        yield warning
