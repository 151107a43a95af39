"""From prompts to a trained model: a policy answers questions about the quickstart's scenes, a critic ranks, people look, and
what they say is what is learnt."""

from __future__ import annotations

import json

import pytest

from mmrlhf_jax import config, sections
from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.data.validate import validate
from tests.growing.commands import command, lines
from tests.growing.made import verdict

# By length, which the random critic knows nothing of: the longer answer is better, in three classes.
LEVELS = (8, 16)


def rating(text: str) -> int:
    return 2 + sum(len(text) >= level for level in LEVELS)


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_prompts_become_data_that_people_have_ranked_and_that_trains(policy, critic, scenes, tmp_path):
    grown, run = tmp_path / "grown", tmp_path / "run"
    making = [
        "--samples",
        5,
        "--max-new-tokens",
        24,
        "--max-critique-tokens",
        16,
        "--critiques",
        2,
        "--tie",
        0.01,
        "--batch",
        8,
    ]
    command("annotate", "--policy", policy, "--critic", critic, "--data", scenes["prompts"], "--out", grown, *making)
    by_critic = {row["id"]: row for row in lines(grown / "records.jsonl")}

    command("review", "export", grown, "--budget", 4)
    queue = lines(grown / "review.jsonl")
    assert len(queue) == min(4, sum(len({r["text"] for r in row["responses"]}) > 1 for row in by_critic.values())) >= 2
    texts = {text_digest(each["text"]): each["text"] for row in by_critic.values() for each in row["responses"]}
    said = [
        verdict(entry, {digest: rating(texts[digest]) for digest in entry["answers"]}, who=who)
        for entry in queue
        for who in "ab"
    ]
    files = [save(tmp_path / f"{who}.jsonl", [one for one in said if one["who"] == who]) for who in "ab"]
    assert "people agree with each other on 100.0%" in command("review", "import", grown, *files)

    rows, asked = lines(grown / "records.jsonl"), {entry["id"] for entry in queue}
    for row in rows:
        if row["id"] not in asked:
            assert row == by_critic[row["id"]]
            continue
        levels = sorted({rating(each["text"]) for each in row["responses"]}, reverse=True)
        for each, old in zip(row["responses"], by_critic[row["id"]]["responses"], strict=True):
            assert each["rank"] == 1 + levels.index(rating(each["text"])) and each["critic_rank"] == old["rank"]
            kept = ("text", "reward", "critique", "model", "fingerprint", "sampling", "score", "copies", "flags")
            assert {name: each.get(name) for name in kept} == {name: old.get(name) for name in kept}
        assert [one["who"] for one in row["review"]] == ["a", "b"] and row["round"] == 1
    assert {finding.kind for finding in validate(grown / "records.jsonl").findings} <= {"text"}

    settings = config.Experiment(
        model=config.Model(path=str(policy), dtype="float32", remat="none"),
        data=config.Data(path=str(grown / "records.jsonl")),
        objective=config.Preference(),
        optimizer=config.Optimizer(learning_rate=1e-3),
        batch=config.Batch(rows=1, slots=2048, logprob_chunk=64),
        run=config.Run(directory=str(run), steps=2, checkpoint_every=2),
    )
    (tmp_path / "experiment.yaml").write_text(sections.resolved(settings))
    command("train", tmp_path / "experiment.yaml")
    command("export", run, tmp_path / "trained")
    assert (tmp_path / "trained" / "config.json").exists()

    # The trained policy's own best answers are what a next round learns from, without a change either.
    best = ["--policy", tmp_path / "trained", "--critic", critic, "--data", grown / "records.jsonl", "--round", 2]
    command("best-of-n", *best, "--out", tmp_path / "best", *making[:6], "--batch", 8)
    second = SourceExamples(tmp_path / "best" / "records.jsonl")
    assert {record.extra["round"] for record in second.records} == {2}
    assert not any(name in record.extra for record in second.records for name in ("review", "selected_because"))
    assert all(len(record.responses) == 1 and record.responses[0].model.endswith("trained") for record in second.records)
    changed = [
        "data.path=" + str(tmp_path / "best" / "records.jsonl"),
        "objective={kind: supervised}",
        f"run.directory={run}-2",
    ]
    command("train", tmp_path / "experiment.yaml", *[part for each in changed for part in ("--set", each)])
