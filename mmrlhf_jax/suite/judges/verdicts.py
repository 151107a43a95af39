"""What judges have replied, kept line by line as it comes, and found again by the content of what they were asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.files import exists, read_bytes
from mmrlhf_jax.growing_file import GrowingFile
from mmrlhf_jax.progress import counted, say
from mmrlhf_jax.suite.judges.question import Question

FOLDER = "verdicts"  # in a run's directory


def verdicts_path(directory: epath.PathLike, task: str) -> epath.Path:
    """The file of a task's verdicts in a run's directory."""
    return epath.Path(directory) / FOLDER / f"{task}.jsonl"


class Verdicts:
    """The replies of a file. Each is on disk when `add` returns. One process at a time writes a file.

    `again`: replies that could not be read are not found, so that they are asked for again.
    """

    def __init__(self, path: epath.PathLike, *, again: bool = False):
        self.path, self._file = epath.Path(path), None
        self._lines: list[str] = []
        self._found: dict[str, dict[str, Any]] = {}  # by key; of several the last one
        if exists(self.path):
            self._read()
        self._replies = {key: each["reply"] for key, each in self._found.items() if not (again and each.get("unread"))}

    def __enter__(self) -> Verdicts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._replies)

    def find(self, key: str) -> str | None:
        """What was replied to the question of this key; None: nothing yet."""
        return self._replies.get(key)

    def add(self, question: Question, judge: str, reply: str) -> None:
        """Keep the reply of a judge."""
        key = question.key(judge)
        self._write({"key": key, "document": question.document, "judge": judge, "reply": reply})
        self._replies[key] = reply

    def note_unread(self, key: str) -> bool:
        """Note that the reply to the question of this key cannot be read. Returns whether that was not known before."""
        verdict = self._found[key]
        if verdict.get("unread"):
            return False
        self._write(verdict | {"unread": True})
        return True

    def _write(self, verdict: dict[str, Any]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = GrowingFile(self.path, "".join(self._lines))
        self._file.write(strict_json.dumps(verdict, ensure_ascii=False) + "\n")
        self._found[verdict["key"]] = verdict

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> None:
        spoilt = 0
        for line in read_bytes(self.path).split(b"\n"):
            try:
                stored = strict_json.loads(line) if line else None
            except ValueError:  # cut off by a kill, or of another encoding
                stored = {}
            if stored is None:
                continue
            if _is_verdict(stored):
                self._lines.append(line.decode() + "\n")
                self._found[stored["key"]] = stored
            else:
                spoilt += 1
        if spoilt:
            are = "is no whole verdict" if spoilt == 1 else "are no whole verdicts"
            say(f"{self.path}: {counted(spoilt, 'line')} {are}; what lacks its verdict is asked again")


def _is_verdict(stored: Any) -> bool:
    return isinstance(stored, Mapping) and all(isinstance(stored.get(key), str) for key in ("key", "judge", "reply"))
