"""A client of OpenAI's protocol against our own server, and against servers that fail."""

from __future__ import annotations

import asyncio
import base64
import datetime
import email.utils
import io
import json
import shutil
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import endpoint, replies
from mmrlhf_jax.inference.endpoint import Endpoint, Request, Text
from mmrlhf_jax.inference.engine import Prompt
from mmrlhf_jax.inference.messages import user_message
from mmrlhf_jax.records import RankedRecord
from tests import ranked
from tests.serving import fakes
from tests.serving.fakes import Fake, Reply, chat, refusal


def collected(client: Endpoint, requests) -> list[Text]:
    requests = list(requests)
    found = dict(client.texts(requests))
    return [found[number] for number in range(len(requests))]


def asked(*prompts: str) -> list[Request]:
    return [Request(prompt, Example(RankedRecord("r", "", ())), 5) for prompt in prompts]


@pytest.fixture
def fake():
    with fakes.running(Fake()) as running:
        yield running


@pytest.fixture
def at_once(monkeypatch):
    """No waiting between tries; the list has what was waited for."""
    waits, pause = [], endpoint._pause
    monkeypatch.setattr(endpoint, "_pause", lambda *arguments: waits.append(pause(*arguments)) or 0.0)
    return waits


# Our own server --------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_engine_behind_the_server(address, judge, records):
    client = Endpoint(f"{address}/v1", concurrency=3)
    assert asyncio.run(client.check()) == "tiny"
    requests = [Request(record.prompt_text(), records[index], 10) for index, record in enumerate(records.records)] * 2
    found = collected(client, requests)
    wanted = judge.generate([Prompt(records[index]) for index in range(3)], max_new_tokens=10) * 2
    assert [each.text for each in found] == wanted and all(each.error is None and each.tokens for each in found)


def test_a_prompt_that_is_refused_has_its_reason_and_the_others_their_answers(address, records):
    client = Endpoint(address)
    asyncio.run(client.check())
    requests = [Request("a", records[1], 5), Request("a" * 9000, records[1], 5), Request("b", records[1], 5)]
    found = collected(client, requests)
    assert [each.error is None for each in found] == [True, False, True]
    assert "this server has room for" in found[1].error


@pytest.mark.parametrize(
    ("url", "model", "says"), [("/nothing", None, "404"), ("", "other", "does not serve 'other', but tiny")]
)
def test_what_concerns_every_request_ends_the_pass(address, url, model, says):
    with pytest.raises(UserError, match=says):
        asyncio.run(Endpoint(f"{address}{url}", model).check())


# Requests --------------------------------------------------------------------------------------------------------------


def test_a_request_is_greedy_with_a_seed_and_its_pictures_come_first(fake):
    picture = ranked.picture((8, 6), 1)
    example = Example(RankedRecord("r", "", (), ("a.png",)), (picture,))
    assert collected(Endpoint(fake.url, "m"), [Request("What?", example, 7)]) == [Text("fine", "stop", 3)]
    (body,) = fake.asked
    (message,) = body.pop("messages")
    assert body == {"model": "m", "max_completion_tokens": 7, "temperature": 0.0, "top_p": 1.0, "seed": 0}
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    assert message == {"role": "user", "content": content}


def test_media_inside_a_text_stay_in_their_places():
    pictures = tuple(ranked.picture((8, 6), seed) for seed in range(2))
    example = Example(RankedRecord("r", "", (), ("a", "b")), pictures)
    (message,) = user_message(("", " or ", ""), example)
    assert [part["type"] for part in message["content"]] == ["image_url", "text", "image_url"]
    (message,) = user_message(("In ", " or ", "?"), example)
    assert [part.get("text") for part in message["content"]] == ["In ", None, " or ", None, "?"]
    video = Example(RankedRecord("r", "", (), (), "v"), (), pictures)
    (message,) = user_message("What?", video)
    head, *frames = message["content"][0]["video_url"]["url"].split(",")
    assert head == "data:video/jpeg;base64" and [base64.b64decode(each) for each in frames] == list(pictures)


