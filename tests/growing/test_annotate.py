"""Annotation: prompts become ranked records that say where they come from and train as they are."""

from __future__ import annotations

import gc
import io
import itertools
import json
import math
import shutil
import statistics
import sys
import weakref

import pytest
from PIL import Image

from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.data.validate import validate
from mmrlhf_jax.growing import annotate as steps
from mmrlhf_jax.growing import ranking, samples
from mmrlhf_jax.growing.media import MediaFolder
from mmrlhf_jax.inference.engine import Engine
from tests.growing.commands import command, lines, refused

SETTINGS = ("--samples", 4, "--max-new-tokens", 24, "--max-critique-tokens", 16, "--batch", 8)


@pytest.fixture(scope="module")
def arguments(policy, critic, scenes):
    return ["--policy", policy, "--critic", critic, "--data", scenes["prompts"], *SETTINGS]


@pytest.fixture(scope="module")
def out(tmp_path_factory, arguments):
    found = tmp_path_factory.mktemp("grown") / "out"
    command("annotate", *arguments, "--tie", 0.01, "--out", found)
    return found


def without_dates(path) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "created"} for row in lines(path)]


@pytest.mark.long
def test_records_are_ranked_answers_with_their_origin(out, scenes, policy, critic):
    rows, made_with = lines(out / "records.jsonl"), json.loads((out / "job.json").read_text())
    drawn = {line["id"]: line for line in lines(out / "samples.jsonl")}
    assert [row["id"] for row in rows] == [row["id"] for row in lines(scenes["prompts"])]
    for row in rows:
        assert row["round"] == 1 and row["created"] == made_with["created"] and row["version"]
        assert sum(response["copies"] for response in row["responses"]) == 4
        texts = [sample["text"] for sample in drawn[row["id"]]["samples"]]
        for response in row["responses"]:
            sample = drawn[row["id"]]["samples"][response["sampling"]["index"]]
            assert response["text"] == sample["text"] and response["logprob"] == sample["logprob"] < 0
            assert response["copies"] == [" ".join(text.split()) for text in texts].count(" ".join(sample["text"].split()))
            assert response["model"] == str(policy) and response["score"]["critic"] == str(critic)
            assert response["sampling"] == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0} | {
                "seed": drawn[row["id"]]["seed"],
                "index": response["sampling"]["index"],
            }
            (critique,) = response["score"]["critiques"]
            assert critique["text"] == response.get("critique", critique["text"])
            assert critique["reward"] == response["score"]["reward"] == response["reward"]
            assert response["score"]["template"] == "qwen_1_5" and response["score"]["fingerprint"]
            assert ("truncated" in response["flags"]) == (response["finish_reason"] == "length")
            assert response["rank"] > 1 or not response["flags"]
        sound = [response for response in row["responses"] if not response["flags"]]
        ordered = sorted(sound, key=lambda response: response["rank"])
        assert ordered[0]["rank"] == 1
        for better, worse in itertools.pairwise(ordered):
            assert better["rank"] == worse["rank"] or better["reward"] > worse["reward"]


