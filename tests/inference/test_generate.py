"""Generation with the KV cache is transformers' greedy generation, token for token; the critic scores what it wrote."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import image_size
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.evaluation.benchmarks.ranked import category
from mmrlhf_jax.evaluation.exchanged import exchange_media
from mmrlhf_jax.evaluation.reward_bench import accuracy
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.engine import Engine, Prompt
from mmrlhf_jax.inference.prompts import prompt_trees
from mmrlhf_jax.records import RankedRecord, Response
from mmrlhf_jax.sharding.mesh import make_mesh
from tests import ranked, tiny
from tests.families import FAMILIES, WITH_VIDEOS
from tests.prompts import every_frame

NEW_TOKENS = 64
# Text and the sizes of its pictures; a number of frames is a video's.
PROMPTS = [
    ("What is this?", []),
    ("And this?", [(40, 30)]),
    ("Look at the sky.", [(33, 90)]),
    ("Both?", [(30, 30), (50, 20)]),
    ("What happens?", 3),
]
# Other lengths of text, and pictures and videos of odd shapes: strips, specks, sizes that no tile divides.
ODD = [
    ("A", []),
    ("Tell me, in as many words as you like, what the river has to do with it, and why. " * 3, []),
    ("鳥は何を見ていますか 🙂", []),
    ("A strip?", [(7, 200)]),
    ("A tower?", [(200, 7)]),
    ("A speck?", [(1, 1)]),
    ("A long strip?", [(14, 500)]),
    ("A large one?", [(181, 179)]),
    ("Not quite square?", [(61, 59)]),
    ("Strip and tower?", [(9, 120), (120, 9)]),
    ("Three of them?", [(64, 64), (10, 150), (90, 45)]),
    ("Four of them?", [(31, 33), (17, 19), (80, 20), (20, 80)]),
    ("Is <image> inside?", [(45, 27)]),
    ("<image> or <image>?", [(30, 90), (27, 45)]),
    ("One frame?", 1),
    ("Some frames?", 8),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Untied: a tied model of random weights says the same token for ever."""
    raw = tiny.config(text={"tie_word_embeddings": False})
    return tiny.checkpoint(tmp_path_factory.mktemp("model"), raw, reward_head=True)


@pytest.fixture(scope="module")
def engine(directory):
    return Engine(tiny.on_one_device(directory), tiny.tokenizer(), make_mesh({}, jax.devices()[:1]), batch=4)


def example(prompt: str, sizes) -> Example:
    if isinstance(sizes, int):
        frames = tuple(ranked.picture((40, 60), i) for i in range(sizes))
        return Example(RankedRecord("p", prompt, (), video="p.mp4"), frames=frames, video=every_frame(sizes))
    images = tuple(ranked.picture(size, i) for i, size in enumerate(sizes))
    return Example(RankedRecord("p", prompt, (), tuple(f"{i}.png" for i in range(len(sizes)))), images)


def prompt_tokens(engine, prompt: Prompt) -> np.ndarray:
    (found,) = prompt_trees([prompt], engine.encoder("answer"), engine.asked(1))
    return np.concatenate([found.tree.tokens, found.tree.branches[0].tokens])


def stopping_at(engine, *stop_tokens: int) -> Engine:
    other = copy.copy(engine)
    other.stop_tokens = stop_tokens
    return other


