"""The parts of an annotation by themselves: media beside the records, samples as they are stored, ranks of flagged answers."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from etils import epath

from mmrlhf_jax.data.examples import Example, SourceExamples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.growing import directory, grown
from mmrlhf_jax.growing.directory import GrownDirectory
from mmrlhf_jax.growing.grown import Model, Ranking
from mmrlhf_jax.growing.media import MediaFolder
from mmrlhf_jax.growing.ranking import never_first, standard_error
from mmrlhf_jax.growing.samples import HowToSample
from mmrlhf_jax.inference.jobs import Share
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.records import RankedRecord, Response
from tests import ranked

HOW = HowToSample(2, 10, Sampling(temperature=1.0, seed=3))


def test_equal_media_are_stored_once_and_read_back_in_their_places(tmp_path):
    one, two = ranked.picture((8, 6), 1), ranked.picture((8, 6), 2)
    responses = (Response("a"),)
    record = RankedRecord("r", "<image> or <image>?", responses, images=("x/one.png", "two.png"))
    folder = MediaFolder(epath.Path(tmp_path))
    kept = [folder.keep(Example(record, images)) for images in ((one, two), (two, one), (one, one))]
    assert len(list((tmp_path / "media").iterdir())) == 2
    assert kept[0].images == kept[1].images[::-1] and len(set(kept[2].images)) == 1
    clip = RankedRecord("v", "What happens?", responses, video="clip.mp4")
    kept.append(folder.keep(Example(clip, frames=(one, two, one))))
    named = [{**each.to_json(), "id": str(number)} for number, each in enumerate(kept)]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    examples = SourceExamples(tmp_path / "records.jsonl", video_frames=3)
    assert [examples[i].images for i in range(3)] == [(one, two), (two, one), (one, one)]
    assert examples[3].frames == (one, two, one)
    assert examples.records[0].prompt_text() == record.prompt_text()


def test_a_video_keeps_the_times_of_its_frames(tmp_path):
    """In a folder of its own for other times, or none."""
    pictures = tuple(ranked.picture((8, 6), number) for number in range(3))
    video = VideoLayout(3, (6, 8), (0, 40, 99), 100, 25.0)
    clip, folder = RankedRecord("v", "What happens?", (Response("a"),), video="clip.mp4"), MediaFolder(epath.Path(tmp_path))
    layouts = [video, dataclasses.replace(video, rate=24.0), dataclasses.replace(video, rate=None), None]
    kept = [folder.keep(Example(clip, frames=pictures, video=layout)) for layout in layouts]
    assert len({record.video for record in kept}) == 3 and kept[2] == kept[3]
    named = [{**each.to_json(), "id": str(number)} for number, each in enumerate(kept)]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    examples = SourceExamples(tmp_path / "records.jsonl", video_frames=3)
    assert [examples[number].video for number in range(2)] == layouts[:2]
    assert examples[0].frames == pictures and examples[2].video == VideoLayout(3, (6, 8), (0, 1, 2), 3)


def test_a_record_without_media_stays_as_it_is(tmp_path):
    record = RankedRecord("t", "Why?", (Response("a"),))
    assert MediaFolder(epath.Path(tmp_path)).keep(Example(record)) == record and not list(tmp_path.iterdir())


def test_a_seed_depends_on_seed_and_id_alone_and_leaves_room_for_the_samples_of_an_endpoint():
    records = [RankedRecord(f"r{number}", "?", ()) for number in range(500)]
    seeds = {HOW.seed_of(record) for record in records}
    assert len(seeds) == 500 and max(seeds) + 1000 < 2**31
    assert HOW.seed_of(records[0]) != HowToSample(2, 10, Sampling(temperature=1.0, seed=4)).seed_of(records[0])
    assert HOW.seed_of(RankedRecord("\udce4", "?", ())) >= 0


@pytest.mark.parametrize(
    ("line", "holds"),
    [
        ({"id": "r", "samples": [1, 2]}, True),
        ({"id": "r", "samples": [1]}, False),
        ({"id": "s", "samples": [1, 2]}, False),
        ({"id": "r", "samples": [], "error": "too long"}, True),
    ],
)
def test_a_stored_line_has_all_samples_or_the_reason_why_not(line, holds):
    assert HOW.is_line(RankedRecord("r", "?", ()), line) == holds


@pytest.mark.parametrize(
    ("ranks", "flagged", "wanted"),
    [
        ([1, 2, 3], [False, False, False], [1, 2, 3]),
        ([1, 2, 3], [True, False, False], [2, 1, 3]),
        ([1, 2, 3], [True, True, False], [2, 2, 1]),
        ([1, 1, 2], [True, False, False], [2, 1, 3]),
        ([1, 1, 2, 2], [False, False, True, False], [1, 1, 2, 2]),
        ([2, 1, 3], [False, False, True], [2, 1, 3]),
    ],
)
def test_a_flagged_answer_is_never_first(ranks, flagged, wanted):
    assert never_first(ranks, flagged) == wanted


def sampled(*texts: str) -> dict:
    drawn = [{"text": text, "finish_reason": "stop", "tokens": len(text), "logprob": -1.0} for text in texts]
    return {"id": "r", "seed": 7, "samples": drawn}


def scored(*rewards: list[float]) -> dict:
    each = [
        {
            "digest": "",
            "reward": sum(values) / len(values),
            "std": None,
            "critiques": [{"text": f"c{value}", "reward": value, "finish_reason": "stop"} for value in values],
        }
        for values in rewards
    ]
    return {"id": "r", "template": "t", "responses": each}


def test_samples_that_equal_an_own_response_are_its_copies():
    own = Response(
        "A kite.", rank=2, critique="Right.", scores={"helpfulness": 4.0}, extra={"critiques": ["Right."], "note": 1}
    )
    record = RankedRecord("r", "What?", (own, Response("A dog.", rank=3)))
    found = grown.answered(record, sampled("A  kite.", "A bird.", "A kite. "), Model("p", "f"), {}, keep_responses=True)
    assert [response.text for response in found.responses] == ["A kite.", "A dog.", "A bird."]
    assert dict(found.responses[0].extra) == {
        "note": 1,
        "human_rank": 2,
        "human_critique": "Right.",
        "flags": [],
        "copies": 2,
    }
    assert found.responses[0].scores == own.scores and found.responses[2].extra["sampling"] == {"seed": 7, "index": 1}
    alone = grown.answered(record, sampled("A  kite.", "A bird."), Model("p", "f"), {}, keep_responses=False)
    assert [response.text for response in alone.responses] == ["A  kite.", "A bird."]


@pytest.mark.parametrize(
    ("extra", "of_record", "kept"),
    [
        ({}, {}, {"human_rank": 2, "human_critique": "c"}),
        ({"score": {"critic": "c"}}, {}, {}),
        ({"score": {"critic": "c"}, "critic_rank": 1}, {"review": [{"who": "a"}]}, {"human_rank": 2}),
        ({"score": {"critic": "c"}, "human_rank": 3}, {}, {"human_rank": 3}),  # of people, before an earlier round
    ],
    ids=["of people", "of a critic", "of people who looked at a critic's", "of both"],
)
def test_what_a_critic_said_in_an_earlier_round_is_not_taken_for_peoples_word(extra, of_record, kept):
    response = Response("An own answer", 2, critique="c", extra=extra)
    record = RankedRecord("r", "What?", (response,), extra=of_record)
    own, _ = grown.answered(record, sampled("Another"), Model("p", "f"), {}, keep_responses=True).responses
    assert own.extra == {"flags": []} | kept and own.rank is None and own.critique is None


def test_of_several_critiques_the_one_nearest_to_the_mean_stands_for_all():
    record = RankedRecord("r", "?", (Response("a"), Response("b")))
    found = grown.ranked(record, scored([0.0, 1.0, 0.4], [2.0, 2.2, 2.1]), Model("c", "f"), Ranking(0.1))
    assert [response.critique for response in found.responses] == ["c0.4", "c2.1"]
    assert [response.rank for response in found.responses] == [2, 1]


def test_the_standard_error_of_the_means_decides_where_it_is_larger_than_the_tie():
    record, line = RankedRecord("r", "?", (Response("a"), Response("b"))), scored([0.0, 1.0], [1.0, 2.0])
    error = standard_error([0.0, 1.0])  # of each mean: 0.5
    assert error == pytest.approx(0.5)
    for z, ranks in ((1.0, [2, 1]), (1.5, [1, 1])):  # the difference is 1, its standard error 0.71
        found = grown.ranked(record, line, Model("c", "f"), Ranking(0.1, z))
        assert [response.rank for response in found.responses] == ranks
    assert standard_error([1.0]) is None


def test_of_several_hosts_the_first_begins_a_directory_and_another_one_if_it_does_not_come(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "POLL_SECONDS", 0.01)
    grown, second = GrownDirectory(tmp_path / "out"), Share(1, 2)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(grown.settle, {"a": 1}, {"who": "second"}, second)
        assert wait([waiting], timeout=0.2).not_done
        first = grown.settle({"a": 1}, {"who": "first"}, Share(0, 2))
        assert waiting.result(timeout=10) == first
    with pytest.raises(UserError, match="was begun with a 1, not 2"):
        grown.settle({"a": 2}, {}, second)
    monkeypatch.setattr(directory, "LATE_SECONDS", 0.05)
    alone = GrownDirectory(tmp_path / "alone").settle({"a": 1}, {"who": "second"}, second)
    assert alone["names"] == {"who": "second"}


def test_an_earlier_rounds_origin_makes_place():
    record = RankedRecord("r", "?", (), extra={"round": 1, "review": {"who": ["anna"]}, "topic": "birds"})
    assert grown.with_origin(record, {"round": 2}).extra == {"topic": "birds", "round": 2}
    kept = record.replace_responses([Response("a", extra={"human_rank": 1})])
    assert grown.with_origin(kept, {"round": 2}).extra == {"topic": "birds", "round": 2, "human_review": {"who": ["anna"]}}
