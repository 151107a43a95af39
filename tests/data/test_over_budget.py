"""Groups that no row has room for: each policy does what it says, lists what it did, and the stream delivers exactly that."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from etils import epath

from mmrlhf_jax import config
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.encode import NO_LIMIT, Limit
from mmrlhf_jax.data.index import build_index
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.over_budget import SHORTEST_RESPONSE, within_budget
from mmrlhf_jax.data.pipeline import LEFT_OUT_FILE, write_left_out
from mmrlhf_jax.data.rows import Budget, group_size
from mmrlhf_jax.data.scored_rows import check_lengths
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.data.tokens import Conversation, cut
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.tasks import plan_training_rows, task_of
from mmrlhf_jax.training.held_out import plan_held_out
from tests import ranked
from tests.data import groups

ROOMY = Budget(slots=4096, tiles=40, visual=4096, targets=4096, responses=64, pairs=256)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A group of text, one with a large picture, one with a small one, one with two pictures, one with a video."""
    folder = tmp_path_factory.mktemp("data")
    path = groups.write(folder, 8)
    (folder / "1_0.png").write_bytes(ranked.picture((140, 110), 1))
    return open_examples(path, video_frames=12)


@pytest.fixture(scope="module")
def encoder():
    return groups.encoder()


@pytest.fixture(scope="module")
def index(examples, encoder):
    return build_index(examples, encoder)


def delivered(index, examples, encoder, budget):
    """The sizes of the groups as the stream encodes them."""
    rows = Rows(examples, encoder, index, budget, seed=0)
    return {int(index.groups[g]): group_size(rows._encoded(g)) for g in range(len(index.groups))}


def check(index, examples, encoder, budget):
    assert (index.sizes <= budget.vector).all()
    for g, size in enumerate(index.sizes):
        np.testing.assert_array_equal(delivered(index, examples, encoder, budget)[int(index.groups[g])], size)


def test_nothing_happens_where_everything_fits(index, examples, encoder):
    assert within_budget(index, examples, encoder, ROOMY, ["error"]) is index


def test_error_names_the_group_and_what_it_exceeds(index, examples, encoder):
    budget = dataclasses.replace(ROOMY, tiles=11)
    with pytest.raises(UserError, match=r"3 of 8 groups exceed the row budget; group-1 does not fit: \d+ tiles > 11"):
        within_budget(index, examples, encoder, budget, ["error"])


def test_dropped_groups_are_listed(index, examples, encoder):
    left = within_budget(index, examples, encoder, dataclasses.replace(ROOMY, tiles=11), ["drop"])
    assert left.groups.tolist() == [0, 2, 4, 5, 6]
    assert [line.split(":")[0] for line in left.dropped] == ["group-1", "group-3", "group-7"] and not left.cut


@pytest.mark.parametrize("tiles", [11, 5, 3, 1])
def test_smaller_media_are_as_many_as_fit(index, examples, encoder, tiles):
    """The picture on the largest canvas that fits, the video with as many frames as fit; two pictures have one tile each."""
    budget = dataclasses.replace(ROOMY, tiles=max(tiles, 2))
    changed = within_budget(index, examples, encoder, budget, ["smaller_media"])
    check(changed, examples, encoder, budget)
    assert len(changed.groups) == 8 and not changed.dropped
    whole = index.sizes[:, 1] <= budget.tiles
    np.testing.assert_array_equal(changed.sizes[whole], index.sizes[whole])
    assert changed.sizes[3, 1] == budget.tiles  # frames of the video
    assert len(changed.cut) == (~whole).sum() and "12 tiles to" in changed.cut[1]
    assert changed.fingerprint != index.fingerprint


def test_fewer_frames_are_evenly_spaced(examples, encoder):
    example = examples[3]
    kept = encoder.encode(example, limit=Limit(tiles=3)).media.tiles
    every = encoder.encode(example).media.tiles
    np.testing.assert_array_equal(kept, every[[0, 5, 11]])


def test_the_longest_responses_are_cut_to_what_fits_and_no_picture_is(index, examples, encoder):
    budget = dataclasses.replace(ROOMY, targets=90)
    changed = within_budget(index, examples, encoder, budget, ["cut_longest"])
    check(changed, examples, encoder, budget)
    cut_ones = np.flatnonzero(changed.limits[:, 1])
    assert len(cut_ones) and len(changed.cut) == len(cut_ones)
    for g in cut_ones:
        longest = changed.limits[g, 1]
        whole, after = encoder.encode(examples[g]), encoder.encode(examples[g], limit=Limit(0, int(longest)))
        before = np.bincount(whole.tree.responses)
        np.testing.assert_array_equal(np.bincount(after.tree.responses), np.minimum(before, longest))
        assert budget.targets - np.minimum(before, longest).sum() < len(before)  # one token more each would be too many
        np.testing.assert_array_equal(after.tree.tokens[: after.tree.trunk], whole.tree.tokens[: after.tree.trunk])
        assert len(after.media.slots) == len(whole.media.slots)
        closing = encoder.tokenizer.special("<|im_end|>")
        tails = after.tree.tokens[after.tree.ends]
        assert all((tail != closing) == (n > longest) for tail, n in zip(tails, before, strict=True) if n > longest)


