"""Trees in a lane: every text is the one that it is alone, slots are refilled, and nothing is compiled later."""

from __future__ import annotations

import dataclasses
import gc
import os
import random
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.engine import Engine, Prompt
from mmrlhf_jax.inference.lane import Lane
from mmrlhf_jax.inference.lanes import lanes_for
from mmrlhf_jax.inference.prompts import prompt_trees, scored_tree
from mmrlhf_jax.inference.requests import Branch, Tree
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.inference.scheduler import Scheduler
from mmrlhf_jax.sharding.mesh import make_mesh
from tests import ranked, tiny
from tests.families import FAMILIES
from tests.inference import many_devices
from tests.inference.test_generate import example

SAMPLED = Sampling(temperature=1.3, top_k=60, top_p=0.97, min_p=0.001, seed=11)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("model"), tiny.config(text={"tie_word_embeddings": False}), reward_head=True)


@pytest.fixture(scope="module")
def engine(directory):
    return Engine.load(str(directory), batch=8, mesh=make_mesh({}, jax.devices()[:1]))


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """Questions about nothing, one and two pictures and a video, and critiques of responses that differ in length."""
    return many_devices.prompts()


def trees(engine, prompts, most=20, **settings):
    return [each.tree for each in prompt_trees(prompts, engine.encoder("answer"), engine.asked(most, **settings))]


def scheduler(engine, made, slots: int = 8, **settings) -> Scheduler:
    """A scheduler in a lane that holds all of these trees."""
    lanes = list(lanes_for(made, slots, 1))
    lane = dataclasses.replace(lanes[0][0], trunk=max(lane.trunk for lane, _ in lanes))
    return Scheduler(engine.programs(lane), engine.model.apart(), **settings)


def run(running: Scheduler, made) -> list[list[int]]:
    written = [each for tree in made for each in running.submit(tree)]
    for _ in running.run():
        pass
    assert all(each.done for each in written)
    return [each.tokens for each in written]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.long
def test_a_sampled_text_is_the_same_alone_in_company_and_in_another_order(engine, prompts, streaming):
    made = trees(engine, prompts, sampling=SAMPLED, samples=2)
    together = run(scheduler(engine, made, streaming=streaming), made)
    starts = np.cumsum([0, *(len(tree.branches) for tree in made)])
    order = list(range(len(made)))
    random.Random(0).shuffle(order)
    shuffled = run(scheduler(engine, made, streaming=streaming), [made[number] for number in order])
    place = 0
    for number in order:
        count = len(made[number].branches)
        assert shuffled[place : place + count] == together[starts[number] : starts[number + 1]]
        place += count
    for number in (0, 2, len(made) - 1):
        alone = run(scheduler(engine, made), [made[number]])
        assert alone == together[starts[number] : starts[number + 1]]
    assert len({tuple(tokens) for tokens in together}) == len(together)


@pytest.mark.long
def test_the_samples_of_one_prompt_compute_it_once(engine, prompts, monkeypatch):
    critiques = [prompt for prompt in prompts if prompt.response is not None]
    made = trees(engine, critiques, sampling=SAMPLED, samples=4)
    singly = [dataclasses.replace(tree, branches=[branch]) for tree in made for branch in tree.branches]
    wanted = [tokens for tree in singly for tokens in run(scheduler(engine, made), [tree])]
    running, calls = scheduler(engine, made), []
    extend = running.programs.extend_branch
    monkeypatch.setattr(running.programs, "extend_branch", lambda *given: calls.append(given) or extend(*given))
    assert run(running, made) == wanted
    # Where a trunk's slots are few, a sample may begin when its siblings have ended; then the prompt is computed again.
    assert len(critiques) <= len(calls) < len(wanted) / 2

    calls.clear()
    run(running, [dataclasses.replace(made[0], branches=made[0].branches[:4])])
    assert len(calls) == 1


@pytest.mark.long
def test_more_samples_than_places_and_slots_are_those_that_each_is_alone(engine, prompts):
    asked = [prompts[0], *(prompt for prompt in prompts if prompt.response is not None)][:2]
    made = trees(engine, asked, most=6, sampling=dataclasses.replace(SAMPLED, seed=2**32 - 1), samples=20)
    running = scheduler(engine, made, slots=8)
    assert running.lane.places < 20 and running.lane.slots < 20
    together = run(running, made)
    singly = [dataclasses.replace(tree, branches=[branch]) for tree in made for branch in tree.branches]
    assert together == [tokens for tree in singly for tokens in run(scheduler(engine, made, slots=8), [tree])]
    assert len({tuple(tokens) for tokens in together}) == len(together)


