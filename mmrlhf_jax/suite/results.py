"""The files of a task's results: figures with their draws and coverage, and a line for every document.

    results/TASK.json               the figures of the task's rows, how many documents they are of, and how they were made
    results/TASK.documents.jsonl    one line per document: prompt, answer, and its values for the rows

Figures are on the scale of the paper (`Row.scaled`). The two files belong together: the first one is written last, and holds
the digest of the other one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.digests import digest
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import exists, matching, read_bytes, write_atomically
from mmrlhf_jax.finite import number

VERSION = 1
FOLDER, SUFFIX, DOCUMENTS_SUFFIX = "results", ".json", ".documents.jsonl"

AGAIN = "give the evaluation's command again, which scores the task"  # what to do where results cannot be used

_STRICT = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _in_float32(value: float) -> float:
    try:
        return number(value, "it")
    except UserError as error:
        raise ValueError(str(error)) from None


Number = Annotated[float, pydantic.AfterValidator(_in_float32)]
Count = Annotated[int, pydantic.Field(ge=0)]


@dataclasses.dataclass(frozen=True)
class Figure:
    """The figure of a row.

    Attributes:
        value: the figure; None if there is none.
        missing: why there is none, in words; None if there is one.
        draws: the figure over documents that are drawn with repetition (`resampling`); None if it was not resampled.
    """

    __pydantic_config__: ClassVar = _STRICT

    value: Number | None
    missing: str | None = None
    draws: tuple[Number, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Document:
    """A document with its answer.

    Attributes:
        id: unique in the task, and the same in every run of the same data.
        cluster: documents of one cluster are drawn together, as those on the same picture are; the id, where it is alone.
        prompt, media: what was asked, and names of files in the folder `media` of the run.
        answer: the model's answer, which may be ""; None if there is none.
        reference: what a right answer is, for people who read the cases.
        values: row -> the document's own value on the paper's scale, of which the row's figure is made (`Row.pooling`); None,
            or no key, where it has none.
        missing: why the document is not scored; None if it is.
        weights: row -> the weight of the document's value in the row's figure, where that is not 1.
        group: the category of the document, also of one that is not scored, for figures over categories (`Row.pooling`).
    """

    __pydantic_config__: ClassVar = _STRICT

    id: Annotated[str, pydantic.Field(alias="document")]
    cluster: str
    prompt: str
    media: tuple[str, ...]
    answer: str | None
    reference: str | None
    values: Mapping[str, Number | None]
    missing: str | None = None
    weights: Mapping[str, Annotated[Number, pydantic.Field(ge=0)]] = dataclasses.field(default_factory=dict)
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How many documents there are, have an answer, and have a score; and of the others, how many for which reason."""

    __pydantic_config__: ClassVar = _STRICT

    expected: Count
    answered: Count
    scored: Count
    missing: Mapping[str, Count]


@dataclasses.dataclass(frozen=True)
class Results:
    """What a task has given.

    Attributes:
        task: its name.
        harness: whose metrics these are, with the version: "lmms-eval 0.7.3", or "mmrlhf_jax 1".
        settings: all that the figures depend on besides the model: mode, generation options, frames, judge. Two results are
            compared only if these are equal.
        figures: row -> its figure.
        documents: a line for each, scored or not.
        left_out: reason -> number of documents that have no line, such as those beyond a limit that the user gave.
    """

    task: str
    harness: str
    settings: Mapping[str, Any]
    figures: Mapping[str, Figure]
    documents: tuple[Document, ...]
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def coverage(self) -> Coverage:
        missing = Counter(each.missing for each in self.documents if each.missing is not None)
        missing.update(self.left_out)
        scored = sum(each.missing is None for each in self.documents)
        answered = sum(each.answer is not None for each in self.documents)
        return Coverage(scored + missing.total(), answered, scored, dict(sorted(missing.items())))


@dataclasses.dataclass(frozen=True)
class _Counts(Coverage):
    """The coverage as it is stored, with what is needed to check it."""

    left_out: Mapping[str, Count]
    digest: str  # of the documents' file


@dataclasses.dataclass(frozen=True)
class _Stored:
    """The content of results/TASK.json."""

    __pydantic_config__: ClassVar = _STRICT

    version: int
    task: str
    harness: str
    settings: Mapping[str, Any]
    documents: _Counts
    rows: Mapping[str, Figure]


def figures_path(directory: epath.PathLike, task: str) -> epath.Path:
    """The file of a task's figures in a run's directory."""
    return epath.Path(directory) / FOLDER / f"{task}{SUFFIX}"


def documents_path(directory: epath.PathLike, task: str) -> epath.Path:
    """The file of a task's documents in a run's directory."""
    return epath.Path(directory) / FOLDER / f"{task}{DOCUMENTS_SUFFIX}"


def tasks_in(directory: epath.PathLike) -> list[str]:
    """The names of the tasks that have results in a run's directory, sorted."""
    return [path.name.removesuffix(SUFFIX) for path in matching(epath.Path(directory) / FOLDER, f"*{SUFFIX}")]


