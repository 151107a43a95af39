"""Short comments become full critiques, written by a server or by a model here: `mmrlhf expand`."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from mmrlhf_jax import config
from mmrlhf_jax.cli import app
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.overlay import with_critiques
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.growing import writers
from mmrlhf_jax.growing.comments import Comment, comments_of, expansion_prompt
from mmrlhf_jax.growing.expansion import Expansion
from mmrlhf_jax.growing.writers import HereWriter
from mmrlhf_jax.inference import endpoint, journal
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.records import RankedRecord, Response
from mmrlhf_jax.training import loop
from tests import ranked
from tests.serving import fakes
from tests.serving.fakes import Fake, Reply, chat, refusal

SIZES = [[(40, 30)], [], [(30, 30), (50, 20)]]
RANKS = [(1, 2), (1, 2, 2), (2, 1)]
COUNT = 7


@pytest.fixture
def source(tmp_path):
    return ranked.write(tmp_path / "data", RANKS, SIZES)


@pytest.fixture(autouse=True)
def quick(monkeypatch, beside):
    """The model is loaded once for all tests, and nothing waits."""
    monkeypatch.setattr(Engine, "load", lambda path, **_: beside)
    monkeypatch.setattr(journal, "PART_SECONDS", 0.0)
    monkeypatch.setattr(endpoint, "_pause", lambda attempt, stated: 0.02)


def expand(source, out, model: str, *more: str):
    result = CliRunner().invoke(app, ["expand", "--model", model, "--data", str(source), "--out", str(out), *more])
    sys.stderr.write(result.stderr)
    return result


def expanded(source, out, model: str, *more: str) -> list[dict]:
    result = expand(source, out, model, *more)
    assert result.exception is None, result.exception
    assert not list(out.parent.glob(f".{out.name}*"))
    return read(out)


def refused(source, out, model: str, *more: str) -> str:
    result = expand(source, out, model, *more)
    assert isinstance(result.exception, UserError), result
    assert not out.exists() and "\n" not in str(result.exception)
    return str(result.exception)


def read(path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def rewrite(source, change) -> None:
    rows = read(source)
    for row in rows:
        for response in row["responses"]:
            change(row, response)
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))


def responses(rows) -> list[dict]:
    return [response for row in rows for response in row["responses"]]


def prompts(source) -> list[str]:
    return [expansion_prompt(r, comment) for r in open_examples(source).records for comment in comments_of(r, "critique")]


def about(source):
    """A reply that names the number of the comment."""
    numbers = {text: number for number, text in enumerate(prompts(source))}
    return lambda body: chat(f"  full critique {numbers[body['messages'][0]['content'][-1]['text']]}\n")


def failing(source, wrong, answer: Reply):
    """Replies with `answer` to the prompts of these numbers."""
    usual, bad = about(source), {prompts(source)[number] for number in wrong}
    return lambda body: answer if body["messages"][0]["content"][-1]["text"] in bad else usual(body)


FULL = [f"full critique {number}" for number in range(COUNT)]


def test_the_prompt_is_the_papers():
    record = RankedRecord("r", "Is <image> it {reason}?", (Response("No {question}", critique="x"),), ("a.png",))
    assert expansion_prompt(record, Comment(0, "wrong {answer}")) == (
        "You will receive an image-related question, an answer, and a comment provided by a human expert for the answer. Your"
        " task is to expand the human comment comprehensively while retaining its strengths and weaknesses, making it more"
        " professional, and logically rigorous. Focus only on expanding the comment and do not answer the question. Ensure the"
        " expanded comment is strictly based on the provided human comment and avoids any speculation or uncertain content."
        " [Question:] Is  it {reason}? [Answer:] No {question} [Human Comment for the answer:] wrong {answer} Expanded Comment:"
    )


def test_full_critiques_lie_beside_the_comments_and_everything_else_is_as_it_was(source, tmp_path, capsys):
    before, out = read(source), source.parent / "expanded.jsonl"
    with fakes.running(Fake(about(source))) as fake:
        rows = expanded(source, out, fake.url, "--concurrency", "1", "--max-new-tokens", "9")
    assert [response.pop("enhanced_critique") for response in responses(rows)] == FULL
    for response in responses(rows):
        by = response.pop("enhanced_by")
        assert (by["model"], by["endpoint"], len(by["prompt"])) == ("m", fake.url, 16)
    before[1].pop("images")  # an empty list
    assert rows == before
    assert fake.texts() == prompts(source)
    assert {len(body["messages"][0]["content"]) for body in fake.asked} == {1}  # no pictures
    assert {(body["temperature"], body["max_completion_tokens"], body["model"]) for body in fake.asked} == {(0, 9, "m")}
    assert len({body["seed"] for body in fake.asked}) == COUNT
    said = capsys.readouterr().err
    assert "7 comments of 7 responses were expanded (`--set data.critiques=enhanced_critique`" in said
    assert "data.media_root" not in said  # it lies where the source does
    assert open_examples(out)[0].images == open_examples(source)[0].images


def test_training_takes_the_full_critiques_where_it_is_told_to(source, tmp_path):
    out = source.parent / "expanded.jsonl"
    with fakes.running(Fake(failing(source, [2], refusal(400)))) as fake:
        expanded(source, out, fake.url)
    examples = open_examples(out)
    found = [r.critique for record in with_critiques(examples, "enhanced_critique", "data").records for r in record.responses]
    assert found == [None if number == 2 else text for number, text in enumerate(FULL)]
    assert [r.critique for record in examples.records for r in record.responses] == [
        r["critique"] for r in responses(read(source))
    ]


def test_the_writer_may_see_the_pictures(source, tmp_path):
    with fakes.running(Fake(about(source))) as fake:
        expanded(source, tmp_path / "out.jsonl", fake.url, "--with-media", "--concurrency", "1")
    kinds = [[part["type"] for part in body["messages"][0]["content"]] for body in fake.asked]
    assert kinds == [["image_url", "text"]] * 2 + [["text"]] * 3 + [["image_url", "image_url", "text"]] * 2


@pytest.mark.long
def test_texts_of_a_model_here_that_are_cut_off_are_no_critiques(directory, source, tmp_path):
    says = refused(source, tmp_path / "out.jsonl", str(directory), "--max-new-tokens", "4")  # random weights do not stop
    assert "expands none of 7 comments (cut off at 4 new tokens (--max-new-tokens))" in says


@pytest.mark.long
def test_both_kinds_of_writers_give_the_same_texts(directory, address, beside, source, tmp_path, monkeypatch):
    """Texts that are cut off are taken as whole ones here, because random weights do not stop."""
    whole = writers.Answer
    monkeypatch.setattr(writers, "Answer", lambda text="", is_cut=False, error=None: whole(text, False, error))
    texts = []
    for number, model in enumerate((address, str(directory))):
        rows = expanded(source, tmp_path / f"{number}.jsonl", model, "--max-new-tokens", "24", "--with-media")
        texts.append([response.get("enhanced_critique") for response in responses(rows)])
    assert texts[0] == texts[1] and sum(text is not None for text in texts[0]) >= 5
    by = responses(rows)[0]["enhanced_by"]
    assert (by["model"], by["fingerprint"]) == (str(directory), beside.fingerprint)


# What fails ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (refusal(400, "too long"), "400: too long"),
        (refusal(422, "odd"), "422: odd"),
        (refusal(413, "large"), "413: large"),
        (chat(" \n"), "nothing was written"),
        (chat(None), "nothing was written"),
        (chat("half of", "length"), "cut off at 1024 new tokens (--max-new-tokens)"),
        (chat("half", "content_filter"), "the server ended the text: content_filter"),
        (Reply(200, b"{}"), "choices: field required"),
    ],
)
def test_what_fails_has_its_reason_is_counted_and_may_be_asked_for_alone(source, tmp_path, capsys, answer, says):
    out = source.parent / "out.jsonl"
    with fakes.running(Fake(failing(source, [3, 5], answer))) as fake:
        rows = expanded(source, out, fake.url)
        for number, response in enumerate(responses(rows)):
            assert ("enhanced_critique" in response, "expansion_error" in response) == (number not in (3, 5), number in (3, 5))
            assert number not in (3, 5) or says in response["expansion_error"]
        said = capsys.readouterr().err
        assert "5 comments of 7 responses were expanded" in said
        assert "2 comments were not expanded (the first is of record 'group-1', response 1: " in said and says in said
        asked, fake.reply = len(fake.asked), about(source)
        again = expanded(out, source.parent / "again.jsonl", fake.url)
    assert sorted(fake.texts()[asked:]) == sorted(prompts(source)[number] for number in (3, 5))
    assert [response["enhanced_critique"] for response in responses(again)] == FULL
    assert not any("expansion_error" in response for response in responses(again))
    said = capsys.readouterr().err
    assert "2 comments of 7 responses were expanded" in said and "5 responses had their enhanced_critique before" in said


def test_what_passes_is_asked_again(source, tmp_path):
    with fakes.running(Fake(about(source))) as fake:
        fake.first = [refusal(503), refusal(429, retry_after="0"), Reply(0)]
        rows = expanded(source, tmp_path / "out.jsonl", fake.url, "--concurrency", "1")
    assert [response["enhanced_critique"] for response in responses(rows)] == FULL


@pytest.mark.parametrize("status", [401, 404])
def test_a_key_or_model_that_is_not_known_ends_the_pass(source, tmp_path, status):
    with fakes.running(Fake(lambda body: refusal(status))) as fake:
        assert str(status) in refused(source, tmp_path / "out.jsonl", fake.url)
    assert len(fake.asked) <= COUNT


def test_a_server_that_refuses_everything_ends_the_pass(source, tmp_path):
    with fakes.running(Fake(lambda body: refusal(400, "bad field"))) as fake:
        assert "m expands none of 7 comments (400: bad field)" in refused(source, tmp_path / "out.jsonl", fake.url)


def test_a_picture_that_a_model_here_cannot_read_is_its_own_records_error(directory, source):
    (source.parent / "0_0.png").write_bytes(b"no picture")
    wanted = Expansion(open_examples(source), "critique", with_media=True)
    ((_, broken),) = HereWriter(Engine.load(str(directory)), "tiny", 4).answers([wanted.prompt(0, Comment(0, "fine"))])
    assert "record 'group-0'" in broken.error


def test_a_picture_that_cannot_be_read_is_its_own_records_error_before_a_server_sees_it(source, tmp_path):
    usual = about(source)
    (source.parent / "0_0.png").write_bytes(b"no picture")
    with fakes.running(Fake(usual)) as fake:
        rows = expanded(source, tmp_path / "out.jsonl", fake.url, "--with-media")
    assert ["expansion_error" in response for response in responses(rows)] == [True] * 2 + [False] * 5
    assert "record 'group-0'" in responses(rows)[0]["expansion_error"] and len(fake.asked) == 5


# What is expanded ------------------------------------------------------------------------------------------------------


def test_responses_without_a_comment_are_left_as_they_are_and_counted(source, tmp_path, capsys):
    rows = read(source)
    del rows[0]["responses"][0]["critique"]
    for response in rows[2]["responses"]:
        response["critique"] = " "
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with fakes.running(Fake()) as fake:
        made = expanded(source, tmp_path / "out.jsonl", fake.url)
    assert ["enhanced_critique" in response for response in responses(made)] == [False, True, True, True, True, False, False]
    assert len(fake.asked) == 4
    assert "3 responses have no comment in 'critique'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" Wrong. ", "Wrong."),
        (["Wrong.", " ", "Short."], "Wrong.\nShort."),
        ({"helpfulness": "Short.", "ethics": ""}, "helpfulness: Short."),
    ],
)
def test_comments_may_be_in_another_field_and_in_several_parts(source, tmp_path, value, text):
    rewrite(source, lambda row, response: response.update(why=value))
    with fakes.running(Fake()) as fake:
        expanded(source, tmp_path / "out.jsonl", fake.url, "--field", "why")
    assert all(asked.endswith(f"[Human Comment for the answer:] {text} Expanded Comment:") for asked in fake.texts())


def test_what_cannot_be_expanded_is_refused_before_anything_is_asked(source, tmp_path):
    out = tmp_path / "out.jsonl"
    with fakes.running(Fake()) as fake:
        assert "no response has a comment in its field 'why'" in refused(source, out, fake.url, "--field", "why")
        assert "must end in .jsonl" in refused(source, tmp_path / "out", fake.url)
        rewrite(source, lambda row, response: response.update(why=3))
        says = refused(source, out, fake.url, "--field", "why")
        assert "record 'group-0', response 0: why must be text, a list of texts, or an object of texts, found 3" in says
        rewrite(source, lambda row, response: response.update(enhanced_critique="x"))
        assert "every comment has its enhanced_critique already" in refused(source, out, fake.url)
        assert "is no server's address" in refused(source, out, str(tmp_path), "--endpoint-model", "m")
    assert not fake.asked


def test_sets_of_one_weight_become_one_and_weights_are_refused(source, tmp_path):
    other, mixture, out = tmp_path / "other.jsonl", tmp_path / "mixture.yaml", tmp_path / "out.jsonl"
    rows = [row | {"id": f"other {row['id']}"} for row in read(source)]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = f"datasets:\n  - {{path: {source}}}\n  - {{path: {other}, media_root: {source.parent}"
    mixture.write_text(f"{sets}, weight: 2}}\n")
    with fakes.running(Fake()) as fake:
        assert "weights records cannot hold; expand its sets one by one" in refused(mixture, out, fake.url)
        mixture.write_text(f"{sets}}}\n")
        made = expanded(mixture, out, fake.url)
    assert [row["id"] for row in made] == [row["id"] for row in (*read(source), *rows)]
    assert open_examples(out)[3].images == open_examples(source)[0].images


# Media -----------------------------------------------------------------------------------------------------------------


def test_media_elsewhere_are_named_for_training(source, tmp_path, capsys):
    out = tmp_path / "elsewhere" / "out.jsonl"
    with fakes.running(Fake()) as fake:
        rows = expanded(source, out, fake.url)
    assert f"--set data.media_root={source.parent}`" in capsys.readouterr().err
    assert rows[2]["images"] == read(source)[2]["images"]
    assert open_examples(out, source.parent)[2].images == open_examples(source)[2].images


def test_media_need_not_be_there_unless_the_writer_sees_them(source, tmp_path):
    (source.parent / "0_0.png").unlink()
    with fakes.running(Fake(about(source))) as fake:
        rows = expanded(source, tmp_path / "out.jsonl", fake.url)
        assert "0_0.png" in refused(source, tmp_path / "seen.jsonl", fake.url, "--with-media")
    assert [response["enhanced_critique"] for response in responses(rows)] == FULL


def test_media_that_are_no_files_are_put_beside_the_result(source, tmp_path, capsys):
    built, out = tmp_path / "built", tmp_path / "elsewhere" / "out.jsonl"
    build(source, built, jobs=1)
    with fakes.running(Fake()) as fake:
        expanded(built, out, fake.url)
    assert "its media were copied beside it" in capsys.readouterr().err
    for number in range(3):
        assert open_examples(out)[number].images == open_examples(source)[number].images


def test_pictures_inside_parquet_files_are_put_beside_the_result(tmp_path):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    picture = ranked.picture((40, 30), 1)
    cell = {"bytes": picture, "path": "x"}
    row = {"id": "1", "prompt": "p", "chosen": "A", "rejected": "B", "chosen_reason": "right", "rejected_reason": "no"}
    row["image"] = cell
    parquet.write_table(arrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    out = tmp_path / "elsewhere" / "out.jsonl"
    with fakes.running(Fake()) as fake:
        (made,) = expanded(tmp_path / "rows.parquet", out, fake.url)
    assert all(response["enhanced_critique"] == "fine" for response in made["responses"])
    assert open_examples(out)[0].images == (picture,)


def test_the_authors_annotations_are_expanded_as_they_are_published(source, tmp_path):
    row = {
        "id": "1",
        "question": "<image>\nWhat is it?",
        "image": "0_0.png",
        "models_output": ["A kite.", "A bird."],
        "final_ranking": [1, 2],
        "helpfulness": [5, 2],
        "faithfulness": [5, 1],
        "ethical": [5, 5],
        "score_reasons": ["Right.", {"helpfulness": "Short.", "faithfulness": "Wrong."}],
    }
    published, out = source.parent / "data.jsonl", source.parent / "out.jsonl"
    published.write_text(json.dumps(row) + "\n")
    with fakes.running(Fake()) as fake:
        expanded(published, out, fake.url)
        expanded(out, source.parent / "all.jsonl", fake.url, "--field", "score_reasons")
    assert "[Question:] What is it? [Answer:] A kite. [Human Comment for the answer:] Right. Expanded" in fake.texts()[0]
    assert "[Human Comment for the answer:] helpfulness: Short.\nfaithfulness: Wrong. Expanded" in fake.texts()[1]
    before, after = open_examples(published).records[0], open_examples(source.parent / "all.jsonl").records[0]
    assert (after.prompt_text(), after.images, after.pairs()) == (before.prompt_text(), before.images, before.pairs())
    assert [response.scores for response in after.responses] == [response.scores for response in before.responses]
    assert all(response.extra["enhanced_critique"] == "fine" for response in after.responses)


# A pass that is continued ----------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def stops_at_the(number: int):
    """`Journal.add` that is cut off at a line."""
    add, count = journal.Journal.add, []

    def cut(self, index, line):
        count.append(index)
        if len(count) == number:
            raise Killed
        add(self, index, line)

    return cut


def test_a_pass_that_was_cut_off_asks_for_what_is_not_there(source, tmp_path, monkeypatch):
    out, one = tmp_path / "out.jsonl", ("--concurrency", "1")
    with fakes.running(Fake(about(source))) as fake:
        with monkeypatch.context() as patched:
            patched.setattr(journal.Journal, "add", stops_at_the(2))
            assert isinstance(expand(source, out, fake.url, *one).exception, Killed)
        asked = len(fake.asked)
        rows = expanded(source, out, fake.url, *one)
    assert fake.texts()[asked:] == prompts(source)[2:]
    assert [response["enhanced_critique"] for response in responses(rows)] == FULL


def test_what_failed_before_a_kill_is_asked_again_and_may_fail_again(source, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    with fakes.running(Fake(failing(source, [0], refusal(400)))) as fake:
        with monkeypatch.context() as patched:
            patched.setattr(journal.Journal, "add", stops_at_the(3))  # the record that has a failure
            assert isinstance(expand(source, out, fake.url).exception, Killed)
        asked = len(fake.asked)
        rows = expanded(source, out, fake.url)
    assert sorted(fake.texts()[asked:]) == sorted(prompts(source)[:2])
    assert ["expansion_error" in response for response in responses(rows)] == [True] + [False] * 6


@pytest.mark.parametrize("option", [("--max-new-tokens", "9"), ("--temperature", "0.5"), ("--with-media",)])
def test_texts_of_other_settings_are_not_used(source, tmp_path, monkeypatch, option):
    out = tmp_path / "out.jsonl"
    with fakes.running(Fake(about(source))) as fake:
        with monkeypatch.context() as patched:
            patched.setattr(journal.Journal, "add", stops_at_the(3))
            assert isinstance(expand(source, out, fake.url).exception, Killed)
        asked = len(fake.asked)
        assert expand(source, out, fake.url, *option).exception is None
    assert len(fake.asked) - asked == COUNT


# Training --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reward_model_trains_on_the_full_critiques(directory, source, tmp_path):
    out = source.parent / "out.jsonl"
    with fakes.running(Fake(about(source))) as fake:
        expanded(source, out, fake.url)
    metrics = {}
    for field in ("critique", "enhanced_critique"):
        run = config.Run(directory=str(tmp_path / field), steps=1)
        experiment = config.Experiment(
            model=config.Model(path=str(directory), dtype="float32", remat="none", reward_head="tanh"),
            data=config.Data(path=str(out), critiques=field),
            objective=config.RewardModel(),
            batch=config.Batch(rows=1, slots=1536, logprob_chunk=64),
            run=run,
        )
        loop.train(experiment, config.Launch(mesh=config.Mesh(data=1, fsdp=1)))
        metrics[field] = json.loads((tmp_path / field / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert metrics["critique"] != metrics["enhanced_critique"]
