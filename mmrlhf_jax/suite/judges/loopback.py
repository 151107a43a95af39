"""The server at which tasks of the harness find their judge: a port of this machine, for one process that scores one task.

The harness calls its judges itself, one after the other, tries a failed call for minutes, and takes what fails for a verdict.
Here it gets every reply at once: the stored one, or a placeholder. What it asked is kept with the document that was scored
meanwhile; then all questions go to the judge together, and the documents are scored again with the replies (`rounds.scored`).
A document with a question that failed, or whose reply the harness cannot read, is missing with the reason, whatever the harness
made of it.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from mmrlhf_jax import strict_json
from mmrlhf_jax.suite.judges.harness_replies import Reader
from mmrlhf_jax.suite.judges.judging import NOT_READ, Judging
from mmrlhf_jax.suite.judges.picture_urls import with_sound_pictures
from mmrlhf_jax.suite.judges.question import Question

# In the place of a reply. MMBench takes this text for a failed call; the others cannot read it, as they cannot read any other.
PLACEHOLDER = "Failed to obtain answer via API"
BAD_REQUEST = "the harness sent its judge no request that can be read"
_OURS = {"model", "messages", "n", "stream", "max_tokens", "max_completion_tokens"}  # keys of a request that we set


class JudgeCalls(NamedTuple):
    """What the harness asked while a document was scored: whether anything has no reply yet, why one has none at all, and how
    many calls there were."""

    wanted: bool
    failure: str | None
    made: int


class Loopback:
    """The server, while it is entered. `can_read` says which replies the task can read (`harness_replies`).

    `environment` must be in the environment before the harness's task is imported, which reads it then.
    """

    def __init__(self, judging: Judging, can_read: Reader):
        self._judging, self._can_read = judging, can_read
        self._lock = threading.Lock()
        self._wanted: dict[str, Question] = {}
        self._asks, self._outside = _Asks(None), None
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
    def _name(self) -> str:
        return self._judging.name or "nobody"

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
        return where | {"MODEL_VERSION": self._name, "NO_PROXY": aside, "no_proxy": aside}

    def begin(self, document: str) -> None:
        """What is asked from now on is about this document."""
        with self._lock:
            self._asks, self._outside = _Asks(document), self._outside or self._asks

    def end(self) -> JudgeCalls:
        """What was asked since `begin`."""
        with self._lock:
            asks, self._asks, self._outside = self._asks, self._outside, None
        return JudgeCalls(asks.wanted, asks.failure, asks.made)

    def judge(self) -> None:
        """Give all that was wanted to the judge, and wait for it."""
        with self._lock:
            wanted, self._wanted = list(self._wanted.values()), {}
        self._judging.ask(wanted)

    def reply(self, content: bytes) -> tuple[str, str]:
        """(the text that a request is answered with, the judge's name). What became of it is noted for the document."""
        with self._lock:
            asks = self._asks
            asks.made += 1
            question = _question(content, asks.document)
            if question is None:
                asks.fail(BAD_REQUEST)
                return PLACEHOLDER, self._name
            known = self._judging.reply(question)
            if known is None and PLACEHOLDER.encode() in content:  # it rests on a reply that is still to come
                asks.wanted = True
            elif known is None:
                asks.wanted = True
                self._wanted[question.key(self._name)] = question
            elif known.text is None:
                asks.fail(known.failure)
            else:
                if not self._can_read(known.text):
                    asks.fail(NOT_READ)
                    self._judging.note_unread([question])
                return known.text, self._name
            return PLACEHOLDER, self._name


@dataclasses.dataclass
class _Asks:
    """What the harness asks while it scores a document: whether anything is not known yet, the first failure, and how many
    calls there were."""

    document: str | None
    wanted: bool = False
    failure: str | None = None
    made: int = 0

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
    return Question(document, with_sound_pictures(messages), options | ({"max_completion_tokens": most} if most else {}))


def _handler(loopback: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length") or 0))
            sent = strict_json.dumps(_completion(*loopback.reply(content))).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _completion(text: str, model: str) -> dict[str, Any]:
    """A reply of chat completions."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return {"id": "0", "object": "chat.completion", "created": 0, "model": model, "choices": [choice], "usage": usage}
