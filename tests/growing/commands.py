"""Commands that run in this process, and the files that they write."""

from __future__ import annotations

import json
import re
from pathlib import Path

from typer.testing import CliRunner

from mmrlhf_jax import cli
from mmrlhf_jax.errors import UserError


def command(*arguments: object) -> str:
    """Runs a command to its end; what it said."""
    found = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


def refused(*arguments: object) -> str:
    """Runs a command that must be refused; its one line."""
    found = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if isinstance(found.exception, UserError):
        assert "\n" not in str(found.exception)
        return str(found.exception)
    assert found.exit_code == 2, (found.output, found.exception)
    return " ".join(re.sub("[│╭╮╰╯─]", " ", found.output).split())


def lines(path: Path) -> list[dict]:
    """The objects of a file with one per line."""
    return [json.loads(text) for text in path.read_text().splitlines()]
