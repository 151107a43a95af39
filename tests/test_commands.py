"""Every verb that `cli` declares calls a body that is there and takes what it is given; none of them is needed for help."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from mmrlhf_jax import cli, commands


def calls() -> dict[str, ast.Call]:
    """The calls of `commands.FILE.FUNCTION(...)` in the files of `cli`, by that name."""
    trees = [ast.parse(path.read_text()) for path in Path(cli.__file__).parent.glob("*.py")]
    nodes = (node for tree in trees for node in ast.walk(tree))
    named = {ast.unparse(node.func): node for node in nodes if isinstance(node, ast.Call)}
    return {name: node for name, node in named.items() if name.startswith("commands.")}


def test_every_file_of_a_verb_is_called():
    files = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__", "options"}
    assert {name.split(".")[1] for name in calls()} == files


@pytest.mark.parametrize("name", calls())
def test_a_body_takes_what_its_verb_gives_it(name):
    call, (_, file, function) = calls()[name], name.split(".")
    signature = inspect.signature(getattr(getattr(commands, file), function))
    signature.bind_partial(*call.args, **{given.arg: given.value for given in call.keywords if given.arg is not None})


def test_what_is_no_file_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        commands.nothing  # noqa: B018


def test_help_imports_no_body():
    code = """
import sys
from mmrlhf_jax import cli
try:
    cli.app(["train", "--help"])
except SystemExit:
    print([name for name in sys.modules if name.startswith("mmrlhf_jax.commands.") or name in ("jax", "numpy", "etils")])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.splitlines()[-1] == "['mmrlhf_jax.commands.options']"
