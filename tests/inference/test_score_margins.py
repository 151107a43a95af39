"""`mmrlhf score` ends with what its rewards' margins are worth, whoever wrote the critiques."""

from __future__ import annotations

import io
import itertools
import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from mmrlhf_jax import config
from mmrlhf_jax.cli import app, main
from mmrlhf_jax.commands import score as commands
from mmrlhf_jax.data.margin_summary import scale_of, summarise
from mmrlhf_jax.data.margin_text import NO_PAIRS, lines
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Unavailable
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.jobs import Share
from tests import ranked, tiny
from tests.serving import fakes
from tests.serving.fakes import Fake, chat

RANKS = [(1, 2, 3), (2, 1), (1, 1, 2), (2, 2, 1)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.checkpoint(tmp_path_factory.mktemp("model"), reward_head=True))


def source(directory, ranks=RANKS):
    return str(ranked.write(directory, ranks, [[] for _ in ranks]))


def score(model, data, out, *more):
    result = CliRunner().invoke(app, ["score", "--model", model, "--data", data, "--out", str(out), *more])
    assert result.exception is None, result.exception
    return result.stdout


@pytest.fixture
def rewards_by_rank(monkeypatch):
    """Every response gets a reward that makes margins of `size` for neighbours in rank."""

    def make(size):
        def score_each(engine, examples, indices, *, critique):
            for index in indices:
                record = examples.records[index]
                rewarded = [{**vars(response), "reward": -size * response.rank} for response in record.responses]
                yield index, record.replace_responses([type(record.responses[0])(**fields) for fields in rewarded])

        monkeypatch.setattr(critic, "score_each", score_each)

    return make


OPTIONS = ["--beta", "0.2", "--w", "1", "--k", "median"]


@pytest.mark.long
@pytest.mark.parametrize("how", ["none", "given", "written", "by a server"])
def test_the_report_is_that_of_the_file_and_the_ranks(model, tmp_path, how):
    data = source(tmp_path)
    if how == "by a server":
        with fakes.running(Fake(lambda body: chat("Good."))) as fake:
            shown = score(model, data, tmp_path / "out", "--critic-endpoint", fake.url, *OPTIONS)
    else:
        shown = score(model, data, tmp_path / "out", "--critique", how, "--max-new-tokens", "8", *OPTIONS)
    rewards = [[r["reward"] for r in json.loads(line)["responses"]] for line in (tmp_path / "out").read_text().splitlines()]
    margins = [
        np.asarray([mine[i] - mine[j] for i, j in itertools.product(range(len(ranks)), repeat=2) if ranks[i] < ranks[j]])
        for ranks, mine in zip(RANKS, rewards, strict=True)
    ]
    assert [len(each) for each in margins] == [3, 1, 2, 2]
    objective = config.Preference(beta=0.2, scaling=config.Scaling(w=1.0, k="median"))
    expected = summarise(margins, scale_of(objective, margins, "here"))
    assert f"\nβ(δ) = 0.2 · (1 + 1 · (1 − exp(−{expected['scale']['k']:.4g} · max(δ, 0))))\n" in shown
    assert f"{100 * expected['share_right']:.1f} % of 8 pairs" in shown
    assert sorted(shown.splitlines()) == sorted(lines(expected))


@pytest.mark.parametrize(("size", "warned"), [(15.0, True), (1.4, False)])
def test_margins_like_those_of_an_unbounded_reward_model_are_warned_of(model, tmp_path, rewards_by_rank, size, warned):
    rewards_by_rank(size)
    shown = score(model, source(tmp_path), tmp_path / "out", "--critique", "none")
    assert ("β is a gate, not a scale: for 100.0 % of the pairs" in shown) == warned
    assert f"the median |δ| is {size:g}" in shown


@pytest.mark.parametrize("k", ["0.5", "median"])
def test_data_without_ranks_is_scored_with_one_line_about_it(model, tmp_path, capsys, k):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"id": "a", "prompt": "Which?", "responses": [{"text": "one"}, {"text": "two"}]}) + "\n")
    result = CliRunner().invoke(
        app, ["score", "--model", model, "--data", str(data), "--out", str(tmp_path / "out"), "--critique", "none", "--k", k]
    )
    assert result.exception is None and result.stdout == f"{NO_PAIRS}\n" and "median" not in result.stderr


def test_margins_that_have_no_median_k_are_said_and_reported_without_beta(model, tmp_path, rewards_by_rank):
    rewards_by_rank(-1.0)
    out = tmp_path / "out"
    arguments = ["score", "--model", model, "--data", source(tmp_path), "--out", str(out), "--critique", "none"]
    result = CliRunner().invoke(app, [*arguments, "--k", "median"])
    assert result.exception is None and out.exists()
    assert f"{out}: k: median: none of 8 margins is positive" in result.stderr
    assert "δ agrees with the rank for 0.0 % of 8 pairs; the median |δ| is 1\n" in result.stdout
    assert "calibrated" in result.stdout and "β" not in result.stdout


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize(
    "error", [Unavailable("out: timed out, 6 times"), UserError("data: it has changed"), PermissionError(13, "denied", "out")]
)
def test_a_complete_file_that_cannot_be_read_again_ends_nothing(model, tmp_path, monkeypatch, capsys, process, error):
    data, out = source(tmp_path), tmp_path / "out"
    score(model, data, out, "--critique", "none")

    def fail(*_, **__):
        raise error

    for name in ("rewarded.scored_records", "scores.say_flaws"):
        monkeypatch.setattr(f"mmrlhf_jax.data.{name}", fail)
    commands._report(open_examples(data), out, data, Share(process, 2), config.Preference())
    said = capsys.readouterr()
    assert f"{out} is complete, but could not be read again (" in said.err and said.err.count("\n") == 1 and not said.out
    assert f"`mmrlhf data margins {data} --rewards {out}`" in said.err
    error = LookupError("a fault of the program")
    with pytest.raises(LookupError):
        commands._report(open_examples(data), out, data, Share(process, 2), config.Preference())


def test_an_output_that_lacks_greek_letters_gets_escapes(model, tmp_path, monkeypatch):
    arguments = ["score", "--model", model, "--data", source(tmp_path), "--out", str(tmp_path / "out"), "--critique", "none"]
    monkeypatch.setattr(sys, "argv", ["mmrlhf", *arguments])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written := io.BytesIO(), encoding="latin-1"))
    with pytest.raises(SystemExit) as ended:
        main()
    sys.stdout.flush()
    assert not ended.value.code and "\\u03b2(\\u03b4) = 0.1 · " in written.getvalue().decode("latin-1")


def test_only_the_first_of_several_processes_reports(model, tmp_path, capsys):
    data, out = source(tmp_path), tmp_path / "out"
    score(model, data, out, "--critique", "none")
    examples = open_examples(data)
    for process, reports in ((0, True), (1, False)):
        commands._report(examples, out, data, Share(process, 2), config.Preference())
        assert ("β(δ) = " in capsys.readouterr().out) == reports


def test_a_wrong_k_is_refused_before_the_model_is_loaded(tmp_path):
    arguments = ["score", "--model", "none", "--data", "none", "--out", str(tmp_path / "out"), "--k", "medium"]
    error = CliRunner().invoke(app, arguments).exception
    assert "--k: scaling.k: expected a number or median, found 'medium'" in str(error)
