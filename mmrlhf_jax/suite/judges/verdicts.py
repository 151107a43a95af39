"""What judges have replied, kept line by line as it comes, and found again by the content of what they were asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.files import exists, read_bytes
from mmrlhf_jax.growing_file import GrowingFile
from mmrlhf_jax.progress import say
from mmrlhf_jax.suite.judges.question import Question

FOLDER = "verdicts"  # in a run's directory


def verdicts_path(directory: epath.PathLike, task: str) -> epath.Path:
    """The file of a task's verdicts in a run's directory."""
    return epath.Path(directory) / FOLDER / f"{task}.jsonl"


class Verdicts:
    """The replies of a file. Each is on disk when `add` returns. One process at a time writes a file."""

    def __init__(self, path: epath.PathLike):
        self._path, self._file = epath.Path(path), None
        self._lines: list[str] = []
        self._replies: dict[str, str] = {}
        if exists(self._path):
            self._read()

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
        line = {"key": key, "document": question.document, "judge": judge, "reply": reply}
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = GrowingFile(self._path, "".join(self._lines))
        self._file.write(strict_json.dumps(line, ensure_ascii=False) + "\n")
        self._replies[key] = reply

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> None:
        spoilt = 0
        for line in read_bytes(self._path).split(b"\n"):
            try:
                stored = strict_json.loads(line) if line else None
            except ValueError:  # cut off by a kill, or of another encoding
                stored = {}
            if stored is None:
                continue
            if _is_verdict(stored):
                self._lines.append(line.decode() + "\n")
                self._replies.setdefault(stored["key"], stored["reply"])
            else:
                spoilt += 1
        if spoilt:
            say(f"{self._path}: {spoilt} lines are not whole verdicts, and are left out; what they were about is asked again")


def _is_verdict(stored: Any) -> bool:
    return isinstance(stored, Mapping) and all(isinstance(stored.get(key), str) for key in ("key", "judge", "reply"))