def edited(change, kind: str, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    file = io.BytesIO()
    change(Image.fromarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def on_its_side() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return edited(lambda image: image, "JPEG", exif=exif)


@pytest.mark.parametrize(
    "data",
    [on_its_side(), edited(lambda image: image.convert("RGBA"), "PNG"), edited(lambda image: image, "TIFF")],
    ids=["on its side", "transparent", "TIFF"],
)
def test_a_picture_that_servers_decode_otherwise_is_sent_as_the_pixels_that_are_scored(data):
    (message,) = user_message("What?", Example(RankedRecord("r", "", (), ("a",)), (data,)))
    head, code = message["content"][0]["image_url"]["url"].split(",")
    with Image.open(io.BytesIO(base64.b64decode(code))) as sent:
        assert head == "data:image/png;base64" and sent.mode == "RGB"
        assert np.array_equal(np.asarray(sent), np.asarray(decode_image(data, "")))


def test_a_picture_that_cannot_be_read_is_named_by_its_record():
    with pytest.raises(UserError, match=r"record 'r', image 0.*not an image"):
        user_message("What?", Example(RankedRecord("r", "", (), ("a",)), (b"nothing",)))


def test_requests_go_out_in_their_order_and_are_taken_when_their_turn_comes():
    taken, running, most = [], [], []
    lock, going = threading.Lock(), threading.Semaphore(0)

    def reply(body):
        with lock:
            running.append(body)
            most.append(len(running))
        going.release()
        with lock:
            running.remove(body)
        return chat()

    def requests():
        for number, request in enumerate(asked(*"abcdefghij")):
            taken.append(number)
            yield request

    with fakes.running(Fake(reply)) as fake:
        found = Endpoint(fake.url, "m", concurrency=2).texts(requests())
        next(found)
        assert len(taken) <= 3
        assert len(list(found)) == 9 and max(most) <= 2
        assert sorted(fake.texts()) == list("abcdefghij") and fake.texts()[0] in "ab" and fake.texts()[-1] in "ij"


def test_a_key_is_sent_and_never_said(fake, monkeypatch):
    monkeypatch.setenv(endpoint.KEY, " secret-key ")
    asyncio.run(Endpoint(fake.url).check())
    assert fake.headers[0]["authorization"] == "Bearer secret-key"
    fake.first.append(refusal(401, "wrong key: secret-key"))
    with pytest.raises(UserError, match=rf"401: wrong key: \*\*\*; {endpoint.KEY} must hold") as error:
        asyncio.run(Endpoint(fake.url).check())
    assert "secret" not in str(error.value)
    long = refusal(401, f"{'x' * (replies.LONGEST_REASON - 12)} secret-key")  # which is cut in the middle of the key
    fake.first.append(long)
    with pytest.raises(UserError, match="401: xxx") as error:
        asyncio.run(Endpoint(fake.url).check())
    assert "secret" not in str(error.value)
    monkeypatch.setenv(endpoint.KEY, "a\nb")
    with pytest.raises(UserError, match="characters that an HTTP header cannot have"):
        Endpoint(fake.url)


def test_no_key_is_sent_without_one(fake, monkeypatch):
    monkeypatch.delenv(endpoint.KEY, raising=False)
    asyncio.run(Endpoint(fake.url).check())
    assert "authorization" not in fake.headers[0]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_key_that_goes_unencrypted_to_another_machine_is_warned_of(monkeypatch, capsys, host, at_once):
    monkeypatch.setenv(endpoint.KEY, "k")
    for url, warns in ((f"http://{host}:9", False), ("http://nowhere.invalid", True)):
        with pytest.raises(UserError):
            asyncio.run(Endpoint(url).check())
        assert ("unencrypted" in capsys.readouterr().err) == warns


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:8000", "not an address"),
        ("http://", "not an address"),
        ("ftp://h", "not an address"),
        ("http://h:99999", "not an address"),
        ("http://h:x", "not an address"),
        ("http://me:secret@h", "a name or a password"),
        ("http://me:secret@h:x", "not an address"),
        ("http://h/v1?key=1", "something follows the path"),
    ],
)
def test_what_is_no_address_is_refused_without_showing_a_password(url, says):
    with pytest.raises(UserError, match=says) as error:
        Endpoint(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/v1/completions"])
def test_an_address_may_end_as_other_programs_want_it(end):
    assert Endpoint(f"https://h/base{end}").url == "https://h/base"


@pytest.mark.parametrize("path", ["/chat", "/completions/chat", "/v1beta"])
def test_a_path_that_only_looks_like_the_protocols_is_kept(path):
    assert Endpoint(f"http://h{path}", "m").url == Endpoint(f"http://h{path}/v1", "m").url == f"http://h{path}"


# Replies ---------------------------------------------------------------------------------------------------------------


def test_what_may_pass_is_tried_again(fake, at_once):
    fake.first += [refusal(503), refusal(429, retry_after="0"), Reply(0)]
    assert asyncio.run(Endpoint(fake.url).check()) == "m" and not fake.first
    fake.first += [refusal(status) for status in (500, 502, 504, 408, 409, 425)]
    assert collected(Endpoint(fake.url, "m"), asked("a"))[0].text == "fine" and not fake.first


def test_what_does_not_pass_ends_with_its_last_reason(fake, at_once):
    fake.first += [refusal(503, "loading")] * endpoint.FIRST_TRIES
    with pytest.raises(UserError, match=f"/v1/models: 503: loading, {endpoint.FIRST_TRIES} times"):
        asyncio.run(Endpoint(fake.url).check())
    assert not fake.first
    fake.first += [refusal(503, "loading")] * endpoint.TRIES
    with pytest.raises(UserError, match=f"503: loading, {endpoint.TRIES} times"):
        collected(Endpoint(fake.url, "m"), asked("a"))
    assert not fake.first


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (refusal(500, "bad luck"), "500: bad luck"),
        (Reply(0), "RemoteProtocolError: Server disconnected without sending a response."),
        (Reply(200, b"{", length=99), "RemoteProtocolError: peer closed connection"),
    ],
    ids=["error", "no reply", "half of a reply"],
)
def test_a_request_at_which_the_server_always_fails_is_refused_when_others_are_answered(at_once, failure, says):
    def reply(body):
        return failure if body["messages"][0]["content"][0]["text"] == "b" else chat()

    with fakes.running(Fake(reply)) as fake:
        found = collected(Endpoint(fake.url, "m", concurrency=2), asked(*"abcdefghijklmnopqrst"))
    assert [each.error is None for each in found] == [True, False, *[True] * 18]
    assert found[1].error.startswith(says) and found[1].error.endswith(f", {endpoint.TRIES} times")


