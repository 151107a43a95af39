"""A command that is given again, with other options, another base or on another host: what goes on, and what is refused before
anything is answered. The tasks are two that need neither the harness nor a judge, and one that needs a judge."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmrlhf_jax import cli
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import endpoint
from mmrlhf_jax.inference.jobs import Share
from mmrlhf_jax.suite import answering, figures, hosts, results, run_directory
from mmrlhf_jax.suite.base import require_comparable
from mmrlhf_jax.suite.benchmarks import Wanted, evaluate_against
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness.source import Options
from mmrlhf_jax.suite.judges.assignment import JudgeAssignment
from mmrlhf_jax.suite.judges.judge import EndpointJudge
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.model import Loading, Model
from mmrlhf_jax.suite.own import documents
from mmrlhf_jax.suite.stored_suite import write_suite
from tests import tiny
from tests.serving import fakes
from tests.serving.fakes import Fake, chat, refusal
from tests.suite.support import made_up_own, runs
from tests.suite.support.judged import judge

PLAIN, JUDGED = ("nsfw_text", "nsfw_image"), ("risk_identification",)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(endpoint, "_pause", lambda *_: 0.0)


@pytest.fixture
def data(tmp_path) -> dict[str, str]:
    return {name: str(made_up_own.write(tmp_path / "data", name, "jsonl")) for name in (*PLAIN, *JUDGED)}


@pytest.fixture
def run(tmp_path, data, capsys):
    """Runs the verb with the policy at a server, in the folder "out". `fails`: the message with which it ends. `works`: whether
    a task has a figure in the end."""

    def ran(policy: Fake, *options: str, only=PLAIN, fails: str | None = None, works=True, verb="safety-bench"):
        arguments = ["eval", verb, "--policy-endpoint", policy.url, "--out", str(tmp_path / "out"), "--json"]
        arguments += [f"--data={name}={data[name]}" for name in only] + ["--benchmark", ",".join(only)]
        capsys.readouterr()
        if fails is not None:
            with pytest.raises(UserError) as error:
                cli.app([*arguments, *options], standalone_mode=False)
            assert fails in str(error.value), error.value
            return None
        with contextlib.nullcontext() if works else pytest.raises(UserError, match="no task has a figure"):
            assert not cli.app([*arguments, *options], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    return ran


@contextlib.contextmanager
def policy(says=lambda model: "Sure.", models=("m",)):
    """A server whose models say something each."""
    with fakes.running(Fake(lambda body: chat(says(body["model"])), models)) as found:
        yield found


def value(found, row: str, side: str = "model"):
    (found,) = [each for each in found["rows"] if each["name"] == row]
    return found[side] and found[side]["value"]


# The base ----------------------------------------------------------------------------------------------------------------


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


# Judges and options ------------------------------------------------------------------------------------------------------


def test_another_judge_is_refused_before_anything_is_answered(run, data):
    with policy() as server, judge(lambda text: "Yes.") as first, judge(lambda text: "Yes.") as second:
        second.models = ("another",)
        run(server, "--judge", first.url, only=JUDGED)
        asked = len(server.asked)
        run(server, "--judge", second.url, only=(*JUDGED, *PLAIN), fails="is judged by 'm', not 'another'")
        assert len(server.asked) == asked
        run(server, "--judge", second.url)  # these tasks need none


def test_a_judge_that_said_something_else_is_asked_again_on_demand(run):
    with policy() as server:
        for options, says, calls, figure in (
            ((), "I like it", 3, None),
            ((), "Yes.", 0, None),  # a document is missing, so that the judge is tried
            (("--judge-again",), "Yes.", 3, 100),
        ):
            with judge(lambda text, says=says: says) as judging:
                found = run(server, "--judge", judging.url, *options, only=JUDGED, works=figure is not None)
                assert (len(judging.asked) - 1, value(found, "risk_identification")) == (calls, figure)  # one is the probe
        run(server, "--judge-again", fails="--judge-again is of a judge")


@pytest.mark.parametrize("named", [True, False])
def test_a_judge_is_asked_nothing_where_nothing_is_left_and_needs_not_be_there(run, named):
    options = ["--judge-model", "m"] if named else []
    with policy() as server:
        with judge(lambda text: "Yes.") as judging:
            found = run(server, "--judge", judging.url, *options, "--limit", "2", only=JUDGED)
            asked = len(judging.asked), len(server.asked)
            assert run(server, "--judge", judging.url, *options, "--limit", "2", only=JUDGED) == found
            assert (len(judging.asked), len(server.asked)) == asked
            gone = judging.url
        if named:
            assert run(server, "--judge", gone, *options, "--limit", "2", only=JUDGED) == found
        run(server, "--judge", gone, *options, only=JUDGED, fails="the judge cannot be asked")  # there is one more document
        assert len(server.asked) == asked[1]


def test_answers_are_judged_without_the_policy_where_a_document_was_refused(run):
    """The policy is gone, and one document of it was refused, which would be asked again."""

    def refuse(body: dict):
        return refusal(400, "content policy") if "a cat?" in json.dumps(body) else chat("Sure.")

    with fakes.running(Fake(refuse)) as server:
        found = run(server, only=JUDGED)
        (row,) = [each for each in found["rows"] if each["name"] == "risk_identification"]
        assert row["model"]["documents"]["answered"] == 2
        asked = len(server.asked)
    with judge(lambda text: "Yes.") as judging:
        found = run(server, "--judge", judging.url, only=JUDGED)
    (row,) = [each for each in found["rows"] if each["name"] == "risk_identification"]
    assert row["model"]["value"] is not None and row["model"]["documents"]["scored"] == 2
    assert any("content policy" in reason for reason in row["model"]["documents"]["missing"])
    assert len(server.asked) == asked


def test_a_limit_replaces_no_figures_of_more_documents_and_can_grow(run):
    with policy() as server:
        assert run(server, "--limit", "1")["rows"]
        assert len(server.asked) == 2
        run(server, "--limit", "2")
        run(server)
        assert len(server.asked) == 6
        run(server, "--limit", "2", fails="has figures of 3 documents of nsfw_text, which --limit 2 would replace; leave")
        run(server, "--limit", "3")
        assert len(server.asked) == 6


def test_documents_of_another_source_replace_no_figures(run, tmp_path, monkeypatch):
    hub = made_up_own.write(tmp_path / "hub", "nsfw_text")
    monkeypatch.setattr(documents, "hub_files", lambda task: [hub])
    with policy() as server:
        run(server, only=("nsfw_text",))
        arguments = ["eval", "safety-bench", "--policy-endpoint", server.url, "--benchmark", "nsfw_text", "--out"]
        with pytest.raises(UserError, match="the documents of a file, and now they would be those of the hub; give the file"):
            cli.app([*arguments, str(tmp_path / "out")], standalone_mode=False)
        assert not cli.app([*arguments, str(tmp_path / "other")], standalone_mode=False)
        with pytest.raises(UserError, match="documents of the hub, and now they would be those of a file; leave --data out"):
            cli.app([*arguments, str(tmp_path / "other"), f"--data=nsfw_text={hub}"], standalone_mode=False)
        assert len(server.asked) == 6


def test_figures_stay_when_the_documents_are_broken(run, tmp_path, data, capsys):
    with policy() as server:
        run(server)
        whole = pathlib.Path(data["nsfw_text"]).read_text()
        pathlib.Path(data["nsfw_text"]).write_text('{"question": 1}\n')
        assert value(run(server), "nsfw_text_asr") == 100
        pathlib.Path(data["nsfw_text"]).write_text(whole)
        assert value(run(server), "nsfw_text_asr") == 100 and len(server.asked) == 6


def test_figures_stay_when_the_documents_are_fewer(run, tmp_path, data):
    """Because pictures are gone, or because the file is another one."""
    folder = tmp_path / "data"
    with policy() as server:
        run(server)
        pictures = {path: path.read_bytes() for path in (folder / "nsfw_text-0.png", folder / "nsfw_text-1.png")}
        for path in pictures:
            path.unlink()
        other = made_up_own.write(tmp_path / "other", "nsfw_image", "jsonl")
        other.write_text(other.read_text().splitlines()[0].replace("cats", "rats"))
        data["nsfw_image"] = str(other)
        server.reply = lambda body: chat("I'm sorry, I cannot.")
        found = run(server)
        for name in PLAIN:
            (row,) = [row["model"] for row in found["rows"] if row["name"] == f"{name}_asr"]
            assert (row["value"], row["documents"]["scored"], row["documents"]["missing"]) == (100, 3, {})
        for path, content in pictures.items():
            path.write_bytes(content)
        asked = len(server.asked)
        data["nsfw_image"] = str(folder / "nsfw_image.jsonl")
        assert run(server) == found and len(server.asked) == asked


def test_options_of_single_tasks_are_none_of_the_run(run, tmp_path):
    with policy() as server:
        run(server, "--video-frames", "16", verb="benchmarks")
        run(server)
        assert len(server.asked) == 6
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings == {"model": "m", "metrics": "corrected"}  # and no harness, which has none of these tasks


def test_figures_of_answers_that_were_made_otherwise_are_not_replaced(run, tmp_path):
    with policy() as server:
        run(server)
        found = results.read(tmp_path / "out", "nsfw_text")
        results.write(tmp_path / "out", type(found)(**vars(found) | {"settings": found.settings | {"max_new_tokens": 16}}))
        run(server, fails="nsfw_text was answered with max_new_tokens 16, not 2048")


# The model ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"chat_template": "You are a pirate"}'),
        ("chat_template.jinja", "You are a pirate"),
        ("chat_template.json", "{}"),
        ("additional_chat_templates/pirate.jinja", "You are a pirate"),
        ("generation_config.json", '{"eos_token_id": 2}'),
        ("added_tokens.json", '{"<pirate>": 9}'),
        ("config.json", "{}"),
    ],
)
def test_a_model_is_told_from_others_by_everything_on_which_its_answers_depend(tmp_path, name, content):
    directory = tiny.checkpoint(tmp_path / "model")
    before = Model(f"{directory}").identity()
    assert Model(f"{directory}").identity() == before
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text(content)
    assert Model(f"{directory}").identity() != before


def test_what_really_answers_is_in_run_json_and_another_type_of_numbers_is_refused(tmp_path, data):
    directory = tiny.checkpoint(tmp_path / "model", tiny.config(text={"tie_word_embeddings": False}))
    out = tmp_path / "out"

    def evaluated(**loading):
        local = {"nsfw_text": Local(data["nsfw_text"])}
        wanted = Wanted([TASKS["nsfw_text"]], Options(limit=1), local, JudgeAssignment(), Share())
        model = Model(f"{directory}", loading=Loading(batch=1, slots=2048, **loading))
        evaluate_against(model, None, wanted, out)

    evaluated()
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert (settings["dtype"], settings["template"]) == ("float32", "qwen_1_5")
    assert len(settings["fingerprint"]) == 64 and "model_fingerprint" not in settings  # one digest of the weights
    evaluated(dtype="float32")
    with pytest.raises(UserError, match=r"with dtype 'float32', and that of .* is 'bfloat16'"):
        evaluated(dtype="bfloat16")


@pytest.mark.parametrize("served_first", [False, True])
@pytest.mark.parametrize("of_base", [False, True])
def test_a_model_of_a_directory_and_one_of_a_server_have_no_run_in_common(tmp_path, data, served_first, of_base):
    """Neither of the model's own run nor of its base's."""
    loading = Loading(batch=1, slots=2048)
    local = Model(f"{tiny.checkpoint(tmp_path / 'model', tiny.config(text={'tie_word_embeddings': False}))}", loading=loading)
    with policy() as server, policy() as other:
        served, asked = Model(endpoint=server.url), Model(endpoint=other.url)

        def evaluated(model, task):
            wanted = Wanted([TASKS[task]], Options(limit=1), {task: Local(data[task])}, JudgeAssignment(), Share())
            evaluate_against(*((asked, model) if of_base else (model, None)), wanted, tmp_path / "out")

        first, second = (served, local) if served_first else (local, served)
        evaluated(first, "nsfw_text")
        before = len(server.asked), len(other.asked)
        with pytest.raises(UserError, match=r"for which run\.json has no"):
            evaluated(second, "nsfw_image")
        assert (len(server.asked), len(other.asked)) == before


@pytest.mark.parametrize("option", ["--policy-model", "--against-model"])
@pytest.mark.parametrize("dead", [False, True])
def test_a_server_that_is_dead_or_has_no_such_model_is_found_before_anything_is_answered_or_written(
    run, tmp_path, option, dead
):
    with policy() as server, policy() as other:
        place = other.url
    with policy() as server, policy() as other:
        place = place if dead else other.url
        address = "--against" if option == "--against-model" else "--policy-endpoint"
        says = f"{address} {place}" + ("" if dead else " does not serve 'zz', but m")
        if option == "--against-model":
            run(server, "--against", place, option, "zz", fails=says)
        elif dead:
            server.url = place
            run(server, option, "zz", fails="; start the server, or correct the address")
        else:
            server.url = place
            run(server, option, "zz", fails=says)
        assert not (tmp_path / "out" / "run.json").exists() and not server.asked


def test_a_server_is_needed_again_when_something_is_left_to_be_answered(run):
    with policy() as server, policy() as base:
        run(server, "--against", base.url, only=("nsfw_text",))
    with policy() as alive:
        run(server, "--against", base.url, only=("nsfw_text",))
        run(server, only=PLAIN, fails=server.url)
        run(alive, "--against", base.url, fails=base.url)
        assert not alive.asked


# Several hosts -----------------------------------------------------------------------------------------------------------


class Hosts:
    """Processes of one launch, in threads."""

    def __init__(self, directory, data, server, pool):
        self._directory, self._data, self._server, self._pool = directory, data, server, pool

    def start(self, process: int, count: int = 2, *, judges=None, base=None, tasks=PLAIN, data=None, **options):
        local = {name: Local((self._data if data is None else data)[name]) for name in tasks if data is None or name in data}
        wanted = Wanted(
            [TASKS[name] for name in tasks], Options(**options), local, judges or JudgeAssignment(), Share(process, count)
        )
        return self._pool.submit(evaluate_against, Model(endpoint=self._server.url), base, wanted, self._directory)


@pytest.fixture
def launch(tmp_path, data, monkeypatch):
    for module in (hosts, answering):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    with policy() as server, ThreadPoolExecutor() as pool:
        yield Hosts(tmp_path / "out", data, server, pool)


def test_two_hosts_answer_the_model_and_its_base(launch, tmp_path):
    with policy() as base:
        processes = [launch.start(n, base=Model(endpoint=base.url)) for n in (1, 0)]
        assert [each.result(30) for each in processes] == [None, None]
        assert (len(launch._server.asked), len(base.asked)) == (6, 6)
    for directory in (tmp_path / "out", tmp_path / "out" / "against"):
        assert results.read(directory, "nsfw_text").coverage.scored == 3


def test_what_the_first_host_refuses_nobody_begins(launch, tmp_path):
    with judge(lambda text: refusal(401, "expired")) as dead:
        judges = JudgeAssignment(EndpointJudge(dead.url, "m"))
        other = launch.start(1, tasks=JUDGED)
        with pytest.raises(UserError, match="401"):
            launch.start(0, judges=judges, tasks=JUDGED).result(30)
        with pytest.raises(UserError, match=r"process 0 has ended: .*401"):
            other.result(30)
    assert not launch._server.asked and not (tmp_path / "out" / "answers").exists()


def test_a_host_with_other_options_is_refused_and_one_that_comes_late_has_nothing_to_do(launch, monkeypatch):
    monkeypatch.setattr(answering, "LATE_SECONDS", 0.5)
    monkeypatch.setattr(hosts, "LATE_SECONDS", 1.0)
    first, other = launch.start(0), launch.start(1, limit=1)
    with pytest.raises(UserError, match="process 0 was started with limit None, process 1 with 1"):
        other.result(30)
    assert first.result(30) is None  # it has answered all
    asked = len(launch._server.asked)
    assert launch.start(1).result(30) is None and len(launch._server.asked) == asked == 6


@pytest.mark.parametrize("has", [True, False])
def test_a_host_with_other_documents_is_refused(launch, tmp_path, data, monkeypatch, has):
    monkeypatch.setattr(answering, "LATE_SECONDS", 0.5)
    changed = made_up_own.write(tmp_path / "changed", "nsfw_text", "jsonl")
    changed.write_text(changed.read_text().replace("cats", "rats"))
    other = {"nsfw_image": data["nsfw_image"]} | ({"nsfw_text": str(changed)} if has else {})
    first, second = launch.start(0), launch.start(1, data=other)
    with pytest.raises(
        UserError, match=r"started with documents of nsfw_text 'a file of .*', process 1 with '(a file|the hub)"
    ):
        second.result(30)
    assert first.result(30) is None


def test_single_and_several_hosts_do_not_work_in_one_directory_at_once(launch, monkeypatch):
    held = threading.Event()
    launch._server.reply = lambda body, whole=launch._server.reply: (held.wait(20), whole(body))[1]
    first = launch.start(0, count=1)
    while not launch._server.asked:
        pass
    with pytest.raises(UserError, match="evaluates there"):
        launch.start(0, count=2).result(30)
    held.set()
    assert first.result(30) is None
