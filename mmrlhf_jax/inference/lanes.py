"""Chooses lanes for trees: few different ones, so that few programs are compiled."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence

from mmrlhf_jax.inference.lane import BRANCH_CHUNKS, SHORT, SHORT_UNIT, TRUNK_CHUNKS, Lane
from mmrlhf_jax.inference.requests import Tree
from mmrlhf_jax.models.geometry import Geometry

MOST_PLACES = 8  # branches of a trunk that run at the same time


def lanes_for(
    trees: Sequence[Tree],
    slots: int,
    groups: int,
    fits: Callable[[Lane], bool] = lambda lane: True,
    known: Collection[Lane] = (),
) -> Iterator[tuple[Lane, list[int]]]:
    """(lane, indices of its trees): trees with trunks of similar length run in one lane, short ones first. Trees that would not
    fill a lane twice run in the next one, if that is at most twice as long.

    `slots` is the number of branches that run at a time on each of `groups` groups of devices, or fewer where such a lane does
    not `fit`. Of no trees there are no lanes. `known` are lanes whose programs are compiled; they are used where they will do.
    """
    if not trees:
        return
    branch = stepped(max(branch.length for tree in trees for branch in tree.branches), BRANCH_CHUNKS[-1])
    total = sum(len(tree.branches) for tree in trees)
    slots = min(slots, power_of_two(math.ceil(total / groups)))
    by_trunk = sorted(range(len(trees)), key=lambda number: len(trees[number].tokens))
    apart = [(trunk, list(numbers)) for trunk, numbers in itertools.groupby(by_trunk, key=lambda n: _trunk(trees[n]))]
    numbers: list[int] = []
    for (trunk, here), (following, _) in itertools.zip_longest(apart, apart[1:], fillvalue=(math.inf, [])):
        numbers += here
        widths = [len(trees[number].branches) for number in numbers]
        shape = dict(trunk=trunk, branch=branch, width=sum(widths) / len(widths), widest=max(widths))
        count = slots
        while not fits(lane := make_lane(count, power_of_two(math.ceil(len(numbers) / groups)), **shape)) and count > 1:
            count //= 2
        if following <= 2 * trunk and sum(widths) < 2 * lane.slots * groups:
            continue
        yield _known(lane, known), numbers
        numbers = []


def _known(wanted: Lane, known: Collection[Lane]) -> Lane:
    """A lane that will do for the wanted one: compiling takes longer than a few idle slots do. The next part of a data set
    would otherwise have programs of its own, because its trees are a little wider, or its longest text a little shorter."""
    enough = [
        lane
        for lane in known
        if (lane.trunk == wanted.trunk or wanted.trunk < lane.trunk <= min(SHORT, 2 * wanted.trunk))
        and wanted.branch <= lane.branch <= 4 * wanted.branch  # every step reads all slots of a branch
        and lane.slots >= wanted.slots
        and lane.places >= wanted.places
        and 4 * lane.rows >= 3 * wanted.rows
    ]
    return wanted if wanted in enough else min(enough, key=lambda lane: (lane.slots, lane.branch, lane.rows), default=wanted)


def make_lane(slots: int, most_rows: int, *, trunk: int, branch: int, width: float, widest: int) -> Lane:
    """The lane of so many slots for trees with `width` branches on average and `widest` at most."""
    places = min(power_of_two(widest), MOST_PLACES, power_of_two(slots))
    busy = math.ceil(slots / min(places, width))
    # More rows than the slots fill: the last branches of a trunk keep its row, and the next trunk is computed ahead.
    rows = min(busy + busy // 2 + 1, most_rows)
    return Lane(rows=rows, trunk=trunk, places=places, slots=slots, branch=branch)


def serving_lane(trunk: int, branch: int, slots: int, fits: Callable[[Lane], bool]) -> Lane:
    """A lane for requests that are not known yet: each may have a trunk of its own of up to `trunk` tokens, and `branch` tokens
    behind it. It has fewer slots where so many do not fit."""
    sizes = dict(trunk=stepped(trunk, TRUNK_CHUNKS[0]), branch=stepped(branch, BRANCH_CHUNKS[-1]))
    while True:
        lane = Lane(rows=slots + slots // 2 + 1, places=min(slots, MOST_PLACES), slots=slots, **sizes)
        if fits(lane) or slots == 1:
            return lane
        slots //= 2


def tile_counts(geometry: Geometry, lane: Lane, most_images: int, most_frames: int) -> list[int]:
    """The numbers of tiles (`Geometry.padded_tiles`) of media that fit a lane's trunk: those whose programs are compiled
    ahead."""
    most = geometry.most_tiles(lane.trunk, most_images, most_frames)
    return sorted({geometry.padded_tiles(2**place) for place in range(power_of_two(most).bit_length())})


def _trunk(tree: Tree) -> int:
    """Slots for a trunk. Every step reads all of them."""
    count, large = len(tree.tokens), TRUNK_CHUNKS[0]
    if count <= SHORT:
        return SHORT_UNIT * max(1, math.ceil(count / SHORT_UNIT))
    return large * power_of_two(math.ceil(count / large))


def stepped(length: int, unit: int) -> int:
    """The smallest of unit x 1, 2, 3, 4, 6, 8, 12, 16, ... that is at least `length`."""
    whole = power_of_two(math.ceil(length / unit))
    return unit * (whole * 3 // 4 if whole >= 4 and whole * 3 // 4 * unit >= length else whole)


def power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << (value - 1).bit_length()
