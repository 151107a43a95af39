"""Which package may import which: the layers of the README's layout, and no circle among the modules."""

from __future__ import annotations

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest

from mmrlhf_jax.models.registry import FAMILIES

ROOT = Path(__file__).parents[1] / "mmrlhf_jax"

# What each package imports beside the base, which is the single files of the top level and imports no package. A package stands
# above all that it names. Whoever adds an edge here changes the layout in README.md, too.
ALLOWED = {
    "base": set(),
    "config": set(),
    "objectives": {"sharding"},
    "sharding": {"config"},
    "models": {"sharding"},
    "data": {"config", "models"},
    "huggingface": {"data", "models", "sharding"},
    "tasks": {"config", "data", "objectives"},
    "inference": {"config", "data", "huggingface", "models", "objectives", "sharding"},
    "pages": {"config", "data"},
    "training": {"config", "data", "huggingface", "inference", "models", "objectives", "pages", "sharding", "tasks"},
    "launching": {"config", "data", "sharding"},
    "evaluation": {"data", "inference", "pages"},
    "suite": {"data", "huggingface", "inference", "pages"},
    "serving": {"data", "inference", "models"},
    "growing": {"data", "evaluation", "huggingface", "inference", "models", "pages"},
    "planning": {"config", "data", "huggingface", "inference", "models", "objectives", "sharding", "tasks", "training"},
    "commands": {
        "config", "data", "evaluation", "growing", "huggingface", "inference", "pages", "planning", "serving", "sharding",
        "suite", "tasks", "training",
    },
    "quickstart": {
        "config", "data", "evaluation", "huggingface", "inference", "models", "pages", "sharding", "suite", "training",
    },
    "cli": {"commands", "quickstart"},
}  # fmt: skip


@cache
def imports() -> dict[str, set[str]]:
    """Module -> modules of the project that it imports, at its top or inside a function; not for type checkers alone."""
    names = {str(path.relative_to(ROOT.parent).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
             for path in ROOT.rglob("*.py")}  # fmt: skip
    found = {}
    for name, path in names.items():
        finder = _Imports(names)
        finder.visit(ast.parse(path.read_text()))
        found[name] = finder.found - {name}
    return found


class _Imports(ast.NodeVisitor):
    def __init__(self, names):
        self.names, self.found = names, set()

    def visit_If(self, node: ast.If):
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import):
        self.found |= {alias.name for alias in node.names if alias.name in self.names}

    def visit_ImportFrom(self, node: ast.ImportFrom):
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            self.found |= {inner} & self.names.keys() or {node.module} & self.names.keys()


def package(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1 or (ROOT / f"{parts[1]}.py").exists():
        return "cli" if parts[-1] == "cli" else "base"
    return parts[1]


@pytest.mark.long
def test_packages_import_only_those_below_them():
    wrong = sorted(
        f"{module} imports {imported}"
        for module, all_imported in imports().items()
        for imported in all_imported
        if package(imported) not in ALLOWED[package(module)] | {package(module), "base"}
    )
    assert not wrong, "\n".join(wrong)


def test_no_part_of_the_models_imports_a_family_and_no_family_another():
    """The parts in `models/` serve every family; the registry alone names the families, and imports them by that name."""
    folders = {module.rpartition(".")[2]: module for module in FAMILIES.values()}
    wrong = sorted(
        f"{module} imports {imported}"
        for module, found in imports().items()
        for imported in found
        if package(module) == "models" and family_folder(imported, folders) not in (None, family_folder(module, folders))
    )
    assert not wrong, "\n".join(wrong)


def family_folder(module: str, folders: dict[str, str]) -> str | None:
    """The name of the family in whose folder a module is; None for a module of no family."""
    return next((name for name, folder in folders.items() if f"{module}.".startswith(f"{folder}.")), None)


def test_every_edge_that_is_allowed_is_used():
    used = {(package(module), package(imported)) for module, found in imports().items() for imported in found}
    assert {(above, below) for above, found in ALLOWED.items() for below in found} <= used


def test_packages_are_layers():
    tuple(graphlib.TopologicalSorter(ALLOWED).static_order())


def test_no_modules_import_each_other_in_a_circle():
    tuple(graphlib.TopologicalSorter(imports()).static_order())


def test_a_circle_is_found():
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
