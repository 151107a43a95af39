"""Whether a server reads prompts as this project does is known before a pass begins."""

from __future__ import annotations

import pytest

from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import endpoint, endpoint_critic, journal, probe
from mmrlhf_jax.inference.critic import HowToCriticise
from mmrlhf_jax.inference.endpoint import Endpoint
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.probe import MEDIUM, collapsed
from mmrlhf_jax.inference.prompts import plans_of
from mmrlhf_jax.records import RankedRecord, Response
from tests import ranked
from tests.serving import fakes
from tests.serving.fakes import Fake, Reply, chat, refusal
from tests.serving.scoring import RANKS, SIZES, prompts


@pytest.fixture
def source(tmp_path):
    return ranked.write(tmp_path / "data", RANKS, SIZES)


@pytest.fixture(autouse=True)
def quick(monkeypatch, beside):
    """The model is loaded once for all tests, and nothing waits."""
    monkeypatch.setattr(Engine, "load", lambda path, **_: beside)
    monkeypatch.setattr(journal, "PART_SECONDS", 0.0)
    monkeypatch.setattr(endpoint, "_pause", lambda attempt, stated: 0.05)


def with_ids(beside, source, change=lambda ids: ids):
    """Replies like vLLM, which says the tokens that it read, to those who ask: ours, changed."""
    examples, encoder = open_examples(source), beside.encoder("uncritiqued")
    by_text = {}
    for index, texts in enumerate(prompts(source)):
        record, plans = examples.records[index], plans_of(examples[index], encoder)
        own = [encoder.conversation(record, response, plans).tokens.tolist() for response in record.responses]
        by_text |= dict(zip(texts, own, strict=True))

    def reply(body) -> Reply:
        text = "".join(part.get("text", "") for part in body["messages"][0]["content"])
        return chat("a critique", **({"prompt_token_ids": change(by_text[text])} if body.get("return_token_ids") else {}))

    return reply


def checked(beside, source, reply, **more) -> bool:
    with fakes.running(Fake(reply)) as fake:
        client = Endpoint(fake.url, "m")
        return endpoint_critic.EndpointCritic(client, HowToCriticise(most=5)).check_tokens(
            open_examples(source), beside.encoder("uncritiqued")
        )


def one_placeholder(beside):
    """Tokens before their pictures are filled in: one for each."""
    media = beside.encoder("answer").tokenizer.media_ids
    placeholder = beside.config.image_token
    return lambda ids: [placeholder if token == MEDIUM else token for token in collapsed(ids, media)]


def test_equal_tokens_are_equal_with_and_without_filled_in_pictures(beside, source, capsys):
    assert checked(beside, source, with_ids(beside, source))
    assert checked(beside, source, with_ids(beside, source, one_placeholder(beside)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("where", [0, 20, -1])
def test_a_difference_is_an_error_that_shows_both_sides(beside, source, where):
    def change(ids):
        other = list(ids)
        other[where] = 5
        return other

    with pytest.raises(UserError, match=r"record 'group-\d': its server reads other tokens .* there, .* here; serve a model"):
        checked(beside, source, with_ids(beside, source, change))


@pytest.mark.parametrize("change", [lambda ids: ids[:-1], lambda ids: [*ids, 7], lambda ids: ids[1:]])
def test_missing_and_additional_tokens_are_a_difference(beside, source, change):
    with pytest.raises(UserError, match="reads other tokens"):
        checked(beside, source, with_ids(beside, source, change))


def test_another_number_of_tokens_for_a_picture_is_said(beside, source, capsys):
    image = beside.config.image_token
    change = lambda ids: [token for token in ids for _ in range(2 if token == image else 1)]
    assert checked(beside, source, with_ids(beside, source, change))
    assert "prepares them in another way" in capsys.readouterr().err


@pytest.mark.parametrize("status", [None, 400, 422])
def test_a_server_that_does_not_say_its_tokens_is_warned_of(beside, source, capsys, status):
    def reply(body):
        return refusal(status, "return_token_ids: unknown") if status and "return_token_ids" in body else chat()

    assert not checked(beside, source, reply)
    assert capsys.readouterr().err.count("cannot be checked") == 1


def test_every_form_of_prompt_is_probed_and_one_that_is_refused_is_said(beside, source, capsys):
    usual = with_ids(beside, source)

    def no_pictures(body):
        return refusal(400, "text only") if len(body["messages"][0]["content"]) > 1 else usual(body)

    assert not checked(beside, source, no_pictures)
    said = capsys.readouterr().err
    assert "refuses record 'group-0' (400: text only)" in said and "refuses record 'group-2' (400: text only)" in said


def test_the_first_records_of_each_form_are_candidates():
    record = lambda images, video=None: RankedRecord("r", "", (Response("a"),), tuple("abc"[:images]), video)
    records = [record(1), record(1), record(1), record(1), record(0), record(2), record(3), record(0, "v")]
    assert probe.first_of_each_form(records) == [0, 1, 2, 4, 5, 6, 7]
