"""`mmrlhf eval safety-bench`, with a policy and judges behind servers of this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmrlhf_jax import cli
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import endpoint
from mmrlhf_jax.suite import catalogue
from mmrlhf_jax.suite.judges.judging import GONE, NO_JUDGE_OF_ATTACKS
from mmrlhf_jax.suite.own.registry import JAILBREAKS
from tests.serving.fakes import refusal
from tests.suite.support import made_up_own
from tests.suite.support.judged import judge, text_of

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
TASKS = [task.name for each in catalogue.SAFETY for task in each.tasks]
ROWS = [row.name for each in catalogue.SAFETY for row in each.rows]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(endpoint, "_pause", lambda *_: 0.0)


def data(folder, tasks=TASKS) -> list[str]:
    """Options with local documents."""
    return [f"--data={name}={made_up_own.write(folder / 'data', name, 'jsonl')}" for name in tasks]


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the verb with the policy at a server, and gives what is printed as JSON. `only`: the tasks; `fails`: the message
    with which it ends."""

    def ran(policy, *options: str, only=TASKS, fails: str | None = None):
        arguments = ["eval", "safety-bench", "--policy-endpoint", policy.url, "--out", str(tmp_path / "out"), "--json"]
        arguments += data(tmp_path, only) + ([] if only is TASKS else ["--benchmark", ",".join(only)])
        capsys.readouterr()
        try:
            status = cli.app([*arguments, *options], standalone_mode=False) or 0
        except Exception as error:  # what `main` prints
            assert fails is not None and fails in str(error), error
            return None
        assert fails is None and status == 0
        return json.loads(capsys.readouterr().out)

    return ran


def policy_says(text: str) -> str:
    return "I'm sorry, I cannot help." if "dog" in text else "Sure, a cat."


def judge_says(text: str) -> str:
    """Attacks succeed where the answer begins with "Sure"; nothing is noise; everything else is as it should be."""
    if "red teaming" in text or "Generation:" in text:
        return "yes" if "Generation:\nSure" in text else "no"
    return "No." if "low image quality" in text else "Yes."


def rows_of(found) -> dict[str, float | None]:
    return {row["name"]: row["model"]["value"] for row in found["rows"] if row["name"] in ROWS}


# Two of three documents are answered with "Sure".
EXPECTED = {
    "adv_target": 100, "adv_untarget": 100, "crossmodel_asr": 66.667, "crossmodel_rta": 33.333, "multimodel_asr": 66.667,
    "multimodel_rta": 33.333, "typographic_asr": 66.667, "typographic_rta": 33.333, "risk_identification": 100,
    "nsfw_text_asr": 66.667, "nsfw_image_asr": 66.667,
}  # fmt: skip


@pytest.mark.long
def test_eight_tasks_are_answered_once_and_have_eleven_figures(run, tmp_path):
    with judge(policy_says) as policy, judge(judge_says) as judged:
        found = run(policy, "--judge", judged.url)
        assert rows_of(found) == pytest.approx(EXPECTED, abs=1e-3)
        assert len(policy.asked) == 24  # ASR and RtA are of the same answers
        asked = len(judged.asked)
        # The probe; the labels of two tasks, and whether there is noise, of two different answers; jailbreaks; risks.
        assert asked == 1 + 2 * (3 + 2) + 9 + 3
        assert run(policy, "--judge", judged.url) == found
        assert len(policy.asked) == 24 and len(judged.asked) == asked + 1  # the probe, since the data are of another time
    lines = (tmp_path / "out" / "verdicts" / "typographic.jsonl").read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[0])["judge"] == "m"
    stored = json.loads((tmp_path / "out" / "run.json").read_text())
    assert stored["settings"]["metrics"] == "corrected" and stored["judge"] == "m"


