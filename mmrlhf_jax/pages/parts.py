"""Parts of a report in a single HTML file without scripts or requests: document, tables, tiles (charts are in `charts.py`).

Every part is `Markup`; plain text is escaped when it is inserted, so that no response can break the page.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup
from PIL import Image

from mmrlhf_jax import progress


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """`<name attributes>children</name>`. `class_` becomes class, `stroke_width` stroke-width; None omits an attribute."""
    shown = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    if name in ("img", "input", "meta"):
        return Markup("<{}{}/>").format(name, shown)
    return Markup("<{}{}>{}</{}>").format(name, shown, Markup("").join(children), name)


def page(title: str, opening: Any, sections: Mapping[str, Any], style: str = "") -> str:
    """The complete document: title, opening, links to the sections (title -> content), and the sections.

    `style` is appended to the common style sheet. The document is also well-formed XML.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        Markup("<style>{}</style>").format(Markup(CSS + style)),
    )
    names = {title: re.sub(r"\W+", "-", title.lower()) for title in sections}
    links = [element("a", title, href=f"#{name}") for title, name in names.items()]
    shown = [element("section", element("h2", title), sections[title], id=name) for title, name in names.items()]
    body = element("body", element("main", element("h1", title), opening, element("nav", *links), *shown))
    return _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n")


# Characters that neither XML nor HTML can hold, which untrained models write.
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def join(*parts: Any) -> Markup:
    return Markup("").join(parts)


def tiles(cells: Iterable[tuple[str, ...]]) -> Markup:
    """Key figures side by side: (name, value, what it means, and more about it)."""
    shown = [
        element("div", element("b", name), element("strong", value), *[element("span", text) for text in about], class_="tile")
        for name, value, *about in cells
    ]
    return element("div", *shown, class_="tiles")


def table(
    head: Sequence[Any], rows: Iterable[Sequence[Any]], *, label: str | None = None, row_heads: bool = False, **attributes: Any
) -> Markup:
    """Rows of cells. The class `numbers` aligns all but the first column to the right. With `row_heads` the first cell of a row
    is its head; `label` names the table for screen readers, and lets the keyboard scroll it."""
    cells = [element("tr", *[_cell(cell, row_heads and not i) for i, cell in enumerate(row)]) for row in rows]
    top = element("thead", element("tr", *[element("th", cell, scope="col") for cell in head])) if head else Markup("")
    return scrolled(element("table", top, element("tbody", *cells), **attributes), label)


def _cell(content: Any, is_head: bool) -> Markup:
    return element("th", content, scope="row") if is_head else element("td", content)


def scrolled(content: Markup, label: str | None) -> Markup:
    """Content that may be wider than the page. With a `label` it can be reached and scrolled from the keyboard."""
    named = {} if label is None else {"role": "region", "tabindex": 0, "aria_label": label}
    return element("div", content, class_="scroll", **named)


def picture(content: bytes, description: str) -> Markup:
    """An `img` element with the encoded image bytes as data URL."""
    kind = Image.open(io.BytesIO(content)).get_format_mimetype()
    return element("img", src=f"data:{kind};base64,{base64.b64encode(content).decode()}", alt=description)


def number(value: Any) -> str:
    """A figure as text with four digits; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    """A share as text; a dash for None."""
    return "–" if value is None else progress.percent(value)


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign and so many digits behind the point."""
    return f"{value:+.{digits}f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """A duration in its two largest units: 2 h 5 min, 3 min 20 s, 12 s."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min"


def mark(right: bool) -> Markup:
    return element("b", "✓" if right else "✗", class_="good" if right else "bad", title="right" if right else "wrong")


def chip(text: str, good: bool | None = None) -> Markup:
    return element("span", text, class_={None: "chip", True: "chip good", False: "chip bad"}[good])


def nested_tables(figures: Mapping[str, Any]) -> Markup:
    """A nested mapping as tables: one of single figures with their dotted names, then one per mapping of mappings."""
    single, matrices = [], []
    _flatten(figures, "", single, matrices)
    parts = [table((), single, class_="numbers")]
    for name, rows in matrices:
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        body = [(key, *[number(row.get(column)) for column in columns]) for key, row in rows.items()]
        parts.append(table((name, *columns), body, class_="numbers"))
    return element("div", *parts, class_="figures")


def _flatten(figures: Mapping[str, Any], prefix: str, single: list, matrices: list) -> None:
    for key, value in figures.items():
        name = f"{prefix}{key}"
        if not isinstance(value, Mapping):
            single.append((name, number(value)))
        elif value and all(isinstance(row, Mapping) for row in value.values()) and prefix:
            matrices.append((name, value))
        else:
            _flatten(value, f"{name}.", single, matrices)


