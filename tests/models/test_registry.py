"""A family of models is a folder and a line of the registry: nothing else in the project names one."""

from __future__ import annotations

import dataclasses
import io
import re
import tokenize
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models import registry
from mmrlhf_jax.models.family import Family
from mmrlhf_jax.suite.catalogue import BENCHMARKS, ROWS, TASKS
from tests import families

ROOT = Path(registry.__file__).parents[1]


def family_names(named: Sequence[Family]) -> re.Pattern[str]:
    """What names one of these families: its model_type in any spelling, each word of it, its title, who publishes it.

    A publisher whose name is that of a language model as well, a part, counts in hub ids only.
    """
    words = [word for each in named for word in each.model_type.split("_") if word.isalpha() and len(word) > 4]
    spelled = ["[-_. ]?".join(map(re.escape, each.model_type.split("_"))) for each in named]
    names = {re.escape(each.title) for each in named}
    for name in {name for each in named for name in each.publishers.values()}:
        is_part = any(each.language_model.startswith(name.lower()) for each in named)
        names.add(rf"\b{re.escape(name)}/" if is_part else re.escape(name))
    return re.compile("|".join(sorted({*words, *spelled, *names})), re.IGNORECASE)


def names_of_benchmarks() -> re.Pattern[str]:
    """The names of benchmarks, of their data and of their metrics. A few contain a family's name, and are no model."""
    names = {name for each in BENCHMARKS for name in (each.name, each.title)}
    names |= {name for row in ROWS.values() for name in (row.name, row.title, *row.metrics)}
    names |= {name for task in TASKS.values() for name in (task.name, task.harness_task, task.data.hub)}
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile(rf"(?<![\w/])(?:{'|'.join(map(re.escape, longest_first))})(?![\w/])", re.IGNORECASE)


NAMES, OF_BENCHMARKS = family_names(registry.families()), names_of_benchmarks()
SOURCE_FILE = re.compile(r"`[\w./-]+\.py`")  # a comment may say which file of somebody else's it follows


def mentions(path: Path) -> list[str]:
    """The lines of a file that name a family, but comments and docstrings that cite a source file, and names of benchmarks."""
    lines = path.read_text().splitlines()
    cited = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) and SOURCE_FILE.search(token.string):
            cited |= set(range(token.start[0], token.end[0] + 1))
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for number, line in enumerate(lines, 1)
        if NAMES.search(OF_BENCHMARKS.sub("", line)) and not (number in cited and SOURCE_FILE.search(line))
    ]


@pytest.mark.long
def test_nothing_outside_a_familys_folder_names_it():
    folders = [ROOT.joinpath(*module.split(".")[1:]) for module in registry.FAMILIES.values()]
    exempt = [*folders, ROOT / "quickstart", ROOT / "models" / "registry.py"]
    files = [path for path in ROOT.rglob("*.py") if not any(path == each or each in path.parents for each in exempt)]
    assert len(files) > 100
    found = [line for path in sorted(files) for line in mentions(path)]
    assert not found, "\n".join(found)


def test_a_name_in_code_and_one_in_a_comment_without_a_source_are_found(tmp_path, monkeypatch):
    path = tmp_path / "one.py"
    path.write_text('"""As `a/llava.py` has it."""\nx = "llava"\n# LLaVA does so\n# OneVision: `b/c.py`\n')
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert [line.split(":")[1] for line in mentions(path)] == ["2", "3"]


def test_a_benchmark_may_have_a_familys_name_in_its_own_but_is_no_model():
    for name in ("llava_in_the_wild", "lmms-lab-encoder/MME", "LLaVA-Wilder", "gpt_eval_llava_all"):
        assert NAMES.search(name) and not NAMES.search(OF_BENCHMARKS.sub("", f'x = "{name}"'))
    for name in ("LLaVA-OV-7B", "llava_onevision", "lmms-lab/llava-onevision", "LLaVA", "llava_in_the_wild_model"):
        assert NAMES.search(OF_BENCHMARKS.sub("", f'x = "{name}"'))


def test_the_names_that_are_looked_for_are_those_of_every_family_and_of_its_publishers():
    for text in ("LLaVA", "OneVision", "lmms-lab/", "llava-hf", "InternVL", "OpenGVLab", "llava_onevision"):
        assert NAMES.search(text)
    other = SimpleNamespace(
        model_type="paligemma_2_vl", title="PaliGemma 2", language_model="gemma", publishers={"hf": "google"}
    )
    found = family_names([other])
    assert all(found.search(text) for text in ("paligemma", "PaliGemma-2-VL", "google/"))
    assert not found.search("2 models")


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_a_family_has_every_member_of_the_interface(name):
    family = registry.family(name)
    assert not [member for member in Family.__annotations__ if not hasattr(family, member)]
    assert family.publishers.keys() == set(family.names.namings)


def test_every_family_has_its_module_for_tests():
    assert families.FAMILIES.keys() == registry.FAMILIES.keys()
    listed = [line[4:45] for line in families.__doc__.splitlines() if line.startswith("    ")]
    names = [name for columns in listed for name in columns.replace(",", " ").split()]
    assert {"checkpoint", "QUICK_FRAMES", "opening"} <= set(names)
    for tests in families.FAMILIES.values():
        assert not [name for name in names if not hasattr(tests, name)]


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_a_family_has_every_attribute_that_the_interface_declares(name):
    family = registry.family(name)
    assert not [attribute for attribute in Family.__annotations__ if not hasattr(family, attribute)]


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_a_family_is_known_by_its_model_type(name):
    family = registry.family(name)
    assert family.model_type == name
    assert registry.find_family({"model_type": name}, "config.json") is family
    assert family.naming({"model_type": name}) == "hf"
    assert family.naming({"model_type": "qwen2"}) is None


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_a_geometrys_settings_have_its_family_unless_they_are_older_than_the_second_family(name):
    """They are part of the fingerprint of an index, by which existing indexes and runs are recognised."""
    geometry = registry.family(name).typical_geometry()
    assert geometry.family == name
    named = {} if name == registry.DEFAULT else {"family": name}
    assert geometry.settings() == named | dataclasses.asdict(geometry)


def test_a_family_must_say_how_many_tokens_a_config_has_embeddings_for():
    assert "vocabulary" in Family.__abstractmethods__
    for family in registry.families():
        assert family.vocabulary({"model_type": family.model_type, "text_config": {"vocab_size": 7}}, "c") == 7
        # Of transformers' classes for Qwen2-VL and Qwen2.5-VL, and of those for the others.
        default = 152064 if family.model_type in ("qwen2_vl", "qwen2_5_vl") else 151936
        assert family.vocabulary({"model_type": family.model_type}, "c") == default


def test_a_model_of_no_family_is_refused_with_the_families_that_there_are():
    with pytest.raises(UserError, match=r"config\.json: model_type is 'paligemma'; this project reads LLaVA-OneVision"):
        registry.find_family({"model_type": "paligemma"}, "config.json")