@pytest.mark.long
def test_the_classifier_judges_attacks_alone_and_by_its_own_prompt(run):
    with judge(policy_says) as policy, judge(judge_says) as judged, judge(judge_says) as classifier:
        options = ["--judge", judged.url, "--attack-judge", classifier.url, "--attack-classifier"]
        assert rows_of(run(policy, *options)) == pytest.approx(EXPECTED, abs=1e-3)
    assert all(body["prompt"].startswith("[INST] <<SYS>>") and body["max_tokens"] == 1 for body in classifier.asked)
    assert len(classifier.asked) == 1 + 9 and len(judged.asked) == 1 + 10 + 3
    assert not any("Generation:" in text_of(body) for body in judged.asked)


def test_a_command_in_which_nothing_worked_fails(run, tmp_path, capsys):
    with judge(policy_says) as policy:
        run(policy, only=["typographic"])  # nobody judges, and the answers are kept
        for picture in made_up_own.write(tmp_path / "data", "nsfw_text", "jsonl").parent.glob("nsfw_text-*.png"):
            picture.write_bytes(b"no picture")
        arguments = ["safety-bench", "--policy-endpoint", policy.url, "--out", f"{tmp_path / 'failed'}"]
        arguments += ["--benchmark", "nsfw_text", f"--data=nsfw_text={tmp_path / 'data' / 'nsfw_text.jsonl'}"]
        with pytest.raises(UserError, match="no task has a figure; the reasons are above") as error:
            cli.app(["eval", *arguments], standalone_mode=False)
        assert error.value.status == 1
        said = capsys.readouterr()
        assert "no figure of NSFW" in said.out and (tmp_path / "failed" / "report.html").exists()
        with pytest.raises(UserError):
            cli.app(["eval", *arguments, "--benchmark", "typographic", *data(tmp_path, ["typographic"])], standalone_mode=False)


def test_the_modes_are_never_in_one_directory(run):
    with judge(policy_says) as policy, judge(judge_says) as judged:
        run(policy, "--judge", judged.url, "--metrics", "paper", only=["nsfw_text"])
        run(policy, "--judge", judged.url, fails="was begun with metrics 'paper', not 'corrected'")


@pytest.mark.long
def test_answers_are_kept_without_a_judge_and_judged_later(run):
    with judge(policy_says) as policy, judge(judge_says) as judged:
        found = rows_of(run(policy))
        assert {name for name, value in found.items() if value is not None} == {"nsfw_text_asr", "nsfw_image_asr"}
        assert rows_of(run(policy, "--judge", judged.url)) == pytest.approx(EXPECTED, abs=1e-3)
        assert len(policy.asked) == 24


@pytest.mark.long
def test_verdicts_count_also_when_no_judge_is_given(run):
    with judge(policy_says) as policy, judge(judge_says) as judged, judge(judge_says) as classifier:
        options = ["--judge", judged.url, "--attack-judge", classifier.url, "--attack-classifier"]
        found = run(policy, *options, only=["typographic", "adv_target"])
        assert run(policy, only=["typographic", "adv_target"]) == found
        run(policy, "--attack-judge", classifier.url, only=["typographic"], fails="was begun with attack_classifier True")


def test_jailbreaks_have_one_judge(run, tmp_path):
    """Also where it comes later, and some of them are judged already by the judge of everything else."""
    with judge(policy_says) as policy, judge(judge_says) as judged, judge(lambda text: "yes") as strict:
        strict.models = ("strict",)
        judges = ["--judge", judged.url, "--attack-judge", strict.url]
        found = run(policy, "--judge", judged.url)
        before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
        asked = len(policy.asked)
        for only in (["crossmodel"], ["typographic", "multimodel"], ["adv_target", "crossmodel"]):
            fails = "is judged by m, and would not be judged again by strict; give --attack-judge to all of crossmodel, multi"
            run(policy, *judges, only=only, fails=fails)
        run(policy, *judges, "--attack-classifier", only=["crossmodel"], fails="again by strict as a classifier")
        assert len(policy.asked) == asked
        kept = {path: path.read_bytes() for path in before if path.parent.name in ("results", "out")}
        assert kept == {path: before[path] for path in kept}
        assert rows_of(run(policy, "--judge", judged.url)) == rows_of(found)
        again = rows_of(run(policy, *judges, only=list(JAILBREAKS)))
        assert {again[f"{name}_asr"] for name in JAILBREAKS} == {100} and again["adv_target"] == 100
        assert rows_of(run(policy, *judges, only=["crossmodel"])) == again  # now it is theirs


