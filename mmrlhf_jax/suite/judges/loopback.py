"""The server at which tasks of the harness find their judge: a port of this machine, for one process that scores one task.

The harness calls its judges itself, one after the other, tries a failed call for minutes, and takes what fails for a verdict.
Here it gets every reply at once: the stored one, or a placeholder. What it asked is kept with the document that was scored
meanwhile; then all questions go to the judge together, and the documents are scored again with the replies. A document with a
question that failed, or whose reply the harness cannot read, is missing with the reason, whatever the harness made of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

from mmrlhf_jax import strict_json
from mmrlhf_jax.progress import Progress
from mmrlhf_jax.suite.judges.harness_replies import Reader
from mmrlhf_jax.suite.judges.judging import NOT_READ, Judging
from mmrlhf_jax.suite.judges.question import Question

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 128  # documents whose questions are asked together; a question may hold a picture
ROUNDS = 8  # how often a document is scored at most; each question can depend on the reply to the one before
# In the place of a reply. MMBench takes this text for a failed call; the others cannot read it, as they cannot read any other.
PLACEHOLDER = "Failed to obtain answer via API"
BAD_REQUEST, ENDLESS = "the harness sent its judge no request that can be read", "the harness asked its judge without end"
_OURS = {"model", "messages", "n", "stream", "max_tokens", "max_completion_tokens"}  # keys of a request that we set


class Loopback:
    """The server, while it is entered. `can_read` says which replies the task can read (`harness_replies`).

    `environment` must be in the environment before the harness's task is imported, which reads it then.
    """

    def __init__(self, judging: Judging, can_read: Reader):
        self._judging, self._can_read = judging, can_read
        self._lock = threading.Lock()
        self._wanted: dict[str, Question] = {}
        self._asks = _Asks(None)
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Loopback:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The base URL. Both it and the full URL of chat completions are answered, since the harness's tasks mean either one by
        OPENAI_API_URL, and some add the rest of the path."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def unforeseen(self) -> bool:
        """Whether the harness asked something that has no reply while no document was scored, as in an aggregation over all of
        them: then its figure rests on a placeholder."""
        return self._asks.wanted or self._asks.failure is not None

    @property
    def environment(self) -> dict[str, str]:
        """The variables from which the harness's tasks know where their judge is."""
        aside = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1"]))
        where = {"OPENAI_API_URL": self.url, "OPENAI_API_KEY": "none", "API_TYPE": "openai"}
        return where | {"MODEL_VERSION": self._judging.name, "NO_PROXY": aside, "no_proxy": aside}

    def scored(
        self, documents: Iterable[Item], name: Callable[[Item], str], score: Callable[[Item], Result], doing: str, total: int
    ) -> Iterator[tuple[Item, Result, str | None]]:
        """Yield (document, result of its last scoring, why it is missing) in order; None: it is not missing.

        `score` lets the harness score a document, during which it calls its judge; it is called once, and again for every
        reply that the harness could not have known before. `name` gives the document's id.
        """
        progress = Progress(doing, total)
        for here in _batched(documents, AT_ONCE):
            found: dict[int, tuple[Result, str | None]] = {}
            left = list(range(len(here)))
            for _ in range(ROUNDS):
                again = []
                for place in left:
                    with self._during(name(here[place])) as asks:
                        result = score(here[place])
                    found[place] = result, asks.failure
                    if asks.wanted:
                        again.append(place)
                if not again:
                    break
                self._judging.ask(self._taken())
                left = again
            else:
                found |= {place: (found[place][0], ENDLESS) for place in again}
            for place, document in enumerate(here):
                progress.update()
                yield document, *found[place]

    def reply(self, content: bytes) -> tuple[str, str]:
        """(the text that a request is answered with, the judge's name). What became of it is noted for the document."""
        with self._lock:
            asks = self._asks
            question = _question(content, asks.document)
            if question is None:
                asks.fail(BAD_REQUEST)
                return PLACEHOLDER, self._judging.name
            known = self._judging.reply(question)
            if known is None and PLACEHOLDER.encode() in content:  # it rests on a reply that is still to come
                asks.wanted = True
            elif known is None:
                asks.wanted = True
                self._wanted[question.key(self._judging.name)] = question
            elif known.text is None:
                asks.fail(known.failure)
            else:
                if not self._can_read(known.text):
                    asks.fail(NOT_READ)
                return known.text, self._judging.name
            return PLACEHOLDER, self._judging.name

    @contextlib.contextmanager
    def _during(self, document: str) -> Iterator[_Asks]:
        """What is asked while this document is scored."""
        asks, before = _Asks(document), self._asks
        with self._lock:
            self._asks = asks
        try:
            yield asks
        finally:
            with self._lock:
                self._asks = before

    def _taken(self) -> list[Question]:
        with self._lock:
            wanted, self._wanted = list(self._wanted.values()), {}
        return wanted


@dataclasses.dataclass
class _Asks:
    """What the harness asks while it scores a document: whether anything is not known yet, and the first failure."""

    document: str | None
    wanted: bool = False
    failure: str | None = None

    def fail(self, reason: str) -> None:
        self.failure = self.failure or reason


def _question(content: bytes, document: str | None) -> Question | None:
    """The question in a request of chat completions; None if there is none."""
    try:
        body = strict_json.loads(content)
    except ValueError:
        return None
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return None
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    options = {name: value for name, value in body.items() if name not in _OURS and value is not None}
    return Question(document, messages, options | ({"max_completion_tokens": most} if most else {}))


def _handler(loopback: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            text, model = loopback.reply(self.rfile.read(int(self.headers.get("content-length") or 0)))
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
            reply = {"id": "0", "object": "chat.completion", "created": 0, "model": model, "choices": [choice], "usage": usage}
            content = strict_json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    source = iter(items)
    while here := list(itertools.islice(source, size)):
        yield here
