"""A command that is given again with another judge, or with the same one."""

from __future__ import annotations

import json

import pytest

from tests.serving import fakes
from tests.serving.fakes import Fake, chat, refusal
from tests.suite.support.going_on import JUDGED, PLAIN, policy, value
from tests.suite.support.judged import judge


def test_another_judge_is_refused_before_anything_is_answered(run, data):
    with policy() as server, judge(lambda text: "Yes.") as first, judge(lambda text: "Yes.") as second:
        second.models = ("another",)
        run(server, "--judge", first.url, only=JUDGED)
        asked = len(server.asked)
        run(server, "--judge", second.url, only=(*JUDGED, *PLAIN), fails="is judged by 'm', not 'another'")
        assert len(server.asked) == asked
        run(server, "--judge", second.url)  # these tasks need none


def test_a_judge_that_said_something_else_is_asked_again_on_demand(run):
    with policy() as server:
        for options, says, calls, figure in (
            ((), "I like it", 3, None),
            ((), "Yes.", 0, None),  # a document is missing, so that the judge is tried
            (("--judge-again",), "Yes.", 3, 100),
        ):
            with judge(lambda text, says=says: says) as judging:
                found = run(server, "--judge", judging.url, *options, only=JUDGED, works=figure is not None)
                assert (len(judging.asked) - 1, value(found, "risk_identification")) == (calls, figure)  # one is the probe
        run(server, "--judge-again", fails="--judge-again is of a judge")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.long
def test_a_judge_is_asked_nothing_where_nothing_is_left_and_needs_not_be_there(run, named):
    options = ["--judge-model", "m"] if named else []
    with policy() as server:
        with judge(lambda text: "Yes.") as judging:
            found = run(server, "--judge", judging.url, *options, "--limit", "2", only=JUDGED)
            asked = len(judging.asked), len(server.asked)
            assert run(server, "--judge", judging.url, *options, "--limit", "2", only=JUDGED) == found
            assert (len(judging.asked), len(server.asked)) == asked
            gone = judging.url
        if named:
            assert run(server, "--judge", gone, *options, "--limit", "2", only=JUDGED) == found
        run(server, "--judge", gone, *options, only=JUDGED, fails="the judge cannot be asked")  # there is one more document
        assert len(server.asked) == asked[1]


def test_answers_are_judged_without_the_policy_where_a_document_was_refused(run):
    """The policy is gone, and one document of it was refused, which would be asked again."""

    def refuse(body: dict):
        return refusal(400, "content policy") if "a cat?" in json.dumps(body) else chat("Sure.")

    with fakes.running(Fake(refuse)) as server:
        found = run(server, only=JUDGED)
        (row,) = [each for each in found["rows"] if each["name"] == "risk_identification"]
        assert row["model"]["documents"]["answered"] == 2
        asked = len(server.asked)
    with judge(lambda text: "Yes.") as judging:
        found = run(server, "--judge", judging.url, only=JUDGED)
    (row,) = [each for each in found["rows"] if each["name"] == "risk_identification"]
    assert row["model"]["value"] is not None and row["model"]["documents"]["scored"] == 2
    assert any("content policy" in reason for reason in row["model"]["documents"]["missing"])
    assert len(server.asked) == asked
