"""The arguments and results of the programs of a lane. G is the number of groups of devices, B that of branches of each."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

from mmrlhf_jax.models import media


class Media(NamedTuple):
    """Media of one trunk per group.

    `row` has the family's arrays for G rows of T slots, each of which is a visual slot: its taps and weights are zero if it has
    no feature. `row.slots` is not used.
    """

    row: media.Media
    fresh: Bool[Array, "G"]  # whether the group has a new trunk; the others keep their visual tokens


class Chunk(NamedTuple):
    """One chunk of e tokens per group. Tokens from `count` on are padding; a group without work has `count` 0."""

    tokens: Int[Array, "G e"]
    positions: Int[Array, "G e"] | Int[Array, "G e 3"]
    is_visual: Bool[Array, "G e"]
    count: Int[Array, "G"]
    start: Int[Array, "G"]  # the slot of the first token, in the trunk or in the branch
    row: Int[Array, "G"]  # of a branch's trunk
    slot: Int[Array, "G"]  # of a branch
    trunk: Int[Array, "G"]  # tokens of a branch's trunk


class Copies(NamedTuple):
    """One branch of every group whose keys another one gets. A group without work has a target beyond its last slot."""

    source: Int[Array, "G"]
    target: Int[Array, "G"]


class Step(NamedTuple):
    """What every branch does in one decoding step. A slot without a branch has row R, which is beyond the last one."""

    forced: Int[Array, "G B"]  # the token to feed; -1: the one that the last step chose
    position: Int[Array, "G B"]
    length: Int[Array, "G B"]  # tokens of the branch in the cache: the slot of the one that is fed
    row: Int[Array, "G B"]
    place: Int[Array, "G B"]
    trunk: Int[Array, "G B"]  # tokens of its trunk


class Chosen(NamedTuple):
    """The result of a decoding step for every slot. `rewards` are those of the conversations that end with the fed token, 0
    without a reward head; `top` has log-probs and tokens of the likeliest, if asked for."""

    tokens: Int[Array, "G B"]
    logps: Float[Array, "G B"]
    rewards: Float[Array, "G B"]
    top: tuple[Float[Array, "G B n"], Int[Array, "G B n"]] | None
