"""Pictures in a judge's messages have URLs that every server reads, whatever the harness writes."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image

from mmrlhf_jax.serving.conversation import read_conversation
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.limits import Limits
from mmrlhf_jax.serving.protocol import ChatRequest, parse
from mmrlhf_jax.suite.answers import Answer, Answered
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.judges import harness_replies
from mmrlhf_jax.suite.judges.loopback import Loopback
from mmrlhf_jax.suite.judges.picture_urls import sound_url, with_sound_pictures
from tests.suite.support import harness
from tests.suite.support.harness import asked, tasks_of, verdict
from tests.suite.support.judged import judge, judging

JUDGED = [task for task in TASKS.values() if task.judge != "none" and not task.own_metrics]


def encoded(form: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (9, 120, 200)).save(file, form)
    return base64.b64encode(file.getvalue()).decode()


def question(url: str) -> dict:
    parts = [{"type": "text", "text": "Which is better?"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": "m", "messages": [{"role": "user", "content": parts}]}


def served(body: dict) -> list[bytes]:
    """The pictures of a request as `mmrlhf serve` takes them. ApiError if it is refused."""
    return list(read_conversation(parse(ChatRequest, body).messages, Limits()).images)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize(
    "head", ["data:image/jpeg;base64, ", "data:image/png;base64,\n", "DATA:image/jpg;base64,", "data:;base64,"]
)
def test_a_url_has_the_type_of_its_content_and_no_white_space(form, head):
    whole = encoded(form)
    broken = "\r\n".join(whole[place : place + 60] for place in range(0, len(whole), 60))
    for payload in (whole, broken, f"{whole}\n"):
        assert sound_url(head + payload) == f"data:image/{form.lower()};base64,{whole}"
    assert served(question(sound_url(head + broken))) == [base64.b64decode(whole)]


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png", "data:image/png,abc", "data:image/png;base64,@@@@", "data:image/png;base64,", "",
        f"data:image/png;base64,{base64.b64encode(b'no picture').decode()}", "data:image/png;base64",
    ],
)  # fmt: skip
def test_what_is_no_picture_in_base64_stays_as_it_is(url):
    assert sound_url(url) == url


def test_all_else_of_the_messages_stays_as_it_is():
    picture = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64, {encoded('PNG')}", "detail": "low"}}
    messages = [
        {"role": "system", "content": "data:image/jpeg;base64, x"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, picture, "odd", {"type": "image_url", "image_url": 1}]},
        {"role": "user"},
    ]
    before = json.dumps(messages)
    found = with_sound_pictures(messages)
    assert found[1]["content"][1]["image_url"] == {"url": f"data:image/png;base64,{encoded('PNG')}", "detail": "low"}
    found[1]["content"][1] = picture
    assert found == messages and json.dumps(messages) == before


def test_the_judge_gets_the_picture_of_a_question_that_the_harness_writes_as_wildvision_does(tmp_path):
    asked = question(f"data:image/jpeg;base64, {encoded('PNG')}")
    with pytest.raises(ApiError, match="not base64"):
        served(asked)
    with judge(lambda text: "[[A>B]]") as fake, judging(fake, tmp_path / "t.jsonl") as found:
        server = Loopback(found, harness_replies.preference)
        server.begin("0")
        server.reply(json.dumps(asked).encode())
        server.judge()
        assert server.reply(json.dumps(asked).encode())[0] == "[[A>B]]" and server.end().failure is None
    (body,) = fake.asked
    assert served(body) == [base64.b64decode(encoded("PNG"))]


@pytest.mark.slow
@harness.needed
@pytest.mark.parametrize("task", JUDGED, ids=lambda task: task.name)
def test_mmrlhf_serve_takes_every_question_that_the_harness_asks_a_judge(running, tmp_path, task):
    tasks = tasks_of(running, task, tmp_path / "data")
    _, requests = asked(tasks, task)
    answers = {one.document: Answer.to(one.request, "no rule can read this", "stop") for one in requests}
    with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
        found = tasks.score(task, Answered(answers), judged)
    assert fake.asked and found.coverage.missing == {}
    pictures = [served(body) for body in fake.asked]
    assert all(len(each) == (task.name == "wildvision_0617") for each in pictures)
