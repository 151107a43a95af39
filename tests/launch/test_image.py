"""The container image: what its file copies exists, what it installs is an extra, and it builds for TPUs and for GPUs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

from tests.launch.launchers import ROOT

FILE = ROOT / "launch" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, with continued lines joined and comments left out."""
    lines = [line for line in FILE.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined)]


def extras() -> dict[str, list[str]]:
    """The value of EXTRA by default, and those that the comments name for other platforms."""
    default = next(rest for word, rest in instructions() if word == "ARG" and rest.startswith("EXTRA=")).partition("=")[2]
    others = re.findall(r"--build-arg EXTRA=([\w,]+)", FILE.read_text())
    return {value: value.split(",") for value in (default, *others)}


def test_every_instruction_is_one_of_dockers():
    known = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in instructions()} <= known and instructions()[0][0] == "FROM"


def test_everything_that_is_copied_is_in_the_repository():
    copied = [part for word, rest in instructions() if word == "COPY" for part in rest.split()[:-1]]
    assert {"pyproject.toml", "mmrlhf_jax", "configs", "launch"} <= set(copied)
    assert all((ROOT / part).exists() for part in copied)


def test_what_setuptools_reads_is_copied_before_the_package_is_installed():
    words = [f"{word} {rest}" for word, rest in instructions()]
    installed = next(i for i, line in enumerate(words) if line.startswith("RUN pip install"))
    before = " ".join(line for line in words[:installed] if line.startswith("COPY"))
    for name in ("pyproject.toml", "mmrlhf_jax", PROJECT["readme"], *PROJECT["license-files"]):
        assert name in before


def test_its_python_is_one_that_the_package_allows():
    (image,) = [rest for word, rest in instructions() if word == "FROM"]
    version = re.fullmatch(r"python:3\.(\d+)-slim", image)
    assert version and int(version[1]) >= int(PROJECT["requires-python"].removeprefix(">=3."))


def test_there_is_an_image_for_tpus_and_one_for_gpus_of_extras_that_exist():
    chosen = extras()
    assert {"tpu", "cuda"} <= {name for names in chosen.values() for name in names}
    for names in chosen.values():
        assert set(names) <= set(PROJECT["optional-dependencies"]) and "gcs" in names
    assert any("cuda13" in each for each in PROJECT["optional-dependencies"]["cuda"]), "the CUDA libraries are in its wheels"


@pytest.mark.slow
@pytest.mark.parametrize("extra", extras())
def test_pip_finds_a_version_of_everything(extra):
    """Asks the index for metadata; nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", f"{ROOT}[{extra}]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
