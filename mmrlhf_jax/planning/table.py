"""A Markdown table of plans: a row per launch file, a column per experiment. It imports no jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from etils import epath

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import write_atomically

BEGIN, END = "<!-- plans: written by `mmrlhf plan --all --readme docs/plans.md` -->", "<!-- end of plans -->"
_HEAD = ["launch", "mesh", "HBM"]
_NOTHING = "-"  # in the place of a plan that was not made


@dataclasses.dataclass
class Table:
    """`rows` have by launch file its mesh, the memory of a device, and the cells by experiment; `columns` are experiments, and
    `shared` has those that share the column of another."""

    columns: list[str] = dataclasses.field(default_factory=list)
    rows: dict[str, tuple[str, str, dict[str, str]]] = dataclasses.field(default_factory=dict)
    shared: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def without(self, launches: Collection[str]) -> Table:
        """This table without some of its rows."""
        rows = {launch: row for launch, row in self.rows.items() if launch not in launches}
        return dataclasses.replace(self, rows=rows)

    def cell(self, launch: str, experiments: Sequence[str]) -> str | None:
        """The cell of a launch file for the column of any of these experiments; None if there is none, or nothing in it."""
        cells = self.rows[launch][2] if launch in self.rows else {}
        return next((cells[name] for name in experiments if cells.get(name, _NOTHING) != _NOTHING), None)

    def keeping(self, kept: Table, columns: Sequence[Sequence[str]]) -> Table:
        """This table with the cells of another where it has none, and a column for each group of `columns` (experiments that
        share one, whose last it is named after). Launch files are in alphabetical order. Without `columns`, this table."""
        if not columns:
            return self
        found = Table([group[-1] for group in columns], shared={group[-1]: list(group[:-1]) for group in columns})
        for launch in sorted({*self.rows, *kept.rows}):
            mesh, memory, _ = (kept if launch in kept.rows else self).rows[launch]
            cells = {group[-1]: self.cell(launch, group) or kept.cell(launch, group) for group in columns}
            found.rows[launch] = mesh, memory, {name: cell for name, cell in cells.items() if cell is not None}
        return found

    def __str__(self) -> str:
        head = [*_HEAD, *self.columns]
        lines = [_line(head), "|" + "---|" * len(head)]
        for launch, (mesh, memory, cells) in self.rows.items():
            lines.append(_line([launch, mesh, memory, *(cells.get(name, _NOTHING) for name in self.columns)]))
        shared = [f"`{one}` stands for {', '.join(others)} as well." for one, others in self.shared.items() if others]
        return "\n".join([*lines, *(["", *shared] if shared else [])])


def read_table(page: str) -> Table:
    """The table between the marks BEGIN and END of a Markdown file, which may be empty. UserError if the file lacks them,
    or if a row has more or fewer cells than the head."""
    lines = [line.strip() for line in _parts(page)[1].splitlines() if line.strip().startswith("|")]
    found = Table()
    if lines:
        found.columns = _cells(lines[0])[len(_HEAD) :]
        for line in lines[2:]:
            launch, *row = _cells(line)
            if len(row) != len(_HEAD) - 1 + len(found.columns):
                raise UserError(f"{page}: the row of {launch} has not as many cells as the head; write all without --launch")
            mesh, memory, *cells = row
            found.rows[launch] = mesh, memory, dict(zip(found.columns, cells, strict=True))
    return found


def write_table(page: str, table: Table) -> None:
    """Replace the table between the marks BEGIN and END of a Markdown file. UserError if the file lacks them."""
    before, _, after = _parts(page)
    write_atomically(epath.Path(page), f"{before}{BEGIN}\n{table}\n{END}{after}".encode())


def _parts(page: str) -> tuple[str, str, str]:
    """A Markdown file before, between and after the marks."""
    path = epath.Path(page)
    text = path.read_text() if path.exists() else ""
    if BEGIN not in text or END not in text:
        raise UserError(f"{page}: no place for the table; it goes between the lines {BEGIN!r} and {END!r}")
    before, rest = text.split(BEGIN, 1)
    return before, *rest.split(END, 1)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
