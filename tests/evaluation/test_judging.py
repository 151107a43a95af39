"""A reward model over a data set in which some records cannot be scored: these have the reason, the others their rewards."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.evaluation import rewards
from mmrlhf_jax.evaluation.benchmarks import BENCHMARKS
from mmrlhf_jax.evaluation.judging import Judging
from mmrlhf_jax.evaluation.rewards import JOB, SCORES, rewards_at_once, rewards_in, seen_by
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.critic import HowToCriticise
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.jobs import ALONE, Share
from tests import ranked, tiny

RANKS = [(1, 2), (1, 2, 2), (1, 2), (1, 2), (2, 1)]
IMAGES = [[(40, 30)], [(20, 50)], [], [(30, 30)], [(31, 31)]]
WRITTEN = Judging("written", HowToCriticise(most=6))
SAMPLED = Judging("written", HowToCriticise(count=3, most=6, temperature=1.0, seed=7))
GIVEN, NONE = Judging("given"), Judging("none")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    place = tiny.checkpoint(
        tmp_path_factory.mktemp("model"), tiny.config(text={"tie_word_embeddings": False}), reward_head=True
    )
    return Engine.load(str(place), batch=4, slots=1024)


@pytest.fixture
def data(tmp_path):
    return ranked.write(tmp_path / "data", RANKS, IMAGES)


@pytest.fixture
def flawed(data):
    """The picture of group-1 is missing, that of group-3 is torn, group-2 is too long; a pair of MMRB2's kind comes last."""
    (data.parent / "1_0.png").unlink()
    whole = (data.parent / "3_0.png").read_bytes()
    (data.parent / "3_0.png").write_bytes(whole[: len(whole) // 2])
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[2]["responses"][0]["text"] = "x" * 1500
    rows[4]["responses"][1]["inserted_pictures"] = 2
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def values(found):
    return [[response.reward for response in each.record.responses] for each in found]


def evaluated(engine, data, judging, blind=False):
    examples = open_examples(str(data))
    seen = seen_by(examples, str(data), judging, blind)
    return seen.joined(rewards_at_once(engine, seen, judging), examples.records)


@pytest.mark.parametrize("judging", [WRITTEN, GIVEN, NONE], ids=["written", "given", "none"])
@pytest.mark.long
def test_rewards_are_those_of_score(engine, data, judging):
    examples = open_examples(str(data))
    wanted = critic.score(engine, examples, critique=judging.critique, max_new_tokens=6)
    found = evaluated(engine, data, judging)
    np.testing.assert_allclose(np.concatenate(values(found.scored)), [one.reward for r in wanted for one in r.responses])
    assert [one.critique for each in found.records for one in each.responses] == [
        one.critique for each in wanted for one in each.responses
    ]
    assert all(each.reason is None for each in found.scored) and list(found.places) == [0, 1, 2, 3, 4]
    if judging is not WRITTEN:
        assert found.cut_off == 0


@pytest.mark.long
def test_of_sampled_critiques_the_mean_counts_and_each_has_the_reward_of_its_text(engine, data):
    found = evaluated(engine, data, SAMPLED)
    for each in found.scored:
        for one, samples in zip(each.record.responses, each.samples, strict=True):
            assert len(samples) == 3 and one.critique == samples[0][0]
            assert one.reward == pytest.approx(np.mean([reward for _, reward in samples]))
    examples = open_examples(str(data))
    for sample in range(3):
        with_text = [
            each.record.replace_responses(
                [
                    dataclasses.replace(one, critique=samples[sample][0])
                    for one, samples in zip(each.record.responses, each.samples, strict=True)
                ]
            )
            for each in found.scored
        ]
        again = critic.score(engine, OverlaidExamples(examples, with_text), critique="given")
        np.testing.assert_allclose(
            [one.reward for record in again for one in record.responses],
            [samples[sample][1] for each in found.scored for samples in each.samples],
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("judging", [WRITTEN, GIVEN, NONE], ids=["written", "given", "none"])
def test_what_cannot_be_scored_has_the_reason_and_the_rest_its_rewards(engine, flawed, judging):
    found = evaluated(engine, flawed, judging)
    reasons = [each.reason for each in found.scored]
    assert reasons[0] is None and None not in reasons[1:]
    assert "1_0.png" in reasons[1] and "'group-2' needs" in reasons[2] and "--slots" in reasons[2]
    assert "group-3" in reasons[3] and "its answers hold 2 pictures" in reasons[4]
    assert [record.id for record in found.records] == [f"group-{number}" for number in range(5)]
    assert None not in values(found.scored)[0] and {r for each in values(found.scored)[1:] for r in each} == {None}
    assert list(found.places) == [0, None, 1, 2, None]  # media that are there are shown


def test_critiques_that_are_cut_off_are_counted_also_from_a_directory(engine, data, tmp_path, capsys):
    """A model with random weights does not end its critiques within six tokens."""
    at_once, stored = evaluated(engine, data, WRITTEN), kept(engine, data, tmp_path / "out", WRITTEN)
    assert at_once.cut_off == stored.cut_off == 11 and [each.truncated for each in stored.scored] == [
        tuple(range(len(record.responses))) for record in stored.records
    ]
    assert capsys.readouterr().err.count("critiques of 11 of 11 responses were cut off at their longest") == 2


def test_where_nothing_can_be_scored_the_first_reason_is_given(engine, flawed):
    rows = flawed.read_text().splitlines(True)
    flawed.write_text("".join(rows[1:2]))
    with pytest.raises(UserError, match=r"none of 1 records can be scored; the first: .*1_0\.png"):
        evaluated(engine, flawed, NONE)
    flawed.write_text("".join(rows[2:4]))
    with pytest.raises(UserError, match="none of 2 records can be scored; the first: record 'group-2' needs"):
        evaluated(engine, flawed, NONE).check()


def test_exchanged_media_leave_out_what_has_none_and_keep_the_reasons(engine, flawed, capsys):
    found = evaluated(engine, flawed, NONE, blind=True)
    assert [record.id for record in found.records] == ["group-0", "group-1", "group-3", "group-4"]
    assert found.records[0].images == ("3_0.png",) and "group-0" in found.scored[0].reason  # it sees the torn picture
    assert found.scored[2].reason is None and "1_0.png" in found.scored[1].reason
    assert "1 of 3 records have no media to exchange and are left out" in capsys.readouterr().err


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_exchanged_media_leave_every_record_in_its_group(tmp_path, benchmark):
    """Also where it follows from the media, as in MM-RLHF-RewardBench, whose official code looks into their names, too."""
    path = ranked.write(tmp_path, [(1, 2)] * 5, [[(20 + number, 20)] for number in range(5)])
    made = [json.loads(line) for line in path.read_text().splitlines()]
    for row, place, dimension in zip(
        made,
        ("mcq", "long", "short", "safety", "video"),
        ("Knowledge", "Safety", "Reasoning", "Short Perception", "x"),
        strict=True,
    ):
        row["images"] = [f"{place}/mcq in the name.png"]
        row["subset"] = dimension
        (tmp_path / place).mkdir()
        (tmp_path / row["images"][0]).write_bytes(ranked.picture((20 + len(place), 20), 0))
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    examples = open_examples(str(path))
    for _, grouping in benchmark.groupings.items():
        group = lambda record, groups=grouping.groups: groups(record)[0]
        exchanged = seen_by(examples, "rows", NONE, True, group).examples
        assert [record.images for record in exchanged.records] != [record.images for record in examples.records]
        assert list(map(group, exchanged.records)) == list(map(group, examples.records))


def test_given_critiques_must_be_there_and_what_lacks_is_said(engine, data, capsys):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    del rows[0]["responses"][0]["critique"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen_by(open_examples(str(data)), "rows", GIVEN, False)
    assert "rows: 1 of 11 responses have no critique, and are scored without one" in capsys.readouterr().err
    for row in rows:
        for response in row["responses"]:
            response.pop("critique", None)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="rows: --critique given: no response has a critique"):
        seen_by(open_examples(str(data)), "rows", GIVEN, False)


# In a directory ---------------------------------------------------------------------------------------------------------


def kept(engine, data, directory, judging=NONE, share=ALONE, **settings):
    examples = open_examples(str(data))
    seen = seen_by(examples, str(data), judging, False)
    return seen.joined(rewards_in(directory, engine, seen, judging, settings, share), examples.records)


@pytest.mark.parametrize("judging", [SAMPLED, NONE], ids=["sampled", "none"])
def test_a_directory_has_the_same_rewards_critiques_and_reasons(engine, flawed, tmp_path, judging):
    found, again = kept(engine, flawed, tmp_path / "out", judging), kept(engine, flawed, tmp_path / "out", judging)
    wanted = evaluated(engine, flawed, judging)
    assert found.scored == again.scored == wanted.scored
    lines = [json.loads(line) for line in (tmp_path / "out" / SCORES).read_text().splitlines()]
    assert [line["id"] for line in lines] == ["group-0", "group-2", "group-3"]


def test_a_pass_that_was_stopped_goes_on(engine, data, tmp_path, monkeypatch):
    """It ends after two records, whose lines are not made again."""
    made, judged = [], rewards.judged

    def stops(*arguments):
        for index, scored in judged(*arguments):
            made.append(index)
            yield index, scored
            if len(made) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(rewards, "judged", stops)
    with pytest.raises(KeyboardInterrupt):
        kept(engine, data, tmp_path / "out", WRITTEN)
    assert not (tmp_path / "out" / SCORES).exists()
    found = kept(engine, data, tmp_path / "out", WRITTEN)
    assert sorted(made) == [0, 1, 2, 3, 4]  # each once
    np.testing.assert_allclose(
        np.concatenate(values(found.scored)), np.concatenate(values(evaluated(engine, data, WRITTEN).scored)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"judging": WRITTEN}, "critique, critiques, max new tokens"),
        ({"judging": GIVEN}, "critique"),
        ({"grouping": "paper"}, "grouping"),
    ],
)
def test_a_directory_that_was_begun_otherwise_is_refused(engine, data, tmp_path, change, what):
    kept(engine, data, tmp_path / "out", grouping="official")
    stored = (tmp_path / "out" / JOB).read_text()
    with pytest.raises(UserError, match=rf"out: was begun with other settings \({what}\); choose another --out"):
        kept(engine, data, tmp_path / "out", **{"grouping": "official"} | change)
    assert (tmp_path / "out" / JOB).read_text() == stored


def test_rewards_that_something_else_has_left_in_the_directory_are_not_taken_for_the_models(engine, data, tmp_path):
    (tmp_path / "out").mkdir()
    left = b'{"id": "group-0", "responses": [{"reward": 1}, {"reward": 2}]}\n'
    (tmp_path / "out" / SCORES).write_bytes(left)
    with pytest.raises(UserError, match=r"scores.jsonl: no job.json beside it says which model made these rewards; choose"):
        kept(engine, data, tmp_path / "out")
    assert (tmp_path / "out" / SCORES).read_bytes() == left and not (tmp_path / "out" / JOB).exists()


def test_a_critique_that_is_blank_is_one_of_several(engine, data, tmp_path, monkeypatch):
    """The model's first critique of every response is empty: the first one with a text stands for the others."""
    write = critic.critiques_each

    def blank_first(*arguments):
        for index, critiques in write(*arguments):
            yield index, [[dataclasses.replace(each[0], text=" "), *each[1:]] for each in critiques]

    monkeypatch.setattr(critic, "critiques_each", blank_first)
    for found in (evaluated(engine, data, SAMPLED), kept(engine, data, tmp_path / "out", SAMPLED)):
        for each in found.scored:
            assert [samples[0][0] for samples in each.samples] == [" "] * len(each.record.responses)
            assert [one.critique for one in each.record.responses] == [samples[1][0] for samples in each.samples]


def test_other_data_are_refused(engine, data, tmp_path):
    kept(engine, data, tmp_path / "out")
    (data.parent / "0_0.png").write_bytes(ranked.picture((40, 30), 9))
    with pytest.raises(UserError, match=r"begun with other settings \(data\)"):
        kept(engine, data, tmp_path / "out")


@pytest.mark.long
def test_hosts_share_the_records_and_one_that_comes_late_finds_all(engine, data, tmp_path, monkeypatch):
    """The first host computes its share; the second one, its own, and then both write or find the same file."""
    monkeypatch.setattr("mmrlhf_jax.inference.jobs.LATE_SECONDS", 0.0)
    monkeypatch.setattr("mmrlhf_jax.inference.jobs.POLL_SECONDS", 0.05)
    found = [kept(engine, data, tmp_path / "out", share=Share(process, 2)) for process in (0, 1, 0)]
    assert found[0].records == found[1].records == found[2].records
    np.testing.assert_allclose(
        np.concatenate(values(found[0].scored)), np.concatenate(values(evaluated(engine, data, NONE).scored)), rtol=1e-6
    )