@pytest.mark.parametrize("alive", [True, False])
def test_where_no_others_are_under_way_a_short_question_shows_whose_fault_it_is(at_once, alive):
    def reply(body):
        content = body["messages"][0]["content"]
        fails = not alive if content == "Hello" else content[0]["text"] == "b"
        return refusal(500, "bad luck") if fails else chat()

    with fakes.running(Fake(reply)) as fake:
        client = Endpoint(fake.url, "m", concurrency=1)
        if alive:
            assert [each.error is None for each in collected(client, asked(*"abc"))] == [True, False, True]
        else:
            with pytest.raises(UserError, match="500: bad luck"):
                collected(client, asked(*"abc"))


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_refusal_of_one_request_is_its_error(fake, status):
    fake.first.append(refusal(status, "too long"))
    assert sorted(str(each.error) for each in collected(Endpoint(fake.url, "m"), asked("a", "b"))) == [
        f"{status}: too long", "None"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (refusal(401), "401: no; MMRLHF_ENDPOINT_KEY must hold"),
        (refusal(403), "403: no; MMRLHF_ENDPOINT_KEY must hold"),
        (refusal(404, "no such model"), "404: no such model"),
        (refusal(418), "418"),
        (refusal(503, "gone", x_should_retry="false"), "503: gone$"),
        (refusal(307, location="https://else/v1"), "refers to 'https://else/v1'"),
        (refusal(429, retry_after="7200"), "asks to come back in 7200 s"),
    ],
)
def test_what_concerns_every_request_ends_the_pass_at_once(fake, reply, says):
    fake.first.append(reply)
    with pytest.raises(UserError, match=says):
        collected(Endpoint(fake.url, "m"), asked("a"))
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    ("stated", "least"),
    [("7", 7.0), ("1.5", 1.5), ("date", 25.0), ("", 0.5), ("soon", 0.5), ("-3", 0.5), ("nan", 0.5), ("inf", 0.5)],
)
def test_the_server_says_how_long_to_wait(fake, at_once, stated, least):
    if stated == "date":
        stated = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30), usegmt=True)
    fake.first.append(refusal(429, retry_after=stated))
    collected(Endpoint(fake.url, "m"), asked("a"))
    assert least <= at_once[0] < max(1.001, least + 6)