def assert_generates_as_transformers(engine, directory, prompts) -> None:
    """64 token ids per prompt: nothing stops the writing, on either side."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForImageTextToText

    from mmrlhf_jax.data.images import decode_image
    from tests.parity import video_inputs

    theirs = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    family = FAMILIES[engine.config.model_type]
    examples = [example(prompt, sizes) for prompt, sizes in prompts]
    ours = stopping_at(engine).generate_tokens([Prompt(e) for e in examples], max_new_tokens=NEW_TOKENS)
    for e, ids in zip(examples, ours, strict=True):
        tokens = prompt_tokens(engine, Prompt(e))
        inputs = {"input_ids": torch.from_numpy(tokens[None]).long()} | family.id_inputs(tokens[None])
        if e.images:
            inputs |= family.picture_inputs(directory, [decode_image(data, "p") for data in e.images])
        if e.frames:
            inputs = video_inputs(engine.config, [decode_image(data, "p") for data in e.frames], tokens)
        with torch.no_grad():
            out = theirs.generate(
                attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
                **inputs,
            )[0, len(tokens) :]
        assert len(ids) == NEW_TOKENS and ids == out.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.long
def test_greedy_generation_equals_transformers_token_for_token(tmp_path, family):
    """Untied: a tied model of random weights says the same token for ever."""
    raw = FAMILIES[family].config(text={"tie_word_embeddings": False})
    directory = FAMILIES[family].checkpoint(tmp_path, raw)
    engine = Engine.load(str(directory), batch=4, mesh=make_mesh({}, jax.devices()[:1]))
    prompts = [one for one in PROMPTS + ODD if family in WITH_VIDEOS or not isinstance(one[1], int)]
    assert_generates_as_transformers(engine, directory, prompts)


@pytest.mark.slow
@pytest.mark.skipif("MMRLHF_SMALL_VLM" not in os.environ, reason="MMRLHF_SMALL_VLM names no checkpoint")
def test_so_it_does_with_the_weights_of_a_real_language_model():
    """MMRLHF_SMALL_VLM: the directory of a small checkpoint, of any family, whose text weights are trained ones."""
    directory = os.environ["MMRLHF_SMALL_VLM"]
    engine = Engine.load(directory, batch=1, mesh=make_mesh({}, jax.devices()[:1]))
    prompts = [
        ("Write a short story about the sea.", []),
        ("What is in this picture?", [(384, 384)]),
        ("And here?", [(500, 333)]),
        ("What do they have in common?", [(300, 700), (600, 200)]),
        ("What happens here?", 3),
    ]
    assert_generates_as_transformers(engine, directory, prompts)


@pytest.mark.long
def test_writing_ends_with_a_stop_token_that_the_text_leaves_out(engine):
    prompt = Prompt(example(*PROMPTS[1]))
    (endless,) = stopping_at(engine).generate_tokens([prompt], max_new_tokens=NEW_TOKENS)
    stop = endless[9]
    expected = endless[: endless.index(stop) + 1]
    stopping = stopping_at(engine, stop)
    assert stopping.generate_tokens([prompt], max_new_tokens=NEW_TOKENS) == [expected]
    (text,) = stopping.generate([prompt], max_new_tokens=NEW_TOKENS)
    assert text == engine.tokenizer.decode(expected[:-1], skip_special_tokens=True)


@pytest.mark.slow
def test_so_it_does_at_the_depth_and_width_of_a_real_model(tmp_path):
    """The shapes of SmolLM2-135M (30 layers, 9 heads over 3) behind a tower of the published geometry."""
    raw = tiny.config(
        text={
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100_000.0,
        },
        vision={
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 384,
            "patch_size": 14,
        },
        image_grid_pinpoints=[[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
    )
    directory = tiny.checkpoint(tmp_path, raw)
    engine = Engine(tiny.on_one_device(directory), tiny.tokenizer(), make_mesh({}, jax.devices()[:1]), batch=1)
    assert_generates_as_transformers(engine, directory, [("Why?", []), ("What is this?", [(384, 384)])])


def test_a_stream_is_the_text_in_pieces_up_to_a_stop_string(engine):
    prompt = Prompt(example(*PROMPTS[2]))
    (whole,) = engine.generate([prompt], max_new_tokens=NEW_TOKENS)
    pieces = list(engine.stream(prompt, engine.asked(NEW_TOKENS)))
    assert "".join(pieces) == whole and len(pieces) > 10
    stop = whole[10:13]
    assert "".join(engine.stream(prompt, engine.asked(NEW_TOKENS), ["never", stop])) == whole[: whole.index(stop)]


def test_a_batch_answers_as_each_prompt_does_alone(engine):
    prompts = [Prompt(example(*p)) for p in PROMPTS]
    together = engine.generate(prompts, max_new_tokens=NEW_TOKENS)
    assert together[1] == engine.generate(prompts[1:2], max_new_tokens=NEW_TOKENS)[0]


def critique_prompts(number: int, images) -> list[Prompt]:
    asked = example("What is this?", images)
    return [Prompt(asked, Response(text, 1)) for text in ("A kite.", "A", "A kite over the sea.", "", "No.")[:number]]


@pytest.mark.long
def test_prompts_about_one_example_share_a_row_and_read_as_they_do_alone(engine):
    """Five critiques of one picture, three of two pictures, and a question in between: trunks are stored once."""
    prompts = [*critique_prompts(5, [(40, 30)]), Prompt(example(*PROMPTS[2])), *critique_prompts(3, [(30, 30), (50, 20)])]
    trees = prompt_trees(prompts, engine.encoder("answer"), engine.asked(1))
    assert [tree.numbers for tree in trees] == [(0, 1, 2, 3, 4), (5,), (6, 7, 8)]
    alone = len(prompt_tokens(engine, prompts[0]))
    tree = trees[0].tree
    assert len(tree.tokens) > alone / 2 and len(tree.tokens) + sum(len(each.tokens) for each in tree.branches) < 2 * alone
    together = engine.generate(prompts, max_new_tokens=NEW_TOKENS)
    assert together == [engine.generate([prompt], max_new_tokens=NEW_TOKENS)[0] for prompt in prompts]
    assert len(set(together)) > 3  # or the texts would prove nothing


def test_pictures_inside_a_question_are_scored_beside_other_responses_as_alone(engine, tmp_path):
    """With critiques of some responses only, the conversations of one group differ before the picture."""
    path = ranked.write(tmp_path, [(1, 2, 3)] * 2, [[(40, 30)], [(30, 30), (50, 20)]])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, prompt in zip(rows, ("Is <image> it?", "Is <image> like <image>?"), strict=True):
        row["prompt"] = prompt
        del row["responses"][1]["critique"]
    alone = [row | {"id": f"{row['id']}-{k}", "responses": [one]} for row in rows for k, one in enumerate(row["responses"])]
    rewards = []
    for records in (rows, alone):
        path.write_text("".join(json.dumps(row) + "\n" for row in records))
        found = critic.score(engine, open_examples(path), critique="given")
        rewards.append([response.reward for record in found for response in record.responses])
    np.testing.assert_allclose(rewards[0], rewards[1], rtol=1e-5)
    assert len(set(rewards[1])) == 6


def test_a_question_with_a_picture_inside_and_its_critiques_read_as_alone(engine):
    """They differ before the picture, and so have a trunk each."""
    asked = example("Is <image> it?", [(40, 30)])
    prompts = [Prompt(asked), Prompt(asked, Response("A kite.", 1)), Prompt(asked, Response("No.", 1))]
    trees = prompt_trees(prompts, engine.encoder("answer"), engine.asked(1))
    assert [tree.numbers for tree in trees] == [(0,), (1, 2)]
    together = engine.generate(prompts, max_new_tokens=8)
    assert together == [engine.generate([prompt], max_new_tokens=8)[0] for prompt in prompts]


def test_exchanged_media_take_the_places_or_stand_first_where_there_are_others(tmp_path):
    sizes = [[(40, 30)], [(31, 30)], [(30, 30), (50, 20)]]
    path = ranked.write(tmp_path, [(1, 2)] * 3, sizes)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["prompt"] = "Is" + " <image> it" * len(row["images"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    exchanged = exchange_media(open_examples(path))
    assert [record.prompt_text() for record in exchanged.records] == [("Is ", " it"), "Is  it", "Is  it  it"]


@pytest.mark.long
def test_the_critic_scores_with_the_critique_it_wrote(engine, tmp_path):
    examples = open_examples(ranked.write(tmp_path, [(1, 2), (1, 2, 2)], [[(40, 30)], []]))
    written = critic.score(engine, examples, max_new_tokens=6)
    for record, source in zip(written, examples.records, strict=True):
        assert [r.text for r in record.responses] == [r.text for r in source.responses]
        assert all(r.critique != s.critique for r, s in zip(record.responses, source.responses, strict=True))
    given = critic.score(engine, examples, critique="given")
    none = critic.score(engine, examples, critique="none")
    rewards = [[r.reward for record in found for r in record.responses] for found in (written, given, none)]
    assert np.isfinite(rewards).all() and len({tuple(r) for r in rewards}) == 3


@pytest.mark.long
def test_the_next_part_of_a_data_set_compiles_nothing_and_reads_each_picture_twice(engine, tmp_path, monkeypatch):
    """Once for the tokens' places, and again when its turn comes; not for each of its responses."""
    ranks = [(1, 2), (1, 2, 2), (2, 1), (1, 2, 2), (1, 2, 2), (2, 1), (1, 2, 2, 3), (1, 2), (2, 1)]
    examples = open_examples(ranked.write(tmp_path, ranks, [[(30, 30)], [(30, 30)], []] * 3))
    read, of_example = [], type(examples).__getitem__
    monkeypatch.setattr(type(examples), "__getitem__", lambda self, index: read.append(index) or of_example(self, index))
    compiled = []
    for indices in ([0, 1, 2, 3], [4, 5, 6, 7], [8]):
        read.clear()
        found = dict(critic.score_each(engine, examples, indices, max_new_tokens=8))
        assert sorted(found) == sorted(indices) and all(read.count(index) <= 2 for index in indices)
        compiled.append(engine.compiled)
    assert compiled[0] == compiled[1] == compiled[2]


