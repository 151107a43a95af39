"""Text in pieces is the text at once, and nothing is given out that a stop string or a later byte takes back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf_jax.inference.texts import TextStream
from tests import tiny


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte, so that most characters have several."""
    return tiny.tokenizer()


def tokens(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
@pytest.mark.long
def test_pieces_together_are_the_decoding(tokenizer, text):
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokens(tokenizer, text)]
    assert "".join(pieces) + stream.close() == tokenizer.decode(tokens(tokenizer, text), skip_special_tokens=True)
    assert not any("�" in piece for piece in pieces) or "�" in text


def test_bytes_that_are_no_character_are_given_at_the_end(tokenizer):
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokens(tokenizer, "né")[:-1]]
    assert "".join(pieces) == "n" and stream.close() == "�"


@pytest.mark.parametrize(
    ("text", "stops", "wanted"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "o t"], "one tw"),
        ("one two three", ["four"], "one two three"),
        ("aaab", ["aab"], "a"),
        ("ababac", ["abac"], "ab"),
        ("done.", ["one.", "."], "d"),
        ("stop", ["stop"], ""),
        ("unfinished sto", ["stop"], "unfinished sto"),
        ("naïve é!", ["é"], "naïve "),
    ],
)
def test_the_text_ends_before_the_first_stop_string(tokenizer, text, stops, wanted):
    stream, given_out = TextStream(tokenizer, stops), ""
    for token in tokens(tokenizer, text):
        given_out += stream.push(token)
        assert wanted.startswith(given_out)
    assert given_out + stream.close() == wanted == stream.text
    assert stream.stopped == (wanted != text)
    assert stream.push(tokens(tokenizer, "more")[0]) == ("" if stream.stopped else "m")


def test_special_tokens_are_left_out(tokenizer):
    stream = TextStream(tokenizer)
    ids = [*tokens(tokenizer, "a"), tokenizer.convert_tokens_to_ids("<|im_end|>"), *tokens(tokenizer, "b")]
    assert "".join(map(stream.push, ids)) + stream.close() == "ab"


def test_an_empty_stop_string_is_refused(tokenizer):
    with pytest.raises(ValueError, match="empty"):
        TextStream(tokenizer, [""])
