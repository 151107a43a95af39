"""The pages of `mmrlhf data stats` and `mmrlhf data show`: statistics of a data set, and one group with its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.pages.charts import histogram
from mmrlhf_jax.pages.parts import chip, element, join, page, percent, table, tiles
from mmrlhf_jax.pages.small_pictures import pictures
from mmrlhf_jax.records import RankedRecord, Response

STYLE = """
h1{overflow-wrap:anywhere}summary{cursor:pointer;font-size:.82rem;color:var(--muted);margin-top:8px}
.media{display:grid;grid-template-columns:repeat(auto-fill,minmax(180px,1fr));gap:12px;align-items:start}
.media.one{grid-template-columns:minmax(0,640px)}
.response{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px 16px;margin:12px 0}
.response header{display:flex;flex-wrap:wrap;gap:6px;align-items:center;margin-bottom:6px}
.response header b{font-size:1.1rem;margin-right:6px}
.text{white-space:pre-wrap;overflow-wrap:anywhere;max-width:none;margin:.2rem 0}
.critique{border-left:3px solid var(--rule);padding-left:12px;color:var(--muted);font-size:.9rem;margin-top:8px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.82rem;color:var(--muted)}
"""


def stats_page(name: str, stats: Mapping[str, Any], sizes: np.ndarray, slots: int, lengths_from: str) -> str:
    """A page with the figures of `data.stats.summarise` and charts. `lengths_from` says which tokenizer was used."""
    column = dict(zip(Budget.names(), sizes.T, strict=True))
    packed = stats["packing"][str(slots)]
    sharing = stats["pair_expanded_tokens"] / max(stats["tokens"], 1)
    figures = [
        ("groups", f"{stats['groups']:,}", f"{stats['responses']:,} responses"),
        ("pairs", f"{stats['pairs']:,}", f"strictly ordered; {stats['tied_pairs']:,} ties"),
        ("media", f"{stats['images']:,} + {stats['videos']:,}", f"images + videos; {stats['text_only']:,} groups of text only"),
        (
            "tokens",
            f"{stats['tokens']:,}",
            f"{sharing:.1f} times as many in pairs",
        ),
        ("packing", percent(packed["fill"]), f"of {slots} slots filled, {packed['rows']:,} rows per epoch"),
        ("too large", f"{stats['dropped']:,}", f"groups for rows of {slots} slots"),
    ]
    lengths = [
        histogram("Slots per group", column["slots"], x_label="tokens: shared prefix once, then every response"),
        histogram("Targets per group", column["targets"], x_label="tokens of all responses"),
        histogram("Visual tokens per group", column["visual"], x_label="tokens"),
        histogram("Tiles per group", column["tiles"], x_label="images the tower sees", whole=True),
        histogram("Responses per group", column["responses"], x_label="responses", whole=True),
        histogram("Pairs per group", column["pairs"], x_label="strictly ordered pairs", whole=True),
    ]
    scores = [
        histogram(name, np.repeat([float(value) for value in counts], list(counts.values())), x_label="score")
        for name, counts in stats["scores"].items()
    ]
    packing = [
        (f"{int(size):,}", f"{row['rows']:,}", percent(row["fill"]), f"{row['dropped']:,}")
        for size, row in sorted(stats["packing"].items(), key=lambda item: int(item[0]))
    ]
    quantiles = [(name, *(f"{value:,.0f}" for value in row.values())) for name, row in stats["per_group"].items()]
    sections = {
        "Sizes": join(
            element("p", f"Tokens: {lengths_from}.", class_="muted"),
            element("div", *lengths, class_="charts"),
            table(("per group", *next(iter(stats["per_group"].values()))), quantiles, class_="numbers"),
        ),
        "Packing": table(("slots per row", "rows per epoch", "fill", "groups too large"), packing, class_="numbers"),
        "Rankings": join(
            element("p", "How many responses stand on each tier, best first. Ties give no pair.", class_="muted"),
            table(("tiers", "groups"), _counts(stats["tiers"]), class_="numbers"),
        ),
        "Scores": element("div", *scores, class_="charts") if scores else element("p", "none are given", class_="muted"),
        "Sources": table(("source", "groups"), _counts(stats["sources"]), class_="numbers"),
    }
    return page(f"Data: {name}", tiles(figures), sections, STYLE)


def card_page(example: Example) -> str:
    """A page of one group: its media, the prompt, and the responses from best to worst with all their fields."""
    record = example.record
    ordered = sorted(record.responses, key=lambda response: (response.rank is None, response.rank or 0))
    media = element("div", *pictures(example), class_="media one" if len(example.images) == 1 else "media")
    extra = element("pre", strict_json.dumps(dict(record.extra), ensure_ascii=False, indent=1)) if record.extra else None
    sections = {
        "Prompt": join(media, element("p", record.prompt, class_="text lead")),
        "Responses": join(*[_response(response) for response in ordered]),
        **({"Other fields": extra} if extra else {}),
    }
    return page(f"Group {record.id}", _facts(record), sections, STYLE)


def _facts(record: RankedRecord) -> Markup:
    pairs = len(record.pairs())
    chips = [f"{len(record.responses)} responses", f"{pairs} strictly ordered pair{'' if pairs == 1 else 's'}"]
    chips += [record.source] if record.source else []
    return element("p", join(*[join(chip(text), " ") for text in chips]))


def _response(response: Response) -> Markup:
    chips = [chip(f"{name} {value:g}") for name, value in (response.scores or {}).items()]
    chips += [chip(f"reward {response.reward:.3f}")] if response.reward is not None else []
    chips += [chip(response.model)] if response.model else []
    rank = "not ranked" if response.rank is None else f"{response.rank}."
    parts = [element("header", element("b", rank), *chips), element("p", response.text, class_="text")]
    if response.critique is not None:
        parts.append(element("div", element("p", response.critique, class_="text"), class_="critique"))
    if response.extra:
        fields = element("pre", strict_json.dumps(dict(response.extra), ensure_ascii=False, indent=1))
        parts.append(element("details", element("summary", f"other fields: {', '.join(response.extra)}"), fields))
    return element("article", *parts, class_="response")


def _counts(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in counts.items()]
