"""A run is of one model, and a server is needed only where something is left to be answered."""

from __future__ import annotations

import json

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.jobs import Share
from mmrlhf_jax.suite.benchmarks import Wanted, evaluate_against
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness.source import Options
from mmrlhf_jax.suite.judges.assignment import JudgeAssignment
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.model import Loading, Model
from tests import tiny
from tests.suite.support.going_on import PLAIN, policy


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


@pytest.mark.long
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


@pytest.mark.long
def test_a_server_is_needed_again_when_something_is_left_to_be_answered(run):
    with policy() as server, policy() as base:
        run(server, "--against", base.url, only=("nsfw_text",))
    with policy() as alive:
        run(server, "--against", base.url, only=("nsfw_text",))
        run(server, only=PLAIN, fails=server.url)
        run(alive, "--against", base.url, fails=base.url)
        assert not alive.asked
