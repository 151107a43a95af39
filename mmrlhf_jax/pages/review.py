"""The page on which people rate answers, without any other tool: one file that works from a disk, and makes no request."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mmrlhf_jax import strict_json
from mmrlhf_jax.pages.parts import CSS, element, join
from mmrlhf_jax.pages.review_script import SCRIPT

STYLE = """
main{max-width:1240px;padding:0 20px 60px}
header.top{position:sticky;top:0;z-index:2;background:var(--bg);border-bottom:1px solid var(--rule);padding:10px 0;
margin-bottom:18px;display:flex;flex-wrap:wrap;gap:8px 14px;align-items:center;font-size:.9rem}
header.top .grow{flex:1}
progress{width:160px;accent-color:var(--good)}
input,textarea{font:inherit;color:inherit;background:var(--card);border:1px solid var(--rule);border-radius:8px;
padding:5px 10px}
#start{margin:2rem 0}#known{display:flex;flex-wrap:wrap;gap:8px}[hidden]{display:none!important}
textarea{width:100%;resize:vertical}
button,label.button{font:inherit;font-size:.9rem;color:inherit;background:var(--card);border:1px solid var(--rule);
border-radius:8px;padding:5px 14px;cursor:pointer}
button:hover,label.button:hover{border-color:var(--c0)}button:disabled{opacity:.45;cursor:default}
button:focus-visible{outline:2px solid var(--c1);outline-offset:1px}
button.main{background:var(--c1);border-color:var(--c1);color:var(--card)}
label.button input{display:none}
.sides{display:grid;grid-template-columns:minmax(0,5fr) minmax(0,6fr);gap:26px;align-items:start}
.sides.alone{grid-template-columns:minmax(0,1fr);max-width:820px}.sides.alone .left{display:none}
.left{position:sticky;top:68px;display:grid;gap:10px;max-height:calc(100vh - 84px);overflow:auto}
.left.several{grid-template-columns:minmax(0,1fr) minmax(0,1fr);align-items:start}
.left figure{padding:6px}.left figcaption{padding:4px 4px 0}
.enlarge{display:block;width:100%;padding:0;border:0;background:none;cursor:zoom-in}
.enlarge img{max-height:74vh;object-fit:contain;object-position:left top;image-rendering:auto}
.enlarge.large{cursor:zoom-out;position:fixed;inset:0;z-index:5;background:#000c;border-radius:0;padding:16px}
.enlarge.large img{max-height:100%;height:100%;object-position:center}
.where{display:flex;gap:10px;align-items:baseline;color:var(--muted);font-size:.85rem}
#question{font-size:1.15rem;font-weight:600;white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0 1rem;max-width:none}
.answer{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px 16px;margin:0 0 12px;
scroll-margin:76px}
.answer.active{border-color:var(--c1);box-shadow:0 0 0 1px var(--c1)}
.answer h3{margin:0 0 .2rem;font-size:.8rem;color:var(--muted);font-weight:600}
.answer.rated h3::after{content:" ✓";color:var(--good)}
.text{white-space:pre-wrap;overflow-wrap:anywhere;max-width:none;margin:0 0 .7rem}
.levels{display:flex;flex-wrap:wrap;gap:6px}
.level{flex:1 1 74px;padding:3px 4px 4px;text-align:center;line-height:1.2}
.level b{display:block;font-size:.95rem}.level span{display:block;font-size:.68rem;color:var(--muted)}
.level.chosen{background:var(--c1);border-color:var(--c1)}.level.chosen *{color:var(--card)}
#after.chosen{background:var(--good-bg);border-color:var(--good);color:var(--good)}
.steps{display:flex;flex-wrap:wrap;gap:10px;align-items:center;margin:14px 0}
details{margin:0 0 14px;font-size:.9rem}summary{cursor:pointer;color:var(--muted)}details p{margin:.5rem 0}
kbd{font:.85em ui-monospace,monospace;border:1px solid var(--rule);border-radius:4px;padding:0 5px;background:var(--card)}
#message{color:var(--c1);font-size:.88rem;margin:0;max-width:none}#message:not(:empty){margin-bottom:14px}#state{color:var(--good)}
.note{background:var(--bad-bg);color:var(--bad);border-radius:8px;padding:8px 12px;max-width:none}
.note.good{background:var(--good-bg);color:var(--good)}
@media (max-width:800px){.sides{grid-template-columns:minmax(0,1fr)}.left,header.top{position:static}.left{max-height:none}}
"""


def review_page(
    title: str, queue: str, records: Iterable[Mapping[str, Any]], levels: Sequence[str], same: str, guidelines: str
) -> str:
    """The document. `records` have `id`, `question`, `prompt` (a digest), `pictures` (data URLs) and `answers` (`digest` and
    `text`).

    `queue` is the name under which a browser keeps what is rated. `levels` say what ratings from 1 on mean, `same` that an
    answer is as good as the one above.
    """
    pictures: dict[str, str] = {}
    content = {"queue": queue, "levels": list(levels), "same": same, "pictures": pictures}
    content["records"] = [dict(record) | {"pictures": _stored(record["pictures"], pictures)} for record in records]
    text = strict_json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")  # so that no text can end the element
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        Markup("<style>{}</style>").format(Markup(CSS + STYLE)),
    )
    body = element(
        "body",
        element("main", _top(), _start(), _guidelines(guidelines), _notes(), _sides()),
        element("script", Markup(text), id="records", type="application/json"),
        element("script", Markup(SCRIPT)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _stored(urls: Iterable[str], pictures: dict[str, str]) -> list[str]:
    """The names of pictures; equal ones are in the document once."""
    names = []
    for url in urls:
        name = hashlib.sha256(url.encode()).hexdigest()[:16]
        pictures[name] = url
        names.append(name)
    return names


def _top() -> Markup:
    return element(
        "header",
        element("span", "Rated by ", element("b", id="who"), " ", element("button", "Someone else", id="someone"), id="person"),
        element("progress", id="bar", value="0", max="1"),
        element("span", id="count"),
        element("span", class_="grow"),
        element(
            "label",
            "Load a saved file",
            element("input", id="load", type="file", accept=".jsonl"),
            class_="button",
            title="go on with verdicts that were saved before, or on another computer",
        ),
        element("button", "Save verdicts", id="save", class_="main"),
        class_="top",
    )


def _start() -> Markup:
    """What is there before anybody has said who they are."""
    named = element("input", id="name", autocomplete="name", placeholder="your name", required="required")
    why = "Verdicts are kept by person. Use the same name every time."
    return element(
        "form",
        element("h2", "Who rates?"),
        element("p", named, " ", element("button", "Start", class_="main")),
        element("p", why),
        element("div", id="known"),
        id="start",
    )


def _guidelines(text: str) -> Markup:
    key = lambda name: element("kbd", name)
    keys = join(
        "Keys: ", key("1"), " to ", key("5"), " rate the marked answer and go to the next one, ", key("="), " is the same as"
        " above, ", key("↑"), " ", key("↓"), " choose an answer, ", key("←"), " ", key("→"), " another record. A rating that is"
        " given twice is taken back. What you rate is kept in this browser until you save it as a file.",
    )  # fmt: skip
    return element("details", element("summary", "How to rate"), element("p", text), element("p", keys), id="how", open="open")


def _notes() -> Markup:
    lost = "This browser does not keep what you rate when the page is closed: save your verdicts before you leave."
    return join(
        element("p", lost, id="storage", class_="note", hidden="hidden"),
        element("p", "All records are rated. Save the verdicts now.", id="finished", class_="note good", hidden="hidden"),
        element("p", id="message", role="status"),
    )


def _sides() -> Markup:
    where = element("div", element("span", id="place"), element("span", id="state"), class_="where")
    reason = element("textarea", id="reason", rows="2", placeholder="Why? (if you like)", aria_label="Why?")
    steps = element(
        "div",
        element("button", "← Back", id="before"),
        element("button", "Next →", id="after"),
        element("button", "Next unrated record", id="unrated"),
        class_="steps",
    )
    right = element("div", where, element("p", id="question"), element("div", id="answers"), reason, steps)
    return element("div", element("div", id="pictures", class_="left"), right, id="sides", class_="sides")