MALFORMED = [
    (Reply(200, b"<html>welcome</html>"), "not JSON, or is cut off: <html>welcome</html>"),
    (Reply(200, b""), "not JSON, or is cut off"),
    (Reply(200, b'{"choices": [{"message": {"content": "fi'), "not JSON, or is cut off"),
    (Reply(200, b"\xff\xfe"), "not JSON, or is cut off"),
    (Reply(200, b"[" * 100_000), "not JSON, or is cut off"),
    (Reply(200, b"{}"), "choices: field required"),
    (Reply(200, b"[]"), "not a reply of OpenAI's protocol"),
    (Reply(200, b'{"choices": []}'), "choices: list should have at least 1 item"),
    (Reply(200, b'{"choices": [{"message": null, "finish_reason": "stop"}]}'), r"choices\.0\.message"),
    (chat(7), r"choices\.0\.message\.content"),
    (chat("a", usage={"completion_tokens": -1}), r"usage\.completion_tokens"),
    (Reply(200, chat().body.replace(b"3", b"NaN")), "must be a finite number, found NaN"),
    (Reply(200, chat().body.replace(b"3", b"1e999")), "must be a finite number"),
    (Reply(200, chat("\ud800").body), "half of a character"),
]


@pytest.mark.parametrize(("reply", "says"), MALFORMED)
def test_a_reply_that_is_not_what_the_protocol_says_ends_the_pass_in_one_line(fake, at_once, reply, says):
    fake.reply = lambda body: reply
    with pytest.raises(UserError, match=f"{says}.*, {endpoint.MALFORMED_TRIES} times") as error:
        collected(Endpoint(fake.url, "m"), asked("a"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_reply_that_is_malformed_once_is_asked_for_again(fake, at_once):
    fake.first += [MALFORMED[0][0], Reply(200, b"{}", length=99)]
    assert collected(Endpoint(fake.url, "m"), asked("a"))[0].text == "fine"


def test_a_reply_without_end_is_cut_off(fake, monkeypatch):
    monkeypatch.setattr(endpoint, "LARGEST_REPLY", 1000)
    fake.first.append(chat("a" * 2000))
    with pytest.raises(UserError, match="a reply of more than 1000 bytes"):
        collected(Endpoint(fake.url, "m"), asked("a"))


def test_a_reply_without_usage_or_content_is_read(fake):
    body = json.loads(chat(None, "length").body)
    del body["usage"]
    fake.reply = lambda _: Reply(200, json.dumps(body).encode())
    assert collected(Endpoint(fake.url, "m"), asked("a")) == [Text("", "length", None)]


@pytest.mark.parametrize("models", [(), ("a", "b")])
def test_a_server_of_several_models_wants_one_named(models):
    with fakes.running(Fake(models=models)) as fake, pytest.raises(UserError, match="name one"):
        asyncio.run(Endpoint(fake.url).check())


@pytest.mark.parametrize("body", [b"{}", b'{"data": [{"name": "m"}]}', b"no"])
def test_a_list_of_models_that_is_none_is_refused(fake, at_once, body):
    fake.first += [Reply(200, body)] * endpoint.MALFORMED_TRIES
    with pytest.raises(UserError, match="/v1/models: "):
        asyncio.run(Endpoint(fake.url).check())


def test_a_server_that_does_not_answer_in_time_is_named(at_once):
    held = threading.Event()
    with fakes.running(Fake(lambda body: held.wait(5) and chat())) as fake:
        with pytest.raises(UserError, match=r"no reply within 0 s|ReadTimeout"):
            collected(Endpoint(fake.url, "m", timeout=0.05), asked("a"))
        held.set()


def test_a_server_that_is_not_there_is_named(at_once, capsys):
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9.*ConnectError"):
        asyncio.run(Endpoint("http://127.0.0.1:9").check())
    assert "trying again in" in capsys.readouterr().err


def test_certificates_are_verified(tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *name], check=True, capture_output=True)
    with fakes.running(Fake(), (certificate, key)) as fake:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with pytest.raises(UserError, match=r"self-signed certificate.*; SSL_CERT_FILE names") as error:
            asyncio.run(Endpoint(fake.url).check())
        assert "times" not in str(error.value)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert asyncio.run(Endpoint(fake.url).check()) == "m"


def test_reasons_are_the_servers_own_words_on_one_line():
    say = lambda body: replies.reason_of(400, body)
    assert say(b'{"error": {"message": "too\\nlong"}}') == "400: too long"
    assert say(b'{"object": "error", "message": "too long", "code": 400}') == "400: too long"
    assert say(b'{"detail": "Not Found"}') == "400: Not Found"
    assert say(b'{"detail": [{"loc": ["body"]}]}') == "400: {'detail': [{'loc': ['body']}]}"
    assert say(b"") == "400" and say(b"<h1>\x1b[31mno\x00</h1>") == "400: <h1> [31mno </h1>"
    assert len(say(b"a" * 10_000)) < 320