def test_policies_are_tried_in_their_order(index, examples, encoder):
    """Pictures first; where that is not possible or not enough, responses; what is still too large is dropped."""
    slots = int(np.median(index.sizes[:, 0]))
    budget = dataclasses.replace(ROOMY, slots=slots, targets=SHORTEST_RESPONSE * 4)
    changed = within_budget(index, examples, encoder, budget, ["smaller_media", "cut_longest", "drop"])
    check(changed, examples, encoder, budget)
    assert changed.dropped and changed.cut
    assert len(changed.groups) + len(changed.dropped) == 8
    with pytest.raises(UserError, match="does not fit"):
        within_budget(index, examples, encoder, budget, ["smaller_media", "cut_longest"])
    with pytest.raises(UserError, match="no group fits"):
        within_budget(index, examples, encoder, dataclasses.replace(ROOMY, slots=20), ["cut_longest", "drop"])


BOTH = ["smaller_media", "cut_longest"]


@pytest.mark.parametrize("policies", [BOTH, BOTH[::-1]])
def test_pictures_are_not_shrunk_where_tiles_do_not_help(index, examples, encoder, policies):
    """Too many targets: what the responses are cut to is what `cut_longest` alone cuts them to, and every tile stays."""
    budget = dataclasses.replace(ROOMY, targets=90)
    changed = within_budget(index, examples, encoder, budget, policies)
    alone = within_budget(index, examples, encoder, budget, ["cut_longest"])
    np.testing.assert_array_equal(changed.limits, alone.limits)
    assert (changed.limits[:, 0] == 0).all() and (changed.sizes[:, 1] == index.sizes[:, 1]).all()


@pytest.mark.parametrize("policies", [BOTH, BOTH[::-1]])
@pytest.mark.parametrize("group", [1, 3])  # the large picture, the video
@pytest.mark.parametrize("spared", [1, 12, 28])
def test_where_neither_is_enough_alone_as_many_tiles_stay_as_leave_room_for_cut_responses(
    index, examples, encoder, policies, group, spared
):
    """Below what either reaches alone by `spared` slots. One more tile, or one more token a response, would not fit."""
    record, layout = examples.records[group], examples.layout(group)
    choices = encoder.geometry.smaller_media(layout.images, layout.video)

    def slots(tiles=0, targets=0):
        return int(encoder.measure(record, layout, Limit(tiles, targets))[0])

    budget = dataclasses.replace(ROOMY, slots=min(slots(choices[-1]), slots(targets=SHORTEST_RESPONSE)) - spared)
    one = dataclasses.replace(index, **{name: getattr(index, name)[[group]] for name in ("sizes", "groups", "limits")})
    changed = within_budget(one, examples, encoder, budget, policies)
    check(changed, examples, encoder, budget)
    tiles, targets = changed.limits[0]
    fitting = [n for n in choices if slots(n, SHORTEST_RESPONSE) <= budget.slots]
    assert tiles == fitting[0] and targets >= SHORTEST_RESPONSE
    assert slots(tiles, targets) <= budget.slots < slots(tiles, targets + 1)


def longest(encoder, examples, number, limit=NO_LIMIT):
    """The number of tokens of the group's longest conversation."""
    example = examples[number]
    layout = examples.layout(number)
    plans = encoder.geometry.plans(layout.images, layout.video, limit.tiles)
    return max(len(each.tokens) for each in encoder.conversations(example.record, plans, limit.targets))


@pytest.fixture(scope="module")
def positions(index, examples, encoder):
    """A number of positions that some groups' longest conversation exceeds, whereas the row budget has room for all groups."""
    return int(np.median([longest(encoder, examples, g) for g in range(8)]))


def test_a_conversation_beyond_the_positions_is_dropped_or_an_error(index, examples, positions):
    short = groups.encoder(max_positions=positions)
    assert short.fingerprint == groups.encoder().fingerprint
    beyond = [g for g in range(8) if longest(short, examples, g) > positions]
    assert 0 < len(beyond) < 8
    left = within_budget(index, examples, short, ROOMY, ["drop"])
    assert left.groups.tolist() == [g for g in range(8) if g not in beyond]
    assert all(f"tokens > {positions} positions" in line for line in left.dropped) and len(left.dropped) == len(beyond)
    with pytest.raises(
        UserError, match=rf"{len(beyond)} of 8 groups exceed the positions.*tokens > {positions} positions; set"
    ):
        within_budget(index, examples, short, ROOMY, ["error"])
    with pytest.raises(UserError, match="no group fits the positions of the model's rotary embeddings"):
        within_budget(index, examples, groups.encoder(max_positions=9), ROOMY, ["drop"])


