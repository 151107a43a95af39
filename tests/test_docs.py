"""README and docs/ name what there is: links, paths, commands, options, the layout, and the members of a family."""

from __future__ import annotations

import re
import shlex
import tomllib
import xml.etree.ElementTree
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pydantic
import pytest
import typer.main

from mmrlhf_jax import config
from mmrlhf_jax.cli import app
from mmrlhf_jax.models.family import Family
from mmrlhf_jax.tasks import Task
from tests.test_layers import ALLOWED

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^    (.*)$", re.MULTILINE)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
# A path from the top of the repository, with a suffix or a slash at its end; <family> and the like stand for anything.
PLACE = re.compile(r"(?<![\w/.$<-])((?:mmrlhf_jax|configs|launch|tests|docs)/[\w./*-]*)")
MODULE = re.compile(r"python -m (tests[\w.]*)")


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request) -> Path:
    return request.param


def anchors(path: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    titles = HEADING.findall(path.read_text())
    return {re.sub(r"[^\w -]", "", title.replace("`", "").lower()).strip().replace(" ", "-") for title in titles}


def links(path: Path) -> list[str]:
    return [link for link in LINK.findall(path.read_text()) if "://" not in link]


def test_the_readme_is_a_page():
    assert len(README.read_text().splitlines()) <= 250


def test_every_relative_link_leads_somewhere(page):
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_readme():
    reached, left = set(), [README]
    while left:
        path = left.pop()
        reached.add(path)
        found = {(path.parent / link.partition("#")[0]).resolve() for link in links(path) if not link.startswith("#")}
        left += [each for each in found if each.suffix == ".md" and each not in reached]
    assert reached == set(PAGES)


def test_every_page_says_at_its_beginning_what_it_is_for():
    for path in PAGES[1:]:
        title, blank, first, *_ = path.read_text().splitlines()
        assert title.startswith("# ") and not blank and first.startswith("This page is for whoever "), path


def test_every_path_that_is_named_exists(page):
    for name in PLACE.findall(page.read_text()):
        name = name.rstrip(".")
        assert any(ROOT.glob(name)) if "*" in name else (ROOT / name).exists(), name
    for module in MODULE.findall(page.read_text()):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or path.is_dir(), module


def test_every_file_on_the_map_of_the_code_is_where_it_stands_there():
    found = dict(on_the_map())
    assert len(found) > 100
    assert not [path for path, exists in found.items() if not exists]


def on_the_map():
    """(path, whether it exists) of the files and folders that begin the lines of docs/code.md, by indentation."""
    folders: list[tuple[int, Path]] = []
    for line in BLOCK.findall((ROOT / "docs" / "code.md").read_text()):
        depth = len(line) - len(line.lstrip())
        while folders and folders[-1][0] >= depth:
            folders.pop()
        parent = folders[-1][1] if folders else ROOT
        for name in re.match(r"(?:[\w.]+(?:/|\.py) ?)*", line.lstrip())[0].split():
            yield parent / name, (parent / name).exists()
            if name.endswith("/"):
                folders.append((depth, parent / name))


# Commands


@cache
def command(words: tuple[str, ...]):
    """The click command of these words behind `mmrlhf`, and how many of them name it."""
    found, count = typer.main.get_command(app), 0
    while hasattr(found, "commands"):
        assert count < len(words) and words[count] in found.commands, f"mmrlhf {' '.join(words)}"
        found, count = found.commands[words[count]], count + 1
    return found, count


def calls(path: Path) -> list[str]:
    """What stands behind `mmrlhf` in the code of a page: in its indented lines, and inside backticks."""
    text = path.read_text().replace("\\\n", " ")
    code = [*CODE.findall(text), *BLOCK.findall(text)]
    return [each.removeprefix("mmrlhf ") for each in dict.fromkeys(code) if each.startswith("mmrlhf ")]


@pytest.mark.long
def test_every_command_and_option_exists(page):
    for call in calls(page):
        if call.split()[0] == "VERB":
            continue
        words = [word.strip("[]") for word in shlex.split(call, comments=True)]
        if len(words) == 1 and hasattr(typer.main.get_command(app).commands.get(words[0]), "commands"):
            continue  # a group, as in `mmrlhf data`
        found, count = command(tuple(words))
        known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words[count:] if word.startswith("--")} <= known | {"--help"}, call


def commands(group=None, *path: str):
    """(words, click command) of every verb."""
    for name, each in (group or typer.main.get_command(app)).commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, *path, name)
        else:
            yield (*path, name), each


