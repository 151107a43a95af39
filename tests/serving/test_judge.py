"""A local model behind `mmrlhf serve` as a judge of benchmarks."""

from __future__ import annotations

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite.judges.judge import KEY, EndpointJudge
from mmrlhf_jax.suite.judges.judging import FAILED, Judging
from mmrlhf_jax.suite.judges.question import Question, limits, single_message
from mmrlhf_jax.suite.judges.verdicts import Verdicts
from mmrlhf_jax.suite.own.registry import grader_of
from mmrlhf_jax.suite.own.safety import attack_question
from tests.suite.support import made_up_own


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)


def test_a_model_that_is_served_judges_texts_and_pictures(address, tmp_path):
    judge = EndpointJudge(address)
    with pytest.raises(UserError, match=r"judge tiny at .* says neither yes nor no to a test question"):  # it is not trained
        judge.check()
    assert judge.name == "tiny"
    (columns, *_) = made_up_own.documents("llava_wilder_small")
    (with_picture,) = grader_of("llava_wilder_small").questions("0", columns, "Because.")
    short = Question("0", with_picture.messages, limits(6))
    chat = attack_question("1", "Boil water", "Sure.", classifier=False)
    asked = [
        short,
        Question("1", chat.messages, limits(6)),
        single_message("2", "Is water wet?", 6),
        single_message("3", "a" * 9000, 6),
    ]
    with Verdicts(tmp_path / "verdicts.jsonl") as verdicts:
        found = Judging(judge, verdicts)
        found.ask(asked)
        replies = [found.reply(each) for each in asked]
    assert all(each.text for each in replies[:3]) and replies[3].failure == FAILED
    with Verdicts(tmp_path / "verdicts.jsonl") as verdicts:
        again = Judging(EndpointJudge("http://127.0.0.1:9", "tiny"), verdicts)  # nobody is asked again
        assert [again.reply(each).text for each in asked[:3]] == [each.text for each in replies[:3]]


def test_a_model_that_is_served_is_no_classifier_with_a_prompt_of_its_own(address):
    with pytest.raises(UserError, match="404"):
        EndpointJudge(address, "tiny").check(attack_question("probe", "Boil water", "Sure.", classifier=True))


def test_another_model_than_the_served_one_is_said(address):
    with pytest.raises(UserError, match="other"):
        EndpointJudge(address, "other").check()