@pytest.mark.long
def test_a_text_is_the_same_wherever_its_trunk_ends(engine):
    """At, before and behind the ends of chunks, of a trunk's slots and of a branch's; with an empty trunk, and with a prompt of
    one token behind it."""
    lane = Lane(rows=3, trunk=1024, places=2, slots=3, branch=1152)
    tokens = np.random.default_rng(0).integers(0, 250, 1025).astype(np.int32)
    ends = [0, 1, 127, 128, 129, 511, 512, 513, 640, 960, 1023, 1024]
    running, written = Scheduler(engine.programs(lane), engine.model.apart()), []
    for end in ends:
        text = Branch(tokens[end:], end, most=6, sampling=SAMPLED)
        length = lane.branch - len(text.tokens) if end == 0 else 0  # fills the slots of the branch
        text = dataclasses.replace(text, most=max(6, length), stops=frozenset())
        made = Tree(tokens[:end], np.arange(end, dtype=np.int32), [text, Branch(text.tokens, end, most=0)])
        written.append(running.submit(made))
    for _ in running.run():
        pass
    wanted, reward = written[-1]
    for found, judged in written:
        assert found.tokens[:6] == wanted.tokens and found.reason == "length"
        np.testing.assert_allclose(found.logps[:6], wanted.logps, atol=1e-5)
        assert judged.reward == pytest.approx(reward.reward, abs=1e-5)
    assert len(written[0][0].tokens) == 127


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_groups_of_devices_write_what_one_device_writes(tmp_path, family):
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "tests.inference.many_devices", str(tmp_path), family]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(result.stdout.splitlines()) == 2 * len(many_devices.MESHES)


@pytest.mark.long
def test_at_most_14_programs_serve_a_lane_and_none_is_compiled_later(engine, prompts):
    made = trees(engine, prompts, most=9, sampling=SAMPLED)
    running = scheduler(engine, made)
    running.programs.compile_all(tiles=(1, 2, 4, 8, 16))
    before = running.programs.compiled
    assert len(before) <= 14
    run(running, made)
    run(running, trees(engine, prompts[:3], most=5))
    assert running.programs.compiled == before