@pytest.mark.parametrize("policy", ["smaller_media", "cut_longest"])
def test_a_conversation_beyond_the_positions_is_made_to_fit(index, examples, positions, policy):
    short = groups.encoder(max_positions=positions)
    changed = within_budget(index, examples, short, ROOMY, [policy, "drop"])
    assert changed.cut and changed.fingerprint != index.fingerprint
    check(changed, examples, short, ROOMY)
    for number, values in zip(changed.groups, changed.limits, strict=True):
        limit = Limit(*map(int, values))
        assert longest(short, examples, number, limit) <= positions
        if limit.targets:  # one token more would not fit
            assert longest(short, examples, number, limit._replace(targets=limit.targets + 1)) > positions


def test_a_kept_index_of_a_model_with_more_positions_does_not_hide_a_conversation_beyond_them(examples, positions, tmp_path):
    """The index is the same for both models, so that what one has kept is read by the other."""
    built = build(groups.write(tmp_path / "source", 8), tmp_path / "built", video_frames=12)
    check_lengths(built, groups.encoder())
    check_lengths(built, groups.encoder(max_positions=4096))
    with pytest.raises(UserError, match=r"record 'group-\d': a conversation of \d+ tokens exceeds the 60 positions"):
        check_lengths(built, groups.encoder(max_positions=60))
    assert len(list((tmp_path / "built" / "index").iterdir())) == 1
    data, batch = config.Data(path="a", over_budget=["drop"]), config.Batch(rows=1, slots=2048)
    rows = plan_training_rows(built, groups.encoder(max_positions=positions), data, batch, task_of(config.Preference()), seed=0)
    assert rows.index.dropped and len(rows.index.groups) + len(rows.index.dropped) == 8
    experiment = config.Experiment(
        model=config.Model(path="a"),
        data=config.Data(path="a", held_out="b", over_budget=["drop"]),
        batch=batch,
        objective=config.Preference(),
        run=config.Run(directory="c", steps=1),
    )
    held_out = plan_held_out(built, groups.encoder(max_positions=positions), experiment, rows)
    assert held_out.index.dropped == rows.index.dropped


def test_an_experiment_gives_one_policy_or_several():
    assert config.Data(path="a", over_budget="drop").over_budget == ("drop",)
    assert config.Data(path="a", over_budget=["smaller_media", "drop"]).over_budget == ("smaller_media", "drop")
    assert config.Data(path="a", over_budget="fewer_tiles").over_budget == ("smaller_media",)  # as it was called before
    for wrong in ("shrink", [5], 5, [["drop"]]):
        with pytest.raises(ValueError):
            config.Data(path="a", over_budget=wrong)


def test_a_cut_ends_a_conversation_after_a_target():
    conversation = Conversation(np.arange(9), np.asarray([0, 0, 0, 1, 1, 1, 1, 1, 0], bool), np.zeros(9, bool))
    assert cut(conversation, 2).tokens.tolist() == [0, 1, 2, 3, 4]
    assert cut(conversation, 5) is conversation


def test_a_budget_left_open_follows_from_the_groups_as_they_have_become(index, examples, encoder):
    """Pictures alone make every one of these groups too long: with fewer tiles they fit, and so does what goes with them."""
    pictured = examples.part([1, 3])
    shortest = int(index.sizes[[1, 3], 0].min())
    data = config.Data(path="a", over_budget=["smaller_media"])
    batch = config.Batch(rows=1, slots=shortest - 1)
    rows = plan_training_rows(pictured, encoder, data, batch, task_of(config.Preference()), seed=0)
    assert len(rows.index.groups) == 2 and len(rows.index.cut) == 2
    assert (rows.index.sizes <= rows.budget.vector).all() and rows.budget.tiles >= rows.index.sizes[:, 1].max() > 0


def test_every_group_that_is_left_out_or_made_smaller_stands_in_a_file(index, examples, encoder, tmp_path, capfd):
    directory = epath.Path(tmp_path)
    budget = dataclasses.replace(ROOMY, tiles=11)
    changed = within_budget(index, examples, encoder, dataclasses.replace(budget, slots=230), ["smaller_media", "drop"])
    many = dataclasses.replace(changed, dropped=(*changed.dropped, *(f"group-{n}: no pair" for n in range(100, 130))))
    assert changed.dropped and changed.cut
    write_left_out(many, directory)
    lines = (directory / LEFT_OUT_FILE).read_text().splitlines()
    assert lines == [f"left out: {line}" for line in many.dropped] + [f"made smaller: {line}" for line in many.cut]
    assert f"{directory / LEFT_OUT_FILE} lists all groups that are left out ({len(many.dropped)})" in capfd.readouterr().err
    write_left_out(index, directory)
    assert not list(directory.iterdir())
