"""`mmrlhf eval reward-bench`: what it prints and leaves behind, with stored rewards and with a model, on one and two hosts."""

from __future__ import annotations

import json
import signal
import sys
import time

import pytest

from mmrlhf_jax import cli
from mmrlhf_jax.data.sources import read_source
from tests import ranked, tiny
from tests.evaluation import rows
from tests.inference.test_score_apart import ended, start


def mmrlhf(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["mmrlhf", "eval", "reward-bench", *map(str, arguments)])
        cli.main()
    return end.value.code or 0


def refused(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert mmrlhf(*arguments) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return message.removeprefix("error: ")


def printed(capsys, *arguments: object) -> dict:
    capsys.readouterr()
    assert mmrlhf(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def benchmark(tmp_path):
    """VL-RewardBench with synthetic rewards: of each group the first half (rounded down) is right, the others wrong."""
    path = tmp_path / "vl.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows.vl()))
    seen: dict[str, int] = {}
    totals = {"general": 183, "hallucination": 749, "reasoning": 318}
    group_of = {"mathverse": "reasoning", "mmmu": "reasoning", "hallucination": "hallucination"}
    group_of |= {"RLAIF": "hallucination", "RLHF": "hallucination"}
    lines = []
    for record in read_source(path).records:
        group = group_of.get(record.id.replace("-", "_").split("_")[0], "general")
        seen[group] = seen.get(group, 0) + 1
        right = seen[group] <= totals[group] // 2
        lines.append({"id": record.id, "responses": [{"reward": float((one.rank == 1) == right)} for one in record.responses]})
    scores = tmp_path / "scores.jsonl"
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, scores


def test_stored_rewards_give_the_figures_that_are_counted_by_hand(benchmark, tmp_path, capsys):
    path, scores = benchmark
    found = printed(capsys, "--data", path, "--scores", scores, "--out", tmp_path / "out")
    assert {name: (found[name]["right"], found[name]["pairs"]) for name in ("general", "hallucination", "reasoning")} == {
        "general": (91, 183),
        "hallucination": (374, 749),
        "reasoning": (159, 318),
    }
    assert found["overall"]["acc"] == pytest.approx(624 / 1250)
    assert found["macro"]["acc"] == pytest.approx((91 / 183 + 374 / 749 + 159 / 318) / 3)
    assert found["run"] == {
        "benchmark": "vl-rewardbench",
        "grouping": "official",
        "data": str(path),
        "model": None,
        "scores": str(scores),
        "differences": [],
    }
    assert json.loads((tmp_path / "out" / "figures.json").read_text()) == found
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["figures.json", "report.html"]
    assert (tmp_path / "out" / "report.html").read_text().count("<article") == 1250


def test_the_papers_grouping_is_a_flag_and_the_table_is_printed(benchmark, capsys):
    path, scores = benchmark
    found = printed(capsys, "--data", path, "--scores", scores, "--grouping", "paper")
    assert [found[name]["pairs"] for name in ("general", "hallucination", "reasoning")] == [484, 448, 318]
    assert mmrlhf("--data", path, "--scores", scores, "--grouping", "paper") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "VL-RewardBench, grouping paper" and lines[2].split()[:2] == ["general", "484"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either --model, which makes the rewards, or --scores, a file that has them"),
        (("--model", "m", "--scores", "s"), "give either --model"),
        (("--scores", "s", "--blind"), "--blind says how a model makes rewards, and those of --scores are there already"),
        (("--scores", "s", "--max-new-tokens", 9), "--max-new-tokens says how a model makes rewards"),
        (("--model", "m", "--temperature", 0.5), "--temperature is for sampled critiques, and a single one is greedy"),
        (("--scores", "s", "--out", __file__), "is a file; give a folder"),
        (("--model", "m", "--critique", "none", "--critiques", 2), "--critiques 2: only written critiques are sampled"),
        (
            ("--model", "m", "--critique", "none", "--max-new-tokens", 9),
            "--max-new-tokens is for critiques that the model writes, not for --critique none",
        ),
        (("--model", "m", "--critique", "writen"), "--critique 'writen': choose from written, given, none"),
        (("--scores", "s", "--benchmark", "vl"), "--benchmark 'vl': choose from vl-rewardbench"),
        (
            ("--scores", "s", "--benchmark", "mm-rlhf", "--grouping", "paper"),
            "--grouping 'paper': MM-RLHF-RewardBench has offi",
        ),
        (("--scores", "no-file"), "no-file: no such score file"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_a_line(benchmark, capsys, options, message):
    assert message in refused(capsys, "--data", benchmark[0], *options)


def test_data_without_a_strict_order_are_refused(tmp_path, capsys):
    data = ranked.write(tmp_path / "data", [(1, 1), (1,)], [[], []])
    scores = tmp_path / "scores.jsonl"
    scores.write_text('{"id": "group-0", "responses": [{"reward": 1}, {"reward": 2}]}\n')
    message = refused(capsys, "--data", data, "--scores", scores)
    assert message == f"{data}: none of 2 records has two responses of different ranks"


def test_a_grouping_of_another_benchmark_is_refused(tmp_path, capsys):
    path = tmp_path / "mm.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows.mm_rlhf()))
    message = refused(capsys, "--data", path, "--scores", "s", "--grouping", "paper")
    assert message == "--grouping 'paper': MM-RLHF-RewardBench has official"


def test_launch_needs_a_directory_that_all_hosts_see(benchmark, tmp_path, capsys):
    (tmp_path / "launch.yaml").write_text("distributed: {initialization_timeout: 60}\n")
    given = ("--data", benchmark[0], "--model", "m", "--launch", tmp_path / "launch.yaml")
    assert refused(capsys, *given).startswith("--launch: give --out, a folder that all hosts see")


def test_figures_that_are_there_are_not_replaced(benchmark, tmp_path, capsys):
    path, scores = benchmark
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "figures.json").write_text("kept")
    message = refused(capsys, "--data", path, "--scores", scores, "--out", tmp_path / "out")
    assert message == f"{tmp_path / 'out' / 'figures.json'}: already exists; choose another --out or remove it first"
    assert (tmp_path / "out" / "figures.json").read_text() == "kept"


# With a model -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(tmp_path):
    model = tiny.checkpoint(tmp_path / "model", tiny.config(text={"tie_word_embeddings": False}), reward_head=True)
    sizes = [[(30 + number % 7, 40)] if number % 4 == 0 else [] for number in range(40)]
    data = ranked.write(tmp_path / "data", [(1, 2, 2) if number % 3 == 0 else (2, 1) for number in range(40)], sizes)
    return ["--model", str(model), "--data", str(data), "--batch", "4"]


@pytest.mark.long
def test_a_model_and_its_stored_scores_give_the_same_figures(judged, tmp_path, capsys):
    options = ("--critique", "none", "--out", tmp_path / "out")
    by_model = printed(capsys, *judged, *options)
    scores = tmp_path / "out" / "scores.jsonl"
    stored = printed(capsys, "--data", tmp_path / "data" / "records.jsonl", "--scores", scores)
    assert {name: row for name, row in by_model.items() if name != "run"} == {n: r for n, r in stored.items() if n != "run"}
    assert (by_model["overall"]["pairs"], by_model["overall"]["groups"]) == (14 * 2 + 26, 40)
    how = by_model["run"]
    assert (how["critique"], how["blind"], how["dtype"], how["template"]) == ("none", False, "float32", "qwen_1_5")
    assert "critiques" not in how and len(how["model_fingerprint"]) > 8
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<article") == 40 and page.count("<img") == 10
    (tmp_path / "out" / "figures.json").unlink()  # as after a kill before the end
    assert printed(capsys, *judged, *options) == by_model


def test_the_table_says_that_the_media_were_exchanged(judged, capsys):
    assert mmrlhf(*judged, "--critique", "none", "--blind") == 0
    assert capsys.readouterr().out.startswith("ranked data, grouping category, with the media of other prompts (--blind)\n")
    assert printed(capsys, *judged, "--critique", "none", "--blind")["run"]["records_without_media_left_out"] == 30


@pytest.mark.slow
def test_hosts_that_are_killed_give_the_figures_of_one_host(judged, tmp_path):
    """Two hosts with two sampled critiques per response; each is killed once and started again, as launchers do. One that comes
    when all is done ends well, too."""
    arguments = ["eval", "reward-bench", *judged, "--max-new-tokens", "12", "--critiques", "2"]
    ended(start(arguments, tmp_path / "alone"))
    (tmp_path / "launch.yaml").write_text("distributed: {initialization_timeout: 60}\n")
    out = tmp_path / "out"

    def host(number: int):
        place = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)}
        return start(arguments, out, "--launch", str(tmp_path / "launch.yaml"), **place)

    hosts, killed = [host(0), host(1)], []
    parts = lambda: len(list(out.glob(".scores.jsonl.*.parts/*.jsonl")))
    while not (out / "figures.json").exists() and any(each.poll() is None for each in hosts):
        for number in {0, 1} - set(killed):
            if parts() > len(killed) and hosts[number].poll() is None and not (out / "scores.jsonl").exists():
                hosts[number].send_signal(signal.SIGKILL)
                hosts[number].communicate()
                killed.append(number)
                hosts[number] = host(number)
        time.sleep(0.2)
    for each in hosts:
        ended(each)
    assert killed
    for late in (0, 1):
        ended(host(late))
    found, wanted = (json.loads((place / "figures.json").read_text()) for place in (out, tmp_path / "alone"))
    assert found == wanted
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"group-{number}" for number in range(40)]
    assert all(len(response["critiques"]) == 2 for line in lines for response in line["responses"])