def test_slots_are_refilled_as_texts_end(engine):
    """128 texts whose lengths are lognormal, sigma 0.5, as critiques' are."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(3.0, 0.5, 128)), 4, 96).astype(int)
    (tree,) = trees(engine, [Prompt(example("Why?", []))], most=96)
    made = []
    for number in range(32):
        branches = [dataclasses.replace(tree.branches[0], most=int(most)) for most in lengths[4 * number : 4 * number + 4]]
        made.append(dataclasses.replace(tree, branches=[dataclasses.replace(b, stops=frozenset()) for b in branches]))
    running = scheduler(engine, made)
    found = run(running, made)
    assert [len(tokens) for tokens in found] == lengths.tolist()
    assert running.useful == lengths.sum()
    assert running.useful / (running.steps * running.lane.slots) > 0.9


def test_all_slots_are_filled_before_the_first_step(engine):
    (tree,) = trees(engine, [Prompt(example("Why?", []))], most=12)
    branches = [dataclasses.replace(tree.branches[0], stops=frozenset(), sample=number) for number in range(2)]
    made = [dataclasses.replace(tree, branches=branches) for _ in range(8)]
    running = scheduler(engine, made, slots=16)
    assert {len(tokens) for tokens in run(running, made)} == {12}
    assert (running.lane.slots, running.steps, running.useful) == (16, 12, 16 * 12)


def test_a_cancelled_text_leaves_the_others_as_they_are(engine, prompts):
    made = trees(engine, prompts, most=30)
    wanted = run(scheduler(engine, made), made)
    running = scheduler(engine, made, streaming=True)
    written = [each for tree in made for each in running.submit(tree)]
    left_out = {0, 5, 6, len(written) - 1}
    for number, _ in enumerate(running.run()):
        if number == 6:
            for each in left_out:
                running.cancel(written[each])
    assert all(written[each].reason == "cancelled" for each in left_out)
    for number, each in enumerate(written):
        if number in left_out:
            assert each.done and each.tokens == wanted[number][: len(each.tokens)]
        else:
            assert each.tokens == wanted[number]
    assert not running.busy and all(row.free for group in running.groups for row in group.rows)
    again = [each for tree in made for each in running.submit(tree)]
    for _ in running.run():
        pass
    assert [each.tokens for each in again] == wanted


def test_a_trunk_that_is_there_is_not_computed_again(engine, prompts):
    made = [dataclasses.replace(tree, key=number) for number, tree in enumerate(trees(engine, prompts[:4]))]
    running = scheduler(engine, made)
    first = run(running, made)
    written = [each for tree in made[-1:] for each in running.submit(tree)]
    for _ in running.run():
        pass
    assert [each.cached for each in written] == [len(made[-1].tokens)]
    assert [each.tokens for each in written] == first[-1:]


def test_a_text_ends_where_it_is_told_to(engine, prompts):
    made = trees(engine, prompts[:1], most=30)
    running = scheduler(engine, made)
    (written,) = running.submit(made[0])
    for _ in running.run():
        if len(written.tokens) == 7:
            running.stop(written)
    assert written.reason == "stop" and len(written.tokens) == 7 and written.done


def test_a_text_ends_where_it_is_told_to_though_its_last_step_is_under_way(engine, prompts):
    made = trees(engine, prompts[:1], most=8)
    running = scheduler(engine, made)
    (written,) = running.submit(made[0])
    for _ in running.run():
        if len(written.tokens) == 7:
            assert running.groups[0].idle == running.lane.slots  # nothing follows that step, so that the slot is free
            running.stop(written)
    assert written.reason == "stop" and len(written.tokens) == 7 and written.done


def test_logits_that_are_not_finite_end_the_text_and_are_told(directory):
    model, tokenizer = tiny.on_one_device(directory), tiny.tokenizer()
    (broken,) = tokenizer.encode("X")
    embedding = model.language.embedding.embedding
    embedding.set_value(embedding.get_value().at[broken].set(jnp.nan))
    engine = Engine(model, tokenizer, make_mesh({}, jax.devices()[:1]), batch=8)
    sound, spoilt = Prompt(example("Why?", [])), Prompt(example("X?", []))
    assert engine.generate_tokens([sound], max_new_tokens=4)[0]
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError, match=r"record 'p': the model's logits are not finite\. Check the checkpoint"):
            engine.generate_tokens([spoilt], max_new_tokens=4, temperature=temperature)
    with pytest.raises(UserError, match="logits are not finite"):
        list(engine.stream(spoilt, engine.asked(4)))


@pytest.mark.parametrize("where", ["branch", "trunk"])
def test_the_next_text_in_a_slot_is_sound_whatever_was_there(engine, where):
    """A text whose keys are NaN leaves them in the caches, and others use its slot, its row and the place of its trunk."""
    (sound,) = trees(engine, [Prompt(example("Why is it?", []))], most=6)
    (branch,) = sound.branches
    used = {*sound.tokens.tolist(), *branch.tokens.tolist()}
    broken = next(token for token in range(5, engine.config.text.vocab_size) if token not in used)
    rows, programs = engine.config.text.vocab_size, scheduler(engine, [sound], slots=1).programs
    with_nan = lambda x: x.at[broken].set(jnp.nan) if x.ndim == 2 and x.shape[0] >= rows else x
    running = Scheduler(programs, jax.tree.map(with_nan, engine.model.apart()))
    (expected,) = run(running, [sound])
    if where == "branch":
        spoilt = dataclasses.replace(sound, branches=(dataclasses.replace(branch, tokens=np.full(50, broken, np.int32)),))
    else:
        tokens = np.full(running.lane.trunk, broken, np.int32)
        positions = np.arange(tokens.size, dtype=sound.positions.dtype)
        spoilt = dataclasses.replace(sound, key="spoilt", tokens=tokens, positions=positions)
    for _ in range(2):
        (written,) = running.submit(spoilt)
        for _ in running.run():
            pass
        assert written.reason == "failed"
        assert run(running, [sound]) == [expected]


def test_a_text_that_waits_for_its_reward_alone_can_be_cancelled(engine, prompts):
    (tree,) = trees(engine, [prompts[0]], most=4)
    (branch,) = tree.branches
    wanted = np.full(40, 7, np.int32)  # nothing of what was written, so that many steps follow the text's end
    running = scheduler(engine, [tree], slots=1)
    (written,) = running.submit(dataclasses.replace(tree, branches=(dataclasses.replace(branch, scored=lambda _: wanted),)))
    for _ in running.run():
        if written.reason is not None and not written.done:
            running.cancel(written)
            assert written.done and running.groups[0].idle == 1
    assert written.reason == "cancelled" and written.reward is None


@pytest.mark.long
def test_a_lanes_cache_is_free_before_that_of_the_next_lane_is_made(engine, monkeypatch):
    alive, most = weakref.WeakSet(), []

    class Watched(Scheduler):
        def __init__(self, *arguments, **settings):
            gc.collect()
            most.append(len(alive))
            super().__init__(*arguments, **settings)
            alive.add(self)

    monkeypatch.setattr("mmrlhf_jax.inference.engine.Scheduler", Watched)
    engine.write([Prompt(example("Why?", [])), Prompt(example("Why? " * 200, []))], engine.asked(2))
    assert most == [0, 0]


@pytest.mark.parametrize("task", ["critique", "uncritiqued"])
@pytest.mark.long
def test_conversations_that_are_given_are_scored_in_a_lane_as_by_a_pass_over_rows(engine, tmp_path, task):
    path = ranked.write(tmp_path, [(1, 2), (1, 2, 2), (1, 2, 3, 4)], [[(40, 30)], [], [(30, 30), (50, 20)]])
    examples = open_examples(path)
    wanted = [each["rewards"] for each in engine.score_responses(examples, task)]
    made = [scored_tree(examples[index], engine.encoder(task)) for index in range(3)]
    running = scheduler(engine, made)
    written = [running.submit(tree) for tree in made]
    for _ in running.run():
        pass
    for texts, rewards in zip(written, wanted, strict=True):
        assert all(each.done and not each.tokens for each in texts)
        np.testing.assert_allclose([each.reward for each in texts], rewards, atol=1e-5, rtol=1e-5)


def test_a_scored_conversation_may_differ_from_the_prompt_in_any_place(engine, prompts):
    """What is fed of it replaces the prompt's own tokens, from the first one that differs."""
    (tree,) = trees(engine, [prompts[0]], most=4)
    (branch,) = tree.branches
    same = np.concatenate([branch.tokens, np.arange(20, 30, dtype=np.int32)])
    branch = dataclasses.replace(branch, tokens=np.concatenate([branch.tokens, np.arange(40, 47, dtype=np.int32)]))
    other = same.copy()
    other[len(tree.branches[0].tokens) :] = np.arange(50, 60)
    rewards = {}
    for name, scored in (("same", same), ("other", other)):
        for most in (4, 0):  # behind new tokens, or read at once
            asked = branch if most else dataclasses.replace(branch, tokens=scored, most=0)
            asked = dataclasses.replace(asked, scored=lambda new, found=scored: found)
            made = [dataclasses.replace(tree, branches=[asked])]
            running = scheduler(engine, [dataclasses.replace(tree, branches=[dataclasses.replace(branch, most=40)])])
            (written,) = running.submit(made[0])
            for _ in zip(range(200), running.run()):
                pass
            assert written.done and written.reward is not None, (name, most)
            rewards[name, most] = written.reward
    assert rewards["same", 4] == pytest.approx(rewards["same", 0], abs=1e-5)
    assert rewards["other", 4] == pytest.approx(rewards["other", 0], abs=1e-5) != pytest.approx(rewards["same", 0], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.long
def test_a_reward_is_read_where_its_critique_was_written(tmp_path, family):
    """It equals the one that a pass of its own gives the critique's text. Random tokens often make no text that is tokenised
    as they are; then the branch is fed again."""
    tests = FAMILIES[family]
    raw = tests.config(text={"tie_word_embeddings": False})
    directory = tests.checkpoint(tmp_path / "model", raw, reward_head=True)
    engine = Engine.load(str(directory), batch=4, mesh=make_mesh({}, jax.devices()[:1]))
    sizes = [[(40, 30)], [], [(30, 30), (50, 20)], [(60, 20)]]
    path = ranked.write(tmp_path, [(1, 2), (1, 2, 2), (1, 2, 3, 4), (2, 1)], sizes)
    written = critic.score(engine, open_examples(path), max_new_tokens=24)
    again = critic.score(engine, OverlaidExamples(open_examples(path), written), critique="given")
    found, wanted = ([[r.reward for r in record.responses] for record in records] for records in (written, again))
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(wanted), atol=1e-5, rtol=1e-5)
    assert len(set(np.concatenate(found).tolist())) == 11
