"""`mmrlhf score --critic-endpoint` in this process, and servers whose critiques name the responses that they are of."""

from __future__ import annotations

import json
import sys

from typer.testing import CliRunner

from mmrlhf_jax.cli import app
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.templates import critique_prompt
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import critic
from tests.serving.fakes import Reply, chat

SIZES = [[(40, 30)], [], [(30, 30), (50, 20)], []]
RANKS = [(1, 2), (1, 2, 2), (2, 1), (1, 2)]


def score(directory, source, out, url: str, *more: str):
    arguments = ["--model", str(directory), "--data", str(source), "--out", str(out), "--critic-endpoint", url, *more]
    result = CliRunner().invoke(app, ["score", *arguments])
    sys.stderr.write(result.stderr)
    return result


def scored(directory, source, out, url: str, *more: str) -> list[dict]:
    result = score(directory, source, out, url, *more)
    assert result.exception is None, result.exception
    assert not list(out.parent.glob(f".{out.name}*"))
    return [json.loads(text) for text in out.read_text().splitlines()]


def refused(directory, source, out, url: str, *more: str) -> str:
    result = score(directory, source, out, url, *more)
    assert isinstance(result.exception, UserError), result
    assert not out.exists()
    return str(result.exception)


def given(beside, source, critiques: list[list[str]]) -> list[list[float]]:
    """The rewards with these critiques, as `--critique given` computes them."""
    rows = [json.loads(text) for text in source.read_text().splitlines()]
    for row, own in zip(rows, critiques, strict=True):
        for response, critique in zip(row["responses"], own, strict=True):
            response["critique"] = critique
    path = source.parent / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = critic.score(beside, open_examples(path), critique="given")
    path.unlink()
    return [[response.reward for response in record.responses] for record in found]


def prompts(source) -> list[list[str]]:
    """The texts of all requests, by record."""
    found = []
    for record in open_examples(source).records:
        asked = [critique_prompt(record.prompt_text(), response.text) for response in record.responses]
        found.append([each if isinstance(each, str) else "".join(each) for each in asked])
    return found


def about(source):
    """A reply whose critique names the response that it is of."""
    numbers = {text: f"{i}.{k}" for i, texts in enumerate(prompts(source)) for k, text in enumerate(texts)}

    def reply(body) -> Reply:
        text = "".join(part.get("text", "") for part in body["messages"][0]["content"])
        return chat(f"critique of {numbers[text]}")

    return reply


CRITIQUES = [[f"critique of {i}.{k}" for k in range(len(ranks))] for i, ranks in enumerate(RANKS)]


def failing(source, wrong, answer: Reply):
    """Replies with `answer` to the requests for the responses in `wrong`, (record, response)."""
    usual, texts = about(source), prompts(source)
    bad = {texts[i][k] for i, k in wrong}
    return lambda body: (
        answer if "".join(p.get("text", "") for p in body["messages"][0]["content"]) in bad else usual(body)
    )  # fmt: skip