def test_the_directory_can_move_with_its_media_and_is_sound_data(out, scenes, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(out, moved)
    grown, source = SourceExamples(moved / "records.jsonl"), SourceExamples(scenes["prompts"], prompts=True)
    assert [grown[i].images for i in range(len(grown))] == [source[i].images for i in range(len(source))]
    assert not [name for name in moved.iterdir() if name.name.startswith(".")]
    assert grown.records == [grown[i].record for i in range(len(grown))]
    report = validate(moved / "records.jsonl")
    assert {finding.kind for finding in report.findings} <= {"text"}  # empty answers, and broken characters


def test_a_finished_directory_is_left_as_it_is(out, arguments):
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "is finished" in command("annotate", *arguments, "--tie", 0.01, "--out", out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


class Killed(Exception):
    pass


class Killer:
    """Wraps the steps of a run, notes which lines they make, and ends the run instead of a line that is too many."""

    def __init__(self, monkeypatch):
        self.left, self.made = 0, {"of_engine": [], "judged": [], "keep": []}
        for module, name in ((samples, "of_engine"), (steps, "judged")):
            monkeypatch.setattr(module, name, self._lines(name, getattr(module, name)))
        keep = MediaFolder.keep
        monkeypatch.setattr(MediaFolder, "keep", lambda folder, example: self._one("keep", example) or keep(folder, example))

    def _one(self, name: str, made) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.made[name].append(made)

    def _lines(self, name: str, step):
        def wrapped(*arguments):
            for index, line in step(*arguments):
                self._one(name, index)
                yield index, line

        return wrapped


@pytest.mark.long
def test_a_run_that_is_killed_in_any_step_goes_on_without_loss(out, arguments, tmp_path, monkeypatch):
    killer = Killer(monkeypatch)
    arguments = [*arguments, "--tie", 0.01, "--out", tmp_path / "out"]
    for killer.left in (2, 4, 6):  # in the samples, the scores, and the records
        with pytest.raises(Killed):
            command("annotate", *arguments)
        assert not (tmp_path / "out" / "records.jsonl").exists()
    killer.left = 100
    command("annotate", *arguments)
    assert [sorted(killer.made[name]) for name in ("of_engine", "judged")] == [list(range(5))] * 2  # every line once
    for name in ("samples.jsonl", "scores.jsonl"):
        assert lines(tmp_path / "out" / name) == lines(out / name)
    assert without_dates(tmp_path / "out" / "records.jsonl") == without_dates(out / "records.jsonl")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["--tie", 0.5], "ranking.tie 0.01, not 0.5"),
        (["--samples", 3], "sampling.samples 4, not 3"),
        (["--temperature", 0.7], "sampling.temperature 1.0, not 0.7"),
        (["--critiques", 2], "critiques.critiques 1, not 2"),
        (["--keep-responses"], "keep_responses False, not True"),
        (["--dtype", "bfloat16"], "policy.fingerprint"),
        (["--round", 2], "round 1, not 2"),
    ],
)
def test_a_changed_setting_is_refused(out, arguments, changed, says):
    given = [*arguments, "--tie", 0.01, "--out", out, *changed]
    message = refused("annotate", *given)
    assert f"was begun with {says}" in message and "--reuse" in message


