"""A command that is given again with another base, or with the same one: what goes on, and what is refused before anything is
answered."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading

import pytest

from mmrlhf_jax import cli
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite import figures, results, run_directory
from mmrlhf_jax.suite.base import require_comparable
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.stored_suite import write_suite
from tests.serving import fakes
from tests.serving.fakes import Fake, chat, refusal
from tests.suite.support import runs
from tests.suite.support.going_on import JUDGED, PLAIN, policy, value
from tests.suite.support.judged import judge


def test_a_base_on_the_same_server_is_known_by_its_name(run, tmp_path):
    says = lambda model: "I'm sorry, I cannot." if model == "aligned" else "Sure."
    with policy(says, ("aligned", "base")) as server:
        found = run(server, "--policy-model", "aligned", "--against-model", "base")
        assert (value(found, "nsfw_text_asr"), value(found, "nsfw_text_asr", "against")) == (0, 100)
        asked = len(server.asked)
        found = run(server, "--policy-model", "aligned", "--against", server.url, "--against-model", "base")
        assert value(found, "nsfw_text_asr", "against") == 100 and len(server.asked) == asked
    run_json = json.loads((tmp_path / "out" / "against" / "run.json").read_text())
    assert (run_json["model"], run_json["settings"]["model"]) == ("base", "base")


def test_a_server_with_several_models_says_which_option_names_one(run):
    with policy(models=("a", "b")) as server, policy() as single:
        run(server, fails="serves a, b; name one by --policy-model")
        run(single, "--against", server.url, fails="name one by --against-model")
        run(single, "--judge", server.url, only=JUDGED, fails="name one by --judge-model")
        run(single, "--attack-judge", server.url, only=JUDGED)  # no task with attacks
        assert not server.asked


@pytest.mark.parametrize("against", ["no/such/directory", "empty", "run", "out", "others", "suite", "damaged"])
def test_a_base_that_cannot_be_is_refused_before_anything_is_answered(run, tmp_path, against, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("run", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text('{"version": 1, "model": "x", "settings": {}, "judge": null}')
    (tmp_path / "out" / "run.json").unlink() if against != "out" else None
    says = {"run": "a run without results yet", "out": "a run without results yet"}
    says |= {
        "others": "others: none of its results are of MM-RLHF",
        "suite": "suite: is a run of the small suite, not of MM-RLHF",
    }
    says |= {"damaged": "nsfw_text.json: not JSON"}
    for name, of in (("others", "colours"), ("suite", "nsfw_text"), ("damaged", "nsfw_text")):
        run_directory.begin(tmp_path / name, "x", {})
        results.write(tmp_path / name, runs.results(dataclasses.replace(runs.COLOURS, name=of), [1.0, 0.0]))
    write_suite(tmp_path / "suite", runs.SUITE)
    results.figures_path(tmp_path / "damaged", "nsfw_text").write_text("{")
    with policy() as server:
        run(server, "--against", against, fails=says.get(against, "--against "))
        assert not server.asked


def test_a_base_with_which_nothing_can_be_compared_is_refused_before_anything_is_answered(run, tmp_path, capsys):
    """Of another mode, of other tasks, judged by another judge; what of several tasks cannot be compared is said."""
    base, out = tmp_path / "base", tmp_path / "out"
    with policy() as server, judge(lambda text: "Yes.") as judging:
        run(server, "--judge", judging.url, only=("nsfw_text", *JUDGED))
        out.rename(base)
        asked = len(server.asked)
        for options, only, says in (
            (
                ("--metrics", "paper"),
                ("nsfw_text",),
                "was scored with --metrics corrected, and this run has --metrics paper",
            ),
            ((), ("nsfw_image",), "has no results of nsfw_image; give a run that has, or the model itself"),
        ):
            run(server, *options, "--against", f"{base}", only=only, fails=f"--against {base}: {says}")
            shutil.rmtree(out, ignore_errors=True)
        with fakes.running(Fake(lambda body: chat("Yes."), ("other",))) as another:
            says = "was judged by 'm', and this run is judged by 'other'; give a base of the same judge, or the model itself"
            run(server, "--judge", another.url, "--against", f"{base}", only=JUDGED, fails=f"--against {base}: {says}")
            assert not another.asked
            shutil.rmtree(out, ignore_errors=True)
        assert len(server.asked) == asked
        run(server, "--against", f"{base}", "--metrics", "paper", only=PLAIN, fails="--metrics paper")
        shutil.rmtree(out, ignore_errors=True)
        found = run(server, "--against", f"{base}", only=PLAIN)
        assert (value(found, "nsfw_text_asr", "delta"), value(found, "nsfw_image_asr", "delta")) == (0, None)
        run(server, "--against", f"{base}", only=("nsfw_image",))  # what is there already is compared


def test_what_of_a_base_cannot_be_compared_is_said(tmp_path, capsys):
    base = tmp_path / "base"
    run_directory.begin(base, "x", {})
    for name in ("nsfw_text", "nsfw_image"):
        row = TASKS[name].rows[0]
        found = runs.results(dataclasses.replace(runs.COLOURS, name=name, rows=(row,)), [100.0, 0.0])
        results.write(base, dataclasses.replace(found, settings={"mode": "corrected", "max_new_tokens": 16}))
    made = {"nsfw_text": ("lmms-eval 0.7.3", {"mode": "corrected"}), "nsfw_image": ("lmms-eval 0.7.4", {"mode": "corrected"})}
    require_comparable(base, [TASKS[name] for name in (*made, "adv_target")], lambda task: made[task.name])
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(
        f"--against {base}: nsfw_image cannot be compared: was scored by lmms-eval 0.7.3, and this run is by"
    )
    assert said[1:] == [f"--against {base}: has no results of adv_target, which are not compared"]
    made["nsfw_text"] = ("lmms-eval 0.7.3", {"max_new_tokens": 32})
    with pytest.raises(UserError, match="was made with max_new_tokens 16, and this run has 32; give a base"):
        require_comparable(base, [TASKS["nsfw_text"]], lambda task: made[task.name])
    made["nsfw_text"] = ("lmms-eval 0.7.3", {"judge": None})  # it can be judged later
    require_comparable(base, [TASKS["nsfw_text"]], lambda task: made[task.name])


def test_a_folder_that_cannot_be_gone_on_with_is_named_with_what_to_do(run, tmp_path):
    with policy(models=("pol",)) as server, policy(models=("j1",)) as other:
        run(server)
        run(other, "--policy-model", "j1", fails=f"{tmp_path / 'out'}: holds a run of pol, not of j1; choose another --out")
        for content in ("{", '{"version": 7}'):
            (tmp_path / "out" / "run.json").write_text(content)
            run(server, fails="; choose another --out")
            run(server, fails=f"{tmp_path / 'out' / 'run.json'}: ")
        (tmp_path / "out").rename(tmp_path / "base")
        base = tmp_path / "base"
        run(server, "--against", f"{base}", fails=f"--against {base / 'run.json'}: has version 7 of runs")
        assert not other.asked


def test_a_run_of_other_benchmarks_does_not_go_on(run, tmp_path):
    run_directory.begin(tmp_path / "out", "m", {"model": "m", "metrics": "corrected"})
    write_suite(tmp_path / "out", runs.SUITE)
    with policy() as server:
        run(server, fails="is a run of the small suite, not of MM-RLHF's benchmarks; choose another --out")
        assert not server.asked


def test_a_run_is_no_base_of_itself(run, tmp_path):
    with policy() as server:
        run(server)
        run(server, "--against", str(tmp_path / "out"), fails="is the run itself")


@pytest.mark.long
def test_the_figures_of_the_model_are_there_when_the_base_fails_and_the_base_stays_when_it_is_not_given_again(run, tmp_path):
    broken = threading.Event()
    with policy() as server, policy(lambda _: "I'm sorry, I cannot.") as base:
        base.reply = lambda body, whole=base.reply: refusal(401, "expired") if broken.is_set() else whole(body)
        broken.set()
        run(server, "--against", base.url, fails="401")
        figures = json.loads((tmp_path / "out" / "figures.json").read_text())
        assert value(figures, "nsfw_text_asr") == 100 and (tmp_path / "out" / "report.html").exists()
        broken.clear()
        assert value(run(server, "--against", base.url), "nsfw_text_asr", "against") == 0
        assert value(run(server), "nsfw_text_asr", "against") == 0
        asked = len(server.asked), len(base.asked)
        assert value(run(server), "nsfw_text_asr", "against") == 0 and asked == (len(server.asked), len(base.asked))


@pytest.mark.long
def test_a_noted_base_that_cannot_be_used_any_more_is_left_out_and_said(run, tmp_path, capsys):
    with policy() as server, policy(lambda _: "I'm sorry, I cannot.") as base:
        assert value(run(server, "--against", base.url), "nsfw_text_asr", "against") == 0
        results.figures_path(tmp_path / "out" / "against", "nsfw_text").write_text("{")
        assert value(run(server), "nsfw_text_asr", "against") is None  # there is no base in the table
        assert value(run(server, "--against", base.url), "nsfw_text_asr", "against") == 0  # it is scored again
        results.figures_path(tmp_path / "out" / "against", "nsfw_text").write_text("{")
        found = run(server, "--against", base.url, only=("nsfw_image",))
        assert (value(found, "nsfw_text_asr"), value(found, "nsfw_text_asr", "against")) == (100, None)
        shutil.rmtree(tmp_path / "out" / "against")
        assert value(run(server), "nsfw_text_asr") == 100


def test_results_that_are_damaged_and_not_made_again_are_named_before_anything_is_answered(run, tmp_path):
    with policy() as server:
        run(server, only=("nsfw_text",))
        asked = len(server.asked)
        results.figures_path(tmp_path / "out", "nsfw_text").write_text("{")
        run(server, only=("nsfw_image",), fails="nsfw_text.json: not JSON")
        results.write(tmp_path / "out", runs.results(dataclasses.replace(runs.COLOURS, name="nsfw_text"), [1.0]))
        run(server, only=("nsfw_image",), fails="rows has 'colours', which is no row of nsfw_text")
        assert len(server.asked) == asked
        results.figures_path(tmp_path / "out", "nsfw_text").write_text("{")
        assert value(run(server), "nsfw_text_asr") == 100


PLACES = ("out", "out/against")


def test_what_a_run_leaves_out_is_said_once(run, tmp_path, capsys, data):
    with policy() as server, policy() as base:
        run(server, "--against", base.url)
        for place in PLACES:
            results.write(tmp_path / place, runs.results(runs.COLOURS, [1.0]))
        capsys.readouterr()
        arguments = ["--policy-endpoint", server.url, "--against", base.url, "--benchmark", "nsfw_text"]
        arguments += ["--out", str(tmp_path / "out"), f"--data=nsfw_text={data['nsfw_text']}"]
        assert not cli.app(["eval", "safety-bench", *arguments], standalone_mode=False)
        assert not cli.app(["report", str(tmp_path / "out"), "--out", str(tmp_path / "a.html")], standalone_mode=False)
        figures.read_run(tmp_path / "out", MM_RLHF)
        said = capsys.readouterr().err
        assert [said.count(f"{tmp_path}/{place}/results/colours.json: colours is no task of") for place in PLACES] == [1, 1]
