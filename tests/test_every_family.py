"""The verbs of the command line run on every family alike: rewards, training, continuation, replay, export, answers.

The commands below name no family, and give no option that another family does not take: only the checkpoint differs. Among the
groups is one with a video, a folder of frames, whose rate some families must know; a family without videos has pictures there.
"""

from __future__ import annotations

import json
import math
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmrlhf_jax import cli, config, sections
from mmrlhf_jax.training import record as recording
from mmrlhf_jax.training.page import PAGE
from tests import ranked
from tests.families import FAMILIES, OTHERS, WITH_ORIGINAL, WITH_VIDEOS, by_default

EACH = by_default(*OTHERS)  # because most other tests run the verbs on the default family
RANKS = [(1, 2), (1, 2, 3), (2, 1), (2, 1)]
IMAGES = [[(40, 30)], [(75, 40), (20, 20)], [], [(36, 30)] * 3]  # those of the last group become the frames of a video
VIDEO = ("--frames-per-second", 1.5, "--video-frames", 3)
STEPS = 3


class Place(NamedTuple):
    """A family's policy and reward model, ranked groups with pictures, and an MM-DPO experiment on rewards to be written."""

    policy: Path
    judge: Path
    data: Path
    rewards: Path
    experiment: Path
    run: Path


def make_place(root: Path, family: str) -> Place:
    tests = FAMILIES[family]
    policy = tests.checkpoint(root / "policy", naming=tests.PUBLISHED)
    judge = tests.checkpoint(root / "judge", reward_head=True)
    data = ranked.write(root / "data", RANKS, IMAGES)
    if family in WITH_VIDEOS:
        with_video(data)
    place = Place(policy, judge, data, root / "rewards.jsonl", root / "experiment.yaml", root / "run")
    settings = config.Experiment(
        model=config.Model(path=str(policy), dtype="float32", remat="none"),
        data=config.Data(path=str(data), rewards=str(place.rewards), video_frames=3, frames_per_second=1.5),
        objective=config.Preference(),
        optimizer=config.Optimizer(learning_rate=1e-3),
        batch=config.Batch(rows=1, slots=1024, logprob_chunk=64),
        run=config.Run(directory=str(place.run), steps=STEPS, checkpoint_every=1),
    )
    place.experiment.write_text(sections.resolved(settings))
    return place