def write(directory: epath.PathLike, results: Results) -> None:
    """Write a task's results into a run's directory; those of an earlier run are replaced.

    UserError, with file and key, for what `read` would refuse: numbers that are not finite, results that contradict themselves.
    """
    figures, documents = figures_path(directory, results.task), documents_path(directory, results.task)
    lines = b"".join(_line(each, f"{documents}: document {shown(each.id)}") for each in results.documents)
    counts = _Counts(**vars(results.coverage), left_out=results.left_out, digest=digest(lines))
    stored = _Stored(VERSION, results.task, results.harness, results.settings, counts, results.figures)
    text = strict_json.dumps(dataclasses.asdict(stored), where=f"{figures}", ensure_ascii=False, indent=1)
    content = _encoded(text, f"{figures}")
    _parsed(results.task, content, lines, figures, documents)
    write_atomically(documents, lines)
    write_atomically(figures, content)


def read(directory: epath.PathLike, task: str) -> Results:
    """A task's results. UserError, with file and key, if they are not whole, not finite, or not those of this task."""
    figures, documents = figures_path(directory, task), documents_path(directory, task)
    for path in (figures, documents):
        if not exists(path):
            raise UserError(f"{path}: is missing; {AGAIN}")
    return _parsed(task, read_bytes(figures), read_bytes(documents), figures, documents)


# The content of the files --------------------------------------------------------------------------------------------


def _line(document: Document, where: str) -> bytes:
    stored = {"document": document.id} | {name: getattr(document, name) for name in _FIELDS}
    for name in ("weights", "group"):
        if not stored[name]:
            del stored[name]
    return _encoded(strict_json.dumps(stored, where=where, ensure_ascii=False) + "\n", where)


_FIELDS = tuple(field.name for field in dataclasses.fields(Document) if field.name != "id")


def _encoded(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half of a character (a lone surrogate), which UTF-8 has not") from None


def _parsed(task: str, content: bytes, lines: bytes, figures: epath.Path, documents: epath.Path) -> Results:
    """The results that are stored in these bytes, of these files, when all checks have passed."""
    _check_keys(content, f"{figures}")
    stored = _valid(_STORED, content, f"{figures}")
    if stored.version != VERSION:
        raise UserError(f"{figures}: version is {stored.version}, and {VERSION} is read here; {AGAIN}")
    if stored.task != task:
        raise UserError(f"{figures}: task is {shown(stored.task)}; the file has been renamed or copied")
    if stored.documents.digest != digest(lines):
        raise UserError(f"{documents}: is not the file that {figures.name} was written with; {AGAIN}")
    for name, figure in stored.rows.items():
        _check_figure(figure, f"{figures}: rows.{name}")
    found = [_valid(_DOCUMENT, line, f"{documents}: line {place}") for place, line in enumerate(lines.split(b"\n")[:-1], 1)]
    _check_documents(found, stored.rows, documents)
    results = Results(task, stored.harness, stored.settings, stored.rows, tuple(found), stored.documents.left_out)
    for key, value in vars(results.coverage).items():
        if (said := getattr(stored.documents, key)) != value:
            raise UserError(f"{figures}: documents.{key} is {shown(said)}, but {documents.name} gives {shown(value)}")
    return results


_Kind = TypeVar("_Kind")
_STORED, _DOCUMENT = pydantic.TypeAdapter(_Stored), pydantic.TypeAdapter(Document)


def _check_keys(content: bytes, where: str) -> None:
    """UserError for what is no JSON by RFC 8259, such as a key that stands twice, which pydantic's parser accepts."""
    try:
        strict_json.loads(content)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None


def _valid(kind: pydantic.TypeAdapter[_Kind], content: bytes, where: str) -> _Kind:
    """The object of JSON content. UserError, which begins with `where` and names the first wrong key."""
    try:
        return kind.validate_json(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {key}{': ' if key else ''}{first['msg']}, found {shown(first['input'])}") from None


def _check_figure(figure: Figure, where: str) -> None:
    if (figure.value is None) == (figure.missing is None):
        raise UserError(f"{where} must have either a value or the reason why it is missing, found {shown(figure.value)}")
    if figure.draws is not None and (figure.value is None or not figure.draws):
        raise UserError(f"{where}.draws must be null, because there is {'no value' if figure.value is None else 'none'}")


def _check_documents(documents: list[Document], rows: Mapping[str, Figure], path: epath.Path) -> None:
    seen: set[str] = set()
    for place, document in enumerate(documents, 1):
        where = f"{path}: line {place}: document {shown(document.id)}"
        if document.id in seen:
            raise UserError(f"{where} stands there twice")
        seen.add(document.id)
        if unknown := (document.values.keys() | document.weights.keys()) - rows.keys():
            raise UserError(f"{where} has a value for {shown(min(unknown))}, which is no row of the task ({', '.join(rows)})")
        if document.missing is not None and any(value is not None for value in document.values.values()):
            raise UserError(f"{where} is missing ({document.missing}), but has values")
        if document.missing is None and document.answer is None:
            raise UserError(f"{where} has no answer, and no reason why it is missing")