def test_every_verb_is_in_the_readmes_table():
    listed = " ".join(row[0] for row in table("command"))
    for words, _ in commands():
        assert f"`mmrlhf {' '.join(words)}" in listed


def test_every_option_that_is_named_alone_exists(page):
    """Of a verb, or in the text of a launcher or of a module that is run by hand."""
    known = {option for _, each in commands() for parameter in each.params for option in parameter.opts}
    text = page.read_text()
    modules = [ROOT.joinpath(*module.split(".")) for module in MODULE.findall(text)]
    files = [path / "__main__.py" if path.is_dir() else path.with_suffix(".py") for path in modules]
    elsewhere = "".join(path.read_text() for path in [*(ROOT / "launch").glob("*.sh"), *files])
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(CODE.findall(text))):
        assert option in known or option in elsewhere or option == "--help", option


def test_an_option_that_does_not_exist_is_found(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("`mmrlhf train CONFIG --nonsense 1`")
    with pytest.raises(AssertionError, match="nonsense"):
        test_every_command_and_option_exists(path)
    path.write_text("    mmrlhf trian CONFIG")
    with pytest.raises(AssertionError, match="trian"):
        test_every_command_and_option_exists(path)


# Settings


def keys(section: type[pydantic.BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings of a section and of those within it."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for each in sections_in(field.annotation):
            yield from keys(each, f"{prefix}{name}.")


def sections_in(kind) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        yield kind
    for part in get_args(kind):
        yield from sections_in(part)


def test_every_setting_that_is_named_exists(page):
    """A name with a dot, of an experiment or a launch file; `scaling` is known to be of `objective`."""
    known = {*keys(config.Experiment), *keys(config.Launch), *keys(config.Preference)}
    roots = "|".join(sorted({name.partition(".")[0] for name in known if "." in name}))
    for name in re.findall(rf"(?:(?<=`)|(?<=--set ))((?:{roots})\.[\w.]+\w)(?=[`=:])", page.read_text()):
        assert name in known or re.fullmatch(r".*\.(py|yaml|json|jsonl)", name) or name.startswith("objective.losses."), name


def test_every_extra_that_is_installed_exists(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for names in re.findall(r"\.\[([\w,]+)\]", page.read_text()):
        assert set(names.split(",")) <= set(extras), names


# What the README says of the code


def test_the_readmes_benchmarks_are_against_the_model_that_its_experiment_aligns():
    steps, _ = section("From hub data to an exported model").split("\n\nExperiments")
    *_, trained = re.findall(r"mmrlhf train (configs/\S+)", steps)
    (against,) = re.findall(r"--against (\S+)", steps)
    assert against == config.load_experiment(ROOT / trained).model.path
    assert "make eval-env" in steps and "MMRLHF_HARNESS_PYTHON=.venv-eval/bin/python" in steps and "--judge " in steps


def table(first: str) -> list[list[str]]:
    """The rows of the README's table whose head begins with this cell."""
    behind = README.read_text().split(f"| {first} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in behind.splitlines()[2:]]


def test_the_readmes_layout_is_the_layers_that_are_tested():
    rows = table("package")
    found = {name.strip("`"): set(CODE.findall(imports)) for name, _, imports in rows}
    assert found == {name: below - {name} for name, below in ALLOWED.items()}
    order = list(found)
    for name, below in found.items():
        assert all(order.index(name) < order.index(each) for each in below), f"{name} stands below what it imports"


def section(title: str) -> str:
    return README.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_section_on_a_new_family_names_every_member_that_a_family_has():
    text = section("Adding a model family")
    members = {name for name in (*Family.__annotations__, *vars(Family)) if not name.startswith("_")}
    assert members <= set(CODE.findall(text))
    files = re.findall(r"`(\w+\.py)`", text.split("| members of `Family` |")[1].split("joins them")[0])
    folder = ROOT / "mmrlhf_jax" / "models" / "internvl"
    assert {path.name for path in folder.glob("*.py")} - set(files) == {"__init__.py"}


def test_the_section_on_a_new_task_names_every_member_that_it_must_have():
    assert Task.__abstractmethods__ <= set(CODE.findall(section("Adding a task")))


def test_the_picture_is_drawn_without_help():
    """Well-formed, and nothing that a page which shows it as an image would not load or run."""
    path = ROOT / "docs" / "group.svg"
    root = xml.etree.ElementTree.parse(path).getroot()
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert root.tag.endswith("}svg") and {"title", "desc"} <= names
    assert not names & {"script", "image", "foreignObject", "use", "style"}
    assert "href" not in path.read_text() and "url(" not in path.read_text()