def with_video(data: Path) -> Path:
    """The data with the pictures of its last group as a folder of frames."""
    *rows, last = map(json.loads, data.read_text().splitlines())
    (data.parent / "clip").mkdir()
    for name in last["images"]:
        (data.parent / name).rename(data.parent / "clip" / name)
    rows.append(last | {"images": [], "video": "clip"})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def mmrlhf(*arguments: object) -> int | str:
    """The exit status of the command."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["mmrlhf", *map(str, arguments)])
        cli.main()
    return end.value.code or 0


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def html(path: Path) -> str:
    """A page, which is well-formed."""
    page = path.read_text()
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    return page


@pytest.mark.parametrize("family", EACH)
@pytest.mark.long
def test_from_rewards_to_an_exported_model(family, tmp_path, capsys, monkeypatch):
    """score, train up to a step that the guard stops at, replay of that step, train to the end, export, and its answers."""
    place = make_place(tmp_path, family)
    writing = ("--max-new-tokens", 2)
    assert mmrlhf("score", "--model", place.judge, "--data", place.data, "--out", place.rewards, *writing, *VIDEO) == 0
    scored = [response for line in lines(place.rewards) for response in line["responses"]]
    assert len(scored) == sum(map(len, RANKS)) and len({response["reward"] for response in scored}) == len(scored)

    with monkeypatch.context() as stopping:
        reasons = iter([*[None] * (STEPS - 1), "a stop for the test"])
        stopping.setattr(recording, "stops", lambda status, settings: next(reasons))
        stopping.setattr(recording, "GOOD", -1)  # so that every step asks the guard
        assert mmrlhf("train", place.experiment) == 2
    assert "a stop for the test" in capsys.readouterr().err

    assert mmrlhf("replay", place.run / f"bad_batch_step_{STEPS - 1}.npz", "--json") == 0
    replayed = json.loads(capsys.readouterr().out)
    assert mmrlhf("train", place.experiment) == 0
    metrics = lines(place.run / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert replayed["figures"]["loss"] == pytest.approx(metrics[-1]["loss"], rel=1e-5)
    norm = math.hypot(*replayed["gradient_norms"].values())
    assert norm == pytest.approx(metrics[-1]["grad_norm"], rel=1e-5)
    assert f"{STEPS} of {STEPS} steps are done" in html(place.run / PAGE)

    assert mmrlhf("export", place.run, tmp_path / "aligned") == 0
    other = "original" if family in WITH_ORIGINAL else "hf"
    assert mmrlhf("export", tmp_path / "aligned", tmp_path / "other", "--naming", other) == 0
    assert mmrlhf("export", tmp_path / "other", tmp_path / "back") == 0
    exported, back = (load_file(tmp_path / name / "model.safetensors") for name in ("aligned", "back"))
    assert exported.keys() == back.keys() and all(exported[name].tobytes() == back[name].tobytes() for name in exported)

    sums = []
    for model in (place.policy, tmp_path / "aligned", tmp_path / "other"):
        assert (
            mmrlhf("logprobs", "--model", model, "--data", place.data, "--out", tmp_path / f"{model.name}.jsonl", *VIDEO) == 0
        )
        sums.append([one["logprob"] for line in lines(tmp_path / f"{model.name}.jsonl") for one in line["responses"]])
    assert np.abs(np.subtract(sums[1], sums[0])).min() > 1e-3  # it has learnt
    np.testing.assert_array_equal(sums[1], sums[2])


@pytest.mark.parametrize("family", EACH)
@pytest.mark.long
def test_questions_and_judgements(family, tmp_path, capsys):
    """generate about a picture, and eval reward-bench with the critiques that the data have, the media exchanged or not."""
    place = make_place(tmp_path, family)
    capsys.readouterr()
    video = ("--video", place.data.parent / "clip", *VIDEO)
    for shown in (("--image", place.data.parent / "0_0.png"), *([video] if family in WITH_VIDEOS else [])):
        asked = ("--prompt", "What is this?", *shown, "--max-new-tokens", 3)
        assert mmrlhf("generate", "--model", place.policy, *asked) == 0
        assert capsys.readouterr().out.endswith("\n")
    judged = []
    for options in ((), ("--blind",)):
        given = ("--data", place.data, "--critique", "given", "--json", *options, *VIDEO)
        assert mmrlhf("eval", "reward-bench", "--model", place.judge, *given) == 0
        judged.append(json.loads(capsys.readouterr().out))
    pairs = [table["overall"]["pairs"] for table in judged]
    assert pairs == [6, 5]  # a group without media cannot be exchanged
    assert all(0 <= table["overall"]["acc"] <= 1 for table in judged)


@pytest.mark.parametrize("family", EACH)
def test_pages_of_data(family, tmp_path, capsys):
    """data stats with the family's own tokenizer and geometry, and data show."""
    place = make_place(tmp_path, family)
    assert mmrlhf("data", "stats", place.data, "--model", place.policy, "--json", *VIDEO) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["groups"], found["text_only"], found["dropped"]) == (4, 1, 0)
    assert (found["images"], found["videos"], found["frames"]) == ((3, 1, 3) if family in WITH_VIDEOS else (6, 0, 0))
    assert mmrlhf("data", "stats", place.data, "--model", place.policy, "--out", tmp_path / "stats.html", *VIDEO) == 0
    assert "Tiles per group" in html(tmp_path / "stats.html")
    assert mmrlhf("data", "show", place.data, "group-1", "--out", tmp_path / "group.html") == 0
    assert html(tmp_path / "group.html").count("<img") == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_model_learns_and_judges(family, tmp_path, capsys):
    """With adapters on the language model, judged on held-out groups; its export scores, and its page shows the figures."""
    place = make_place(tmp_path, family)
    settings = config.Experiment(
        model=config.Model(path=str(place.policy), dtype="float32", remat="none", reward_head="tanh"),
        data=config.Data(path=str(place.data), held_out=str(place.data), video_frames=3, frames_per_second=1.5),
        objective=config.RewardModel(),
        lora=config.Lora(rank=2, alpha=4.0),
        optimizer=config.Optimizer(learning_rate=1e-3),
        batch=config.Batch(rows=1, slots=2048, logprob_chunk=64),
        run=config.Run(directory=str(place.run), steps=2, checkpoint_every=1, eval_every=1),
    )
    place.experiment.write_text(sections.resolved(settings))
    assert mmrlhf("train", place.experiment) == 0
    metrics = lines(place.run / "metrics.jsonl")
    for figure in ("loss", "eval_loss"):
        found = [line[figure] for line in metrics if figure in line]
        assert len(found) == 2 and all(map(math.isfinite, found))
    assert "held out" in html(place.run / PAGE)
    assert mmrlhf("export", place.run, tmp_path / "judge-2", "--step", "best") == 0
    scores = []
    for model in (place.judge, tmp_path / "judge-2"):
        given = ("--data", place.data, "--out", tmp_path / f"{model.name}.jsonl", "--critique", "given", *VIDEO)
        assert mmrlhf("score", "--model", model, *given) == 0
        scores.append([one["reward"] for line in lines(tmp_path / f"{model.name}.jsonl") for one in line["responses"]])
    assert scores[0] != scores[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_that_was_exported_alone_gives_the_runs_model_again(family, tmp_path):
    """Supervised learning of adapters on the language model and the projector."""
    place = make_place(tmp_path, family)
    settings = config.Experiment(
        model=config.Model(path=str(place.policy), dtype="float32", remat="none"),
        data=config.Data(path=str(place.data), video_frames=3, frames_per_second=1.5),
        objective=config.Supervised(),
        trains=config.Trains(newline=False),
        lora=config.Lora(parts=("language_model", "projector"), rank=2, alpha=4.0),
        optimizer=config.Optimizer(learning_rate=1e-2),
        batch=config.Batch(rows=1, slots=1024, logprob_chunk=64),
        run=config.Run(directory=str(place.run), steps=2),
    )
    place.experiment.write_text(sections.resolved(settings))
    assert mmrlhf("train", place.experiment) == 0
    assert mmrlhf("export", place.run, tmp_path / "whole") == 0
    assert mmrlhf("export", place.run, tmp_path / "adapter", "--adapter") == 0
    assert mmrlhf("export", tmp_path / "adapter", tmp_path / "merged") == 0
    places = (place.policy, tmp_path / "whole", tmp_path / "merged")
    base, whole, merged = (load_file(directory / "model.safetensors") for directory in places)
    assert whole.keys() == merged.keys() == base.keys()
    changed = [name for name in base if not np.array_equal(base[name], whole[name])]
    assert len(changed) == 2 * 7 + FAMILIES[family].PROJECTOR_LINEARS  # every matrix of both layers, and of the projector
    for name in base:
        np.testing.assert_allclose(merged[name], whole[name], rtol=1e-6, atol=1e-7, err_msg=name)
