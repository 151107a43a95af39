"""`mmrlhf eval benchmarks --list` prints every benchmark once, with what one must know before it is run."""

from __future__ import annotations

import itertools
import json

import pytest
from typer.testing import CliRunner

from mmrlhf_jax.cli import app
from mmrlhf_jax.suite.catalogue import BENCHMARKS

FIELDS = {"name", "dimension", "metric", "direction", "scale", "harness_task", "data", "judge"}


def listed(*options: str) -> str:
    result = CliRunner().invoke(app, ["eval", "benchmarks", "--list", *options])
    assert result.exit_code == 0
    return result.stdout


def test_as_json_there_is_an_object_per_benchmark():
    found = json.loads(listed("--json"))
    assert [each["name"] for each in found] == [each.name for each in BENCHMARKS] and len(found) == 35
    for each in found:
        assert each.keys() >= FIELDS
        assert all(isinstance(each[field], str) and each[field] for field in FIELDS - {"harness_task"})


def test_several_rows_and_tasks_are_joined_and_stand_one_by_one():
    found = {each["name"]: each for each in json.loads(listed("--json"))}
    mme, pope, mmhal = found["mme"], found["pope"], found["mmhal_bench"]
    assert mme["metric"] == "mme_perception_score + mme_cognition_score"
    assert mme["data"] == "lmms-lab-encoder/MME:test"
    assert (mme["direction"], mme["scale"], mme["judge"]) == ("higher", "points", "none")
    assert pope["harness_task"] == "pope_adv, pope_pop, pope_random" and pope["metric"] == "pope_accuracy"
    assert [task["data"]["split"] for task in pope["tasks"]] == ["adversarial", "popular", "random"]
    assert mmhal["harness_task"] is None and mmhal["direction"] == "lower, higher" and mmhal["scale"] == "%, of 6"
    assert [row["full"] for row in mmhal["rows"]] == [100.0, 6.0]


def test_as_text_there_is_a_line_per_benchmark_with_the_same_fields():
    head, *lines = listed().splitlines()
    assert set(head.split()) == FIELDS and len(lines) == 35
    short = head.split()[:6]  # of these the columns are as wide as their longest value
    starts = [head.index(field) for field in short]
    objects = json.loads(listed("--json"))
    for line, found in zip(lines, objects, strict=True):
        cells = [line[start:end].strip() for start, end in itertools.pairwise(starts)]
        assert cells == [found[field] for field in short[:-1]]
        rest = [found[field] or "-" for field in head.split()[5:]]
        assert line[starts[-1] :].split() == " ".join(rest).split()


def test_equal_values_of_a_benchmark_are_written_once():
    (line,) = listed("--benchmark", "pope").splitlines()[1:]
    assert line.count("pope_accuracy") == line.count("higher") == 1
    (line,) = listed("--benchmark", "videochatgpt").splitlines()[1:]
    assert line.count("always") == line.count("of 5") == 1 and line.count("gpt_eval_score_") == 5


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--dimensions", "ocr"), ["ocrbench", "textvqa_val", "websrc_val"]),
        (("--dimensions", "video", "--benchmark", "mme,pope_adv"), ["mme", "pope", "video_mme", "videochatgpt", "video_dc499"]),
        (("--benchmark", "pope", "--benchmark", "nsfw_text"), ["pope", "nsfw_text"]),
    ],
)
def test_a_part_of_them_is_listed(options, names):
    assert [each["name"] for each in json.loads(listed(*options, "--json"))] == names
    assert [line.split()[0] for line in listed(*options).splitlines()[1:]] == names