CSS = """
:root{color-scheme:light dark;--bg:#f6f6f3;--card:#fff;--ink:#1e242c;--muted:#66707d;--rule:#e2e4e6;
--s0:#2866d8;--s1:#b45f06;--s2:#67707c;--s3:#0a7c70;--s4:#a8327e;--s5:#6b5b00;
--c0:var(--s2);--c1:var(--s0);--c2:var(--s1);--good:#0f7345;--bad:#b92e38;--good-bg:#e4f4ec;--bad-bg:#fbe8e8}
@media (prefers-color-scheme:dark){:root{--bg:#13161a;--card:#1b1f25;--ink:#e3e7ec;--muted:#98a2af;--rule:#2e343c;
--s0:#7badff;--s1:#f0a550;--s2:#a3adba;--s3:#4fcdbf;--s4:#f08ac8;--s5:#d9c45a;--good:#5bcf97;--bad:#ff8a8f;--good-bg:#17352a;--bad-bg:#3f2226}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1000px;margin:0 auto;padding:40px 20px 80px}
h1{font-size:2rem;line-height:1.2;letter-spacing:-.02em;margin:0 0 .6rem}
h2{font-size:1.35rem;letter-spacing:-.01em;margin:3.2rem 0 .5rem}
h3{font-size:1rem;margin:1.6rem 0 .5rem}
p{margin:.4rem 0 1rem;max-width:46rem}
.lead{font-size:1.12rem;max-width:54rem}
nav{display:flex;flex-wrap:wrap;gap:4px 20px;margin:1.6rem 0 0;font-size:.88rem}a{color:var(--c1);text-decoration:none}
a:hover{text-decoration:underline}
.muted,small{color:var(--muted)}small{font-size:.82rem}
code{font:.9em ui-monospace,"DejaVu Sans Mono",monospace}
ol{max-width:46rem;padding-left:1.3rem}li{margin:.45rem 0}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin:10px 0}
.tile{flex:1 1 150px;background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:.8rem;font-weight:600;color:var(--muted)}
.tile strong{display:block;font-size:1.55rem;line-height:1.3;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.tile span{display:block;font-size:.8rem;line-height:1.35;color:var(--muted)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:12px}.scroll+.charts,.charts+p,.charts+.scroll{margin-top:14px}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px 12px 6px;min-width:0}
figcaption{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.82rem;align-items:baseline;padding:0 4px 4px}
figcaption>b{flex:1 1 auto}.charts figcaption>b{flex-basis:100%}
figcaption span{color:var(--muted)}figcaption span b{color:var(--ink);font-weight:600}
svg.swatch{display:inline-block;width:30px;height:14px;vertical-align:-2px;margin-right:3px}
svg{display:block;width:100%;height:auto}
svg text{font-size:11px;fill:var(--muted);font-variant-numeric:tabular-nums}svg text.group{font-size:13px;fill:var(--ink)}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}
.line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}.raw{stroke-width:1;opacity:.28}
.line.c2:not(.raw){stroke-dasharray:7 3}.line.c0:not(.raw){stroke-dasharray:2 3}
.bar.c2{fill-opacity:.45;stroke:var(--c)}.bar.c0{fill-opacity:.15;stroke:var(--c)}
.grid{stroke:var(--rule)}.axis{stroke:var(--c0)}.bar{fill:var(--c)}
.dot{fill:var(--good);fill-opacity:.45;stroke:var(--good)}.dot.bad{fill:var(--bad);stroke:var(--bad)}
.dot.c1{fill:var(--c1);stroke:var(--c1)}.whisker{stroke:var(--c1);stroke-width:1.5}
.scroll{overflow-x:auto}.wide>*{min-width:720px}
table{border-collapse:collapse;width:100%;font-size:.88rem}
th{text-align:left;font-weight:600;color:var(--muted);font-size:.8rem}
th,td{padding:5px 10px 5px 0;border-bottom:1px solid var(--rule);vertical-align:top}
.numbers{font-variant-numeric:tabular-nums}.numbers td:not(:first-child),.numbers th:not(:first-child){text-align:right}
.figures{display:grid;gap:22px}.figures>:first-child{max-width:30rem}
img{display:block;width:100%;height:auto;border-radius:6px}
.good{color:var(--good)}.bad{color:var(--bad)}
.chip{display:inline-block;font-size:.76rem;line-height:1.6;padding:0 8px;border-radius:99px;border:1px solid var(--rule);
color:var(--muted);white-space:nowrap}
.chip.good{background:var(--good-bg);color:var(--good);border-color:transparent}
.chip.bad{background:var(--bad-bg);color:var(--bad);border-color:transparent}
"""
