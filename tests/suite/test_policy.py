"""Requests of benchmarks as prompts, and policies that answer them: an endpoint, and a tiny model."""

from __future__ import annotations

import dataclasses

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.progress import Progress
from mmrlhf_jax.suite import policy as policies
from mmrlhf_jax.suite.policy import EndpointPolicy, EnginePolicy, example_of
from mmrlhf_jax.suite.request import Medium, Request
from tests import tiny
from tests.serving import fakes
from tests.serving.fakes import Fake, chat, refusal
from tests.suite.support import made_up
from tests.suite.support.asked import png

OPTIONS = {"max_new_tokens": 6, "temperature": 0.0}


def image(number: int) -> Medium:
    return Medium("image", f"{number}", png(number))


def request(*texts: str, media=(), document: str = "0", **options) -> Request:
    return Request(document, texts, tuple(media), OPTIONS | options)


def test_media_come_first_or_in_their_places():
    first = request("", "", "What differs?", media=(image(1), image(2)))
    assert example_of(first).record.prompt_text() == "What differs?"
    assert example_of(first).images == (png(1), png(2))
    inside = request("Compare ", " with ", ".", media=(image(1), image(2)))
    assert inside.prompt == "Compare <image> with <image>."
    assert example_of(inside).record.prompt_text() == ("Compare ", " with ", ".")


def test_tags_in_the_text_are_places_if_there_are_as_many_as_media():
    two = (image(1), image(2))
    assert example_of(request("", "", "<image> and <image>?", media=two)).record.prompt_text() == ("", " and ", "?")
    assert example_of(request("", "", "<image>, which?", media=two)).record.prompt_text() == "<image>, which?"
    assert example_of(request("Say <image>.")).record.prompt_text() == "Say <image>."


def test_a_video_is_its_frames_and_is_decoded_once(tmp_path, monkeypatch):
    made_up.write_video(tmp_path / "clip.mp4", 0)
    video = Medium("video", "v", path=str(tmp_path / "clip.mp4"))
    found = example_of(request("", "What moves?", media=(video,), video_frames=3))
    assert (len(found.frames), found.images, found.record.video) == (3, (), "video")
    decoded = []
    monkeypatch.setattr(policies, "read_video_frames", lambda path, count: decoded.append(path) or [b"frame"] * count)
    assert [len(example_of(request("", "?", media=(video,), video_frames=n)).frames) for n in (3, 5, 5)] == [3, 5, 5]
    other = dataclasses.replace(video, digest="w")
    assert len(example_of(request("", "?", media=(other,), video_frames=5)).frames) == 5
    assert len(decoded) == 2  # of five times: with other frames, and with another content
    monkeypatch.undo()
    with pytest.raises(UserError, match="2 videos and 0 pictures"):
        example_of(request("", "", "?", media=(video, video), video_frames=3))
    with pytest.raises(UserError, match=r"nothing\.mp4"):
        example_of(request("", "?", media=(Medium("video", "v", path=str(tmp_path / "nothing.mp4")),), video_frames=3))


def answered(policy, requests) -> dict[str, tuple]:
    return {each.document: tuple(found) for each, found in policy.answers(iter(requests), Progress("answers", len(requests)))}


def test_an_endpoint_answers_refuses_and_is_asked_greedily():
    def reply(body):
        text = "".join(part.get("text", "") for part in body["messages"][-1]["content"])
        return refusal(400, "too long") if "long" in text else chat(f"<{text}> END more", "length")

    requests = [request("", f"Question {n}", media=(image(n),), document=f"{n}") for n in range(3)]
    requests.append(request("a long one", document="3"))
    requests.append(request("", "broken", media=(Medium("image", "x", b"no picture"),), document="4"))
    requests.append(request("ends early", document="5", until=["END", "Q"]))
    with fakes.running(Fake(reply)) as fake:
        policy = EndpointPolicy(fake.url, None, 4)
        found = answered(policy, requests)
    assert found["1"] == ("<Question 1> END more", "length", None)
    assert found["5"] == ("<ends early> ", "stop", None)
    assert "too long" in found["3"][2] and "not an image" in found["4"][2]
    assert {body["temperature"] for body in fake.asked} == {0.0}
    assert {body["max_completion_tokens"] for body in fake.asked} == {6}
    assert policy.made_with == {"model": "m"}  # an address may change between runs


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    raw = tiny.config(text={"tie_word_embeddings": False})
    return Engine.load(str(tiny.checkpoint(tmp_path_factory.mktemp("policy"), raw)), batch=4)


@pytest.mark.long
def test_a_model_answers_as_it_does_alone_in_batches_and_says_why_it_cannot(engine, tmp_path):
    made_up.write_video(tmp_path / "clip.mp4", 1)
    requests = [request("", f"Question {n}", media=(image(n),), document=f"{n}") for n in range(3)]
    requests.append(request("", "What moves?", media=(Medium("video", "v", path=str(tmp_path / "clip.mp4")),), document="3",
                            video_frames=2))  # fmt: skip
    requests.append(request("no picture", document="4"))
    requests.append(request("", "broken", media=(Medium("image", "x", b"no picture"),), document="5"))
    policy = EnginePolicy(engine)
    found = answered(policy, requests)
    assert sorted(found) == [f"{n}" for n in range(6)]
    assert "not an image" in found["5"][2]
    for each in requests[:5]:
        assert answered(policy, [each]) == {each.document: found[each.document]}
        assert found[each.document][2] is None and found[each.document][1] in ("stop", "length")
    shorter = dataclasses.replace(requests[0], options=OPTIONS | {"max_new_tokens": 2})
    (short,) = answered(policy, [shorter]).values()
    assert found["0"][0].startswith(short[0])