def test_sampled_critiques_have_the_rewards_of_their_texts_and_depend_on_their_response_alone(engine, tmp_path):
    examples = open_examples(ranked.write(tmp_path, [(1, 2), (1, 2, 2)], [[(40, 30)], []]))
    how = critic.HowToCriticise(count=3, most=12, temperature=1.0, seed=5)
    found = dict(critic.critiques_each(engine, examples, [0, 1], how))
    assert [[len(each) for each in found[index]] for index in (0, 1)] == [[3, 3], [3, 3, 3]]
    assert all(len({one.text for one in each}) == 3 for critiques in found.values() for each in critiques)
    assert {one.seed for one in found[0][0]} == {how.seed_of(examples.records[0], examples.records[0].responses[0])}
    alone = dict(critic.critiques_each(engine, examples, [1], how))
    assert [[one.text for one in each] for each in alone[1]] == [[one.text for one in each] for each in found[1]]
    given = [
        record.replace_responses([dataclasses.replace(record.responses[0], critique=one.text) for one in found[i][0]])
        for i, record in enumerate(examples.records)
    ]
    again = critic.score(engine, OverlaidExamples(examples, given), critique="given")
    wanted = [[response.reward for response in record.responses] for record in again]
    np.testing.assert_allclose([[one.reward for one in found[i][0]] for i in (0, 1)], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_critiques_whose_branches_had_no_room_for_the_reward_are_scored_over_rows_that_they_fit(engine, tmp_path, monkeypatch):
    """Five critiques of each of three responses would not fit one row."""
    examples = open_examples(ranked.write(tmp_path, [(1, 2, 2), (1, 2)], [[(40, 30)], []]))
    how = critic.HowToCriticise(count=5, most=12, temperature=1.0, seed=5)
    wanted = dict(critic.critiques_each(engine, examples, [0, 1], how))
    write_each = engine.write_each

    def unrewarded(*arguments):
        for number, texts in write_each(*arguments):
            for text in texts:
                text.reward = None
            yield number, texts

    monkeypatch.setattr(engine, "write_each", unrewarded)
    monkeypatch.setattr(engine, "slots", 1024)
    found = dict(critic.critiques_each(engine, examples, [0, 1], how))
    for index, critiques in wanted.items():
        for each, others in zip(critiques, found[index], strict=True):
            assert [one.text for one in each] == [one.text for one in others]
            np.testing.assert_allclose([one.reward for one in others], [one.reward for one in each], atol=1e-5, rtol=1e-5)


def records(rewards, ranks):
    responses = tuple(
        Response("x" * (i + 1), rank, reward=reward) for i, (rank, reward) in enumerate(zip(ranks, rewards, strict=True))
    )
    return [RankedRecord("a", "p", responses)]


@pytest.mark.parametrize(
    ("rewards", "acc", "acc_plus"), [((3.0, 2.0, 1.0), 1.0, 1.0), ((3.0, 1.0, 2.0), 2 / 3, 0.0), ((1.0, 1.0, 1.0), 0.0, 0.0)]
)
def test_acc_counts_strictly_right_pairs_and_acc_plus_groups_without_a_miss(rewards, acc, acc_plus):
    found = accuracy(records(rewards, (1, 2, 3)))
    assert (found.pairs, found.groups) == (3, 1)
    assert found.acc == pytest.approx(acc) and found.acc_plus == acc_plus


def test_the_length_baseline_prefers_the_longer_response():
    assert accuracy(records((0, 0), (2, 1))).longer_wins == 1.0
    assert accuracy(records((0, 0), (1, 2))).longer_wins == 0.0


def test_exchanged_media_are_another_records(tmp_path):
    examples = open_examples(ranked.write(tmp_path, [(1, 2)] * 4, [[(40, 30)], [(31, 30)], [(31, 30)], [(50, 20)]]))
    exchanged = exchange_media(examples)
    assert len(exchanged) == 4
    for i in range(4):
        assert exchanged[i].record.prompt == examples.records[i].prompt
        assert exchanged[i].images and exchanged[i].images != examples[i].images
        assert exchanged[i].record == exchanged.records[i]
        assert exchanged.layout(i).images == (image_size(exchanged[i].images[0], "p"),)


def with_pictures(directory, paths) -> Path:
    """One record per entry, about the pictures (or none) that it names."""
    for path in {path for group in paths for path in group}:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(ranked.picture((40, 30), len(path)))
    records = ranked.rows([(1, 2)] * len(paths), [[]] * len(paths))
    records = [record | {"images": list(group)} for record, group in zip(records, paths, strict=True)]
    source = directory / "records.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    return source


def test_records_of_text_alone_are_left_out_of_the_exchange_and_counted(tmp_path, capsys):
    """Neither sighted nor blind: nor is a record that was given no picture at all."""
    examples = open_examples(with_pictures(tmp_path, [["mcq/a.png"], [], ["long/bb.png"], []]))
    exchanged = exchange_media(examples)
    assert [record.id for record in exchanged.records] == [examples.records[i].id for i in (0, 2)]
    assert [exchanged[i].images for i in range(2)] == [examples[2].images, examples[0].images]
    assert [category(record) for record in exchanged.records] == ["mcq", "long"]
    assert "2 of 4 records have no media" in capsys.readouterr().err


@pytest.mark.parametrize("paths", [[["a.png"]], [["a.png"], ["a.png"]], [[], []], [["a.png"], []]])
def test_where_no_other_media_are_nothing_can_be_exchanged(tmp_path, paths):
    with pytest.raises(UserError, match="cannot be exchanged"):
        exchange_media(open_examples(with_pictures(tmp_path, paths)))
