"""Runs in directories and the page of them, for tests of what is on it."""

from __future__ import annotations

import json

from mmrlhf_jax.commands.report import report
from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.stored_suite import write_suite
from tests.pages.html import parsed
from tests.suite.support import runs
from tests.suite.support.runs import SUITE

MODEL = {"colours": [100, 0, 100, 100], "shapes": [4, 2, 5, 5], "lies": [10, 20, 30, 40]}
MODEL |= {"first": [60, 80], "second": [20, 40, None]}
BASE = {"colours": [100, 0, 0, 100], "shapes": [3, 2, 4, 5], "lies": [40, 20, 30, 40]}
BASE |= {"first": [50, 50], "second": [20, 10, 30]}


def floats(values) -> list[float | None]:
    return [None if value is None else float(value) for value in values]


def write(directory, values, about=None, **changes):
    """A run's directory with results of these tasks."""
    for task, of_documents in values.items():
        results.write(directory, runs.results(SUITE.tasks[task], floats(of_documents), **changes))
    if about is not None:
        (directory / "run.json").write_text(json.dumps({"version": 1, "settings": {"dtype": "float32"}, "judge": None} | about))
    write_suite(directory, SUITE)
    return directory


def page(tmp_path, *directories, published=None):
    report([str(each) for each in directories], str(tmp_path / "report.html"), published)
    return parsed((tmp_path / "report.html").read_text())


def section(tree, name: str):
    return tree.find(f".//section[@id='{name}']")


def first_numbers(cells) -> list[str]:
    return [cell.split()[0] for cell in cells]