def test_who_is_not_given_again_is_named(run):
    with judge(policy_says) as policy, judge(judge_says) as judged, judge(judge_says) as attacks:
        run(policy, "--judge", judged.url, "--attack-judge", attacks.url, only=["crossmodel"])
        found = run(policy, "--judge", judged.url, only=["crossmodel", "multimodel", "risk_identification"])
    (row,) = [row for row in found["rows"] if row["name"] == "multimodel_asr"]
    assert row["model"]["missing"] == NO_JUDGE_OF_ATTACKS
    assert rows_of(found)["crossmodel_asr"] is not None and rows_of(found)["risk_identification"] == 100


@pytest.mark.long
def test_a_judge_that_dies_leaves_the_others_and_is_asked_again(run):
    with judge(policy_says) as policy, judge(judge_says) as judged:
        dies = lambda text: refusal(401, "expired") if "Generation:" in text and "number 2" in text else judge_says(text)
        with judge(dies) as dying:
            options = ["--judge", judged.url, "--attack-judge", dying.url]
            found = run(policy, *options)
        values = rows_of(found)
        assert values["adv_target"] == 100 and values["risk_identification"] == 100 and values["nsfw_image_asr"] is not None
        (row,) = [row for row in found["rows"] if row["name"] == "typographic_asr"]
        assert row["model"]["documents"]["missing"][GONE] >= 1 and row["model"]["documents"]["scored"] < 3
        with judge(judge_says) as alive:
            options[-1] = alive.url
            assert rows_of(run(policy, *options)) == pytest.approx(EXPECTED, abs=1e-3)
        assert len(policy.asked) == 24


@pytest.mark.long
def test_against_a_base_and_every_file_of_the_run_is_named_in_the_docs(run, tmp_path):
    with judge(policy_says) as policy, judge(lambda text: "Sure, a cat.") as base, judge(judge_says) as judged:
        found = run(policy, "--judge", judged.url, "--against", base.url, only=list(JAILBREAKS))
        (row,) = [row for row in found["rows"] if row["name"] == "typographic_rta"]
        assert row["against"]["value"] == 0 and row["delta"]["value"] == pytest.approx(33.333, abs=1e-3)
    table = PAGE.read_text().split("| file of `--out` |")[1].split("\n\n")[0]
    named = {place.split("/")[0] for place in re.findall(r"`([\w./]+)`", table)}
    made = {each.name for each in (tmp_path / "out").iterdir()}
    assert made <= named and {"report.html", "figures.json", "against"} <= made


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--judge-model", "x"], "--judge-model is the name of a model at --judge"),
        (["--attack-judge-model", "x"], "--attack-judge-model is the name of a model at --attack-judge"),
        (["--attack-classifier"], "--attack-classifier: give the address of HarmBench's classifier by --attack-judge"),
        (["--metrics", "fine"], "--metrics fine: choose corrected or paper"),
        (["--benchmark", "mmstar"], "--benchmark mmstar: choose from adv_target"),
        (["--model", "x"], "give one of --model and --policy-endpoint, not both"),
        (["--judge", "localhost"], "not an address"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_asked(options, says, run):
    with judge(policy_says) as policy:
        run(policy, *options, fails=says)
        assert not policy.asked


def test_a_plan_asks_nobody(tmp_path, capsys):
    arguments = ["eval", "safety-bench", "--policy-endpoint", "http://127.0.0.1:9", "--out", str(tmp_path / "out"), "--plan"]
    cli.app([*arguments, *data(tmp_path), "--judge", "http://127.0.0.1:9"], standalone_mode=False)
    assert "8 tasks" in capsys.readouterr().err and not (tmp_path / "out").exists()
