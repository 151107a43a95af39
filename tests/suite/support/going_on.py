"""Pieces of tests of commands that are given again: two tasks that need neither the harness nor a judge, one that needs a
judge, and a policy at a server."""

from __future__ import annotations

import contextlib

from tests.serving import fakes
from tests.serving.fakes import Fake, chat

PLAIN, JUDGED = ("nsfw_text", "nsfw_image"), ("risk_identification",)


@contextlib.contextmanager
def policy(says=lambda model: "Sure.", models=("m",)):
    """A server whose models say something each."""
    with fakes.running(Fake(lambda body: chat(says(body["model"])), models)) as found:
        yield found


def value(found, row: str, side: str = "model"):
    (found,) = [each for each in found["rows"] if each["name"] == row]
    return found[side] and found[side]["value"]