def test_other_prompts_under_the_same_name_are_refused(out, arguments, scenes, tmp_path):
    shutil.copytree(scenes["prompts"].parent, tmp_path / "prompts")
    path = tmp_path / "prompts" / "records.jsonl"
    place = [*arguments, "--tie", 0.01, "--out", out]
    place[place.index(scenes["prompts"])] = path
    assert "is finished" in command("annotate", *place)  # the same content elsewhere
    path.write_text(path.read_text().replace("?", "??"))
    assert "was begun with data" in refused("annotate", *place)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["--tie", 0.1, "--calibrate", "DATA"], "give one of them"),
        (["--temperature", 0], "all of them are the same"),
        (["--critiques", 2, "--critique-temperature", 0], "all of them are the same"),
        (["--critic", "POLICY"], "has no reward head"),
        (["--top-p", 1.5], "top_p must be a number"),
        (["--critic", "http://127.0.0.1:9"], "nothing is read from http://"),
        (["--tie", "inf"], "no number"),
        (["--calibrate", "PROMPTS"], "needs at least one response"),
        (["--held-out-of", "nothing.jsonl"], "nothing.jsonl: no such file"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(arguments, scenes, policy, tmp_path, monkeypatch, changed, says):
    monkeypatch.setattr(Engine, "load", lambda *_, **__: pytest.fail("a model is loaded"))
    names = {"DATA": scenes["ranked"], "POLICY": policy, "PROMPTS": scenes["prompts"]}
    out = tmp_path / "out"
    assert says in refused("annotate", *arguments, "--out", out, *[names.get(each, each) for each in changed])
    assert not out.exists()


def test_a_policy_or_its_samples_must_be_given(arguments, scenes, out, critic, tmp_path):
    rest = ["--critic", critic, "--data", scenes["prompts"], "--out", tmp_path / "out"]
    assert "give a model that answers" in refused("annotate", *rest)
    assert "give a model that answers" in refused("annotate", *arguments, "--out", tmp_path / "out", "--reuse", out)
    assert "--samples, --top-p: the samples" in refused("annotate", *rest, "--reuse", out, "--samples", 2, "--top-p", 0.5)
    assert "has no job.json" in refused("annotate", *rest, "--reuse", tmp_path)


def test_a_directory_of_something_else_is_not_written_into(arguments, scenes):
    assert "is no directory of `mmrlhf annotate`" in refused("annotate", *arguments, "--out", scenes["ranked"].parent)


def test_without_a_sound_answer_nothing_is_ranked(arguments, tmp_path):
    message = refused("annotate", *arguments, "--out", tmp_path / "out", "--max-new-tokens", 1)
    assert "every answer is empty, repeats itself, or was cut off at 1 new tokens" in message
    assert not (tmp_path / "out" / "records.jsonl").exists()


@pytest.mark.long
def test_a_prompt_that_cannot_be_answered_is_left_out_and_said(arguments, scenes, tmp_path):
    shutil.copytree(scenes["prompts"].parent, tmp_path / "prompts")
    path = tmp_path / "prompts" / "records.jsonl"
    broken = tmp_path / "prompts" / lines(path)[1]["images"][0]
    broken.write_bytes(broken.read_bytes()[:-200])
    place = [*arguments, "--out", tmp_path / "out"]
    place[place.index(scenes["prompts"])] = path
    said = command("annotate", *place)
    assert "1 prompts are refused by the policy; the first is" in said and "truncated or broken" in said
    assert [row["id"] for row in lines(tmp_path / "out" / "records.jsonl")] == [
        row["id"] for number, row in enumerate(lines(path)) if number != 1
    ]


@pytest.mark.long
def test_another_critic_takes_the_same_samples(out, scenes, critic, tmp_path):
    from tests import tiny
    from tests.growing.conftest import UNTIED

    other = tiny.checkpoint(tmp_path / "other", tiny.config(text=UNTIED), seed=9, reward_head=True)
    rest = ["--data", scenes["prompts"], "--max-critique-tokens", 16, "--batch", 8, "--tie", 0.01, "--reuse", out]
    command("annotate", "--critic", other, *rest, "--out", tmp_path / "second")
    assert (tmp_path / "second" / "samples.jsonl").read_bytes() == (out / "samples.jsonl").read_bytes()
    first, second = lines(out / "records.jsonl"), lines(tmp_path / "second" / "records.jsonl")
    assert [[r["text"] for r in row["responses"]] for row in first] == [[r["text"] for r in row["responses"]] for row in second]
    assert [[r["reward"] for r in row["responses"]] for row in first] != [
        [r["reward"] for r in row["responses"]] for row in second
    ]
    # The same critic with another tie takes the scores, too.
    rest[rest.index(0.01)] = 5.0
    said = command("annotate", "--critic", critic, *rest, "--out", tmp_path / "third")
    by_flags = any(r["rank"] > 1 for row in lines(tmp_path / "third" / "records.jsonl") for r in row["responses"])
    assert ("no answer is ranked above another one" in said) == (not by_flags)
    assert (tmp_path / "third" / "scores.jsonl").read_bytes() == (out / "scores.jsonl").read_bytes()
    assert {r["rank"] for row in lines(tmp_path / "third" / "records.jsonl") for r in row["responses"] if not r["flags"]} == {1}


@pytest.mark.long
def test_several_critiques_give_their_mean_and_its_error(arguments, tmp_path, monkeypatch):
    alive, load, found = weakref.WeakSet(), Engine.load, []

    def loaded(*given, **settings):
        gc.collect()
        found.append(len(alive))
        engine = load(*given, **settings)
        alive.add(engine)
        return engine

    monkeypatch.setattr(Engine, "load", loaded)
    command("annotate", *arguments, "--out", tmp_path / "out", "--critiques", 3, "--tie", 0.0, "--z", 0.5)
    assert found == [0, 0]  # policy and critic are never in memory together
    for row in lines(tmp_path / "out" / "records.jsonl"):
        for response in row["responses"]:
            rewards = [one["reward"] for one in response["score"]["critiques"]]
            assert len(rewards) == 3 and response["reward"] == pytest.approx(sum(rewards) / 3)
            assert response["score"]["std"] == pytest.approx(statistics.stdev(rewards))
            nearest = min(response["score"]["critiques"], key=lambda one: abs(one["reward"] - response["reward"]))
            assert response.get("critique", nearest["text"]) == nearest["text"]
            assert len({one["seed"] for one in response["score"]["critiques"]}) == 1
        sound = sorted((r for r in row["responses"] if not r["flags"]), key=lambda response: response["rank"])
        for better, worse in itertools.pairwise(sound):
            error = math.sqrt((better["score"]["std"] ** 2 + worse["score"]["std"] ** 2) / 3)
            assert better["rank"] == worse["rank"] or better["reward"] - worse["reward"] >= 0.5 * error


@pytest.mark.long
def test_own_responses_are_judged_beside_the_samples_if_asked(policy, critic, scenes, tmp_path):
    place = ["--policy", policy, "--critic", critic, "--data", scenes["ranked"], *SETTINGS, "--tie", 0.0]
    command("annotate", *place, "--out", tmp_path / "out", "--keep-responses", "--critiques", 0)
    for row, source in zip(lines(tmp_path / "out" / "records.jsonl"), lines(scenes["ranked"]), strict=True):
        own = [response for response in row["responses"] if "sampling" not in response]
        assert [(r["text"], r["human_rank"]) for r in own] == [(r["text"], r["rank"]) for r in source["responses"]]
        assert len(row["responses"]) > len(own) and all("critique" not in response for response in row["responses"])
        assert len({response["reward"] for response in row["responses"]}) == len(row["responses"])


@pytest.mark.long
def test_the_tie_is_measured_on_pairs_that_people_ranked(arguments, scenes, tmp_path, monkeypatch):
    """A random critic agrees with nobody, so that any agreement is enough here: the tie is then the smallest margin."""
    monkeypatch.setattr(ranking, "LEAST_PAIRS", 1)
    monkeypatch.setattr(ranking, "AGREEMENT", 0.0)
    said = command("annotate", *arguments, "--out", tmp_path / "out", "--calibrate", scenes["ranked"])
    records, margins = SourceExamples(scenes["ranked"]).records, []
    for record, line in zip(records, lines(tmp_path / "out" / "calibration.jsonl"), strict=True):
        rewards = [each["reward"] for each in line["responses"]]
        margins += [rewards[better] - rewards[worse] for better, worse in record.pairs()]
    found = json.loads((tmp_path / "out" / "job.json").read_text())["results"]
    tie = min(map(abs, margins))
    agreement = sum(margin > 0 for margin in margins) / len(margins)
    assert found["calibration"] == {"tie": tie, "agreement": pytest.approx(agreement), "pairs": len(margins)}
    assert found["tie"] == tie and f"tie {tie:.4g}: of {len(margins)} pairs" in said
    for row in lines(tmp_path / "out" / "records.jsonl"):
        sound = [response for response in row["responses"] if not response["flags"]]
        for one, other in itertools.combinations(sound, 2):
            assert one["rank"] != other["rank"] or len(sound) > 2 or abs(one["reward"] - other["reward"]) < tie


@pytest.mark.long
def test_a_critic_that_people_do_not_agree_with_has_no_tie(arguments, scenes, tmp_path):
    message = refused("annotate", *arguments, "--out", tmp_path / "out", "--calibrate", scenes["ranked"])
    assert "give --tie, more pairs, or a better critic" in message
    assert not (tmp_path / "out" / "scores.jsonl").exists()  # it is known before the answers are judged


@pytest.mark.long
def test_prompts_of_benchmarks_are_left_out_and_counted(arguments, scenes, tmp_path):
    pytest.importorskip("imagehash")
    pytest.importorskip("datasketch")
    rows, folder = lines(scenes["prompts"]), scenes["prompts"].parent
    near = io.BytesIO()
    picture = Image.open(folder / rows[3]["images"][0]).convert("RGB")
    picture.resize((picture.width - 6, picture.height - 6)).save(near, "JPEG", quality=92)
    (tmp_path / "near.jpg").write_bytes(near.getvalue())
    (tmp_path / "same.png").write_bytes((folder / rows[1]["images"][0]).read_bytes())
    benchmark = tmp_path / "benchmark.jsonl"
    asked = [{"id": "x", "images": ["same.png"], "prompt": rows[1]["prompt"]}]
    asked += [{"id": "y", "images": ["near.jpg"], "prompt": rows[3]["prompt"]}]
    benchmark.write_text("".join(json.dumps(row) + "\n" for row in asked))
    said = command("annotate", *arguments, "--out", tmp_path / "out", "--held-out-of", benchmark)
    assert f"held out of {benchmark}: 2 records" in said and "no benchmark is held out" not in said
    assert [row["id"] for row in lines(tmp_path / "out" / "records.jsonl")] == [rows[i]["id"] for i in (0, 2, 4)]
    result = json.loads((tmp_path / "out" / "job.json").read_text())["results"]
    assert result["held out"] == {"exact": 1, "near": 1, "by benchmark": {str(benchmark): 2}}


def test_a_missing_library_is_named(arguments, scenes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    message = refused("annotate", *arguments, "--out", tmp_path / "out", "--held-out-of", scenes["ranked"])
    assert 'datasketch is not installed; pip install "mmrlhf-jax[grow]"' in message


def test_the_best_of_n_are_kept(out, scenes, critic, tmp_path):
    rest = ["--critic", critic, "--data", scenes["prompts"], "--max-critique-tokens", 16, "--reuse", out]
    command("best-of-n", *rest, "--out", tmp_path / "best", "--keep", 1)
    for best, row in zip(lines(tmp_path / "best" / "records.jsonl"), lines(out / "records.jsonl"), strict=True):
        (kept,) = best["responses"]
        sound = [response for response in row["responses"] if not response["flags"]]
        assert kept["rank"] == 1 and kept["reward"] == max(response["reward"] for response in sound)
    command("best-of-n", *rest, "--out", tmp_path / "two", "--keep", 2)
    for best, row in zip(lines(tmp_path / "two" / "records.jsonl"), lines(out / "records.jsonl"), strict=True):
        rewards = sorted((response["reward"] for response in row["responses"] if not response["flags"]), reverse=True)
        assert sorted((response["reward"] for response in best["responses"]), reverse=True) == rewards[:2]
    command("best-of-n", *rest, "--out", tmp_path / "all", "--keep", 5)
    fewer = sum(len(row["responses"]) < 5 for row in lines(tmp_path / "all" / "records.jsonl"))
    counted = json.loads((tmp_path / "all" / "job.json").read_text())["results"]
    assert counted.get("fewer sound answers than --keep", 0) == fewer > 0
    assert "more than --samples" in refused("best-of-n", *rest[:4], "--policy", critic, "--out", tmp_path / "x", "--keep", 9)
