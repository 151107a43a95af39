"""The fault matrix: what happens (faults), when (phases), to how many processes (layouts), and how it must end.

Every cell begins with a run that was killed after its checkpoint of step PREFIX. It is continued, suffers the fault, and where
the fault ends it, it is continued once more. In the end it must be the run that nothing happened to, bit for bit.
"""

from __future__ import annotations

import dataclasses

from mmrlhf_jax.exits import PEER_LOST, SIGNALLED

STEPS, EVERY, EVAL_EVERY, KEEP = 24, 4, 6, 3
PREFIX = 8  # the newest checkpoint that every cell begins with
STEP = 10  # in which the fault of the phase `step` happens
EVALUATED = 12  # after which the held-out data is judged, before the checkpoint
WRITTEN = 12  # the checkpoint that is being written
HEARTBEAT = 10  # seconds of silence after which a process counts as gone

PHASES = ("reference pass", "compile", "step", "evaluation", "checkpoint")
FAULTS = (
    "SIGKILL",
    "SIGTERM",
    "transient read error",
    "corrupt newest checkpoint",
    "full disk",
    "clock jump",
    "vanished data file",
    "second trainer",
    "concurrent export",
)
LAYOUTS = {"1 process": 1, "one of 2": 2}

KILLED = -9  # as a parent sees SIGKILL
USER_ERROR = 2
# Where one process ends, the others end by the same error, or find that it is gone.
OTHERS = {0, USER_ERROR, PEER_LOST, SIGNALLED}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`ends`: the statuses that the process of the fault may end with, `others`: those of another process.

    `says` stands in the logs of the attempt with the fault, `continued_from` is the least step that the next attempt may
    continue from (None: there is no next attempt, because the run finished).
    """

    ends: frozenset[int]
    others: frozenset[int]
    says: str = ""
    continued_from: int | None = None
    continued_says: str = ""
    beside: int | None = None  # the status of the command that ran beside the trainer


def outcome(fault: str, phase: str) -> Outcome:
    """How a cell must end."""
    last = EVALUATED if phase == "checkpoint" else PREFIX  # a signal that asks to stop lets the running save finish
    match fault:
        case "SIGKILL":
            return Outcome(frozenset({KILLED}), frozenset({PEER_LOST}), continued_from=PREFIX)
        case "SIGTERM":
            # Before the first step there is nothing to save: the process ends at once, and is gone for the other one.
            early = phase == "reference pass"
            return Outcome(
                frozenset({SIGNALLED}),
                frozenset({PEER_LOST} if early else {SIGNALLED}),
                says="stopped by a signal",
                continued_from=PREFIX if early else max(last, PREFIX + 1),
            )
        case "corrupt newest checkpoint":
            return Outcome(
                frozenset({KILLED}), frozenset({PEER_LOST}), continued_from=PREFIX - EVERY, continued_says="cannot be read"
            )
        case "full disk":
            return Outcome(frozenset({USER_ERROR}), frozenset({USER_ERROR, PEER_LOST}), says="no room", continued_from=PREFIX)
        case "vanished data file":
            return Outcome(
                frozenset({USER_ERROR, PEER_LOST}), frozenset({USER_ERROR, PEER_LOST}), says=".png", continued_from=PREFIX
            )
        case "second trainer":
            return Outcome(frozenset({0}), frozenset({0}), beside=USER_ERROR)
        case "concurrent export":
            return Outcome(frozenset({0}), frozenset({0}), beside=0)
        case "transient read error" | "clock jump" if phase == "checkpoint":
            # Where it hits Orbax's own reads and deadlines, the save has failed, and its state is gone from the devices: the
            # run ends with the status that launchers repeat. Where it misses them, nothing happens.
            either = frozenset({0, PEER_LOST})
            return Outcome(either, either, continued_from=PREFIX)
        case "transient read error" | "clock jump":
            return Outcome(frozenset({0}), frozenset({0}))
    raise KeyError(fault)
