"""Several turns are written as the chat template writes them, and user text stays text in each."""

from __future__ import annotations

import pytest

from mmrlhf_jax.data.templates import TEMPLATES, Turn, find_chat, find_template
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.pieces import Media, Special, Text
from tests.families import FAMILIES

TURNS = [
    Turn("system", "Be brief."),
    Turn("user", "What is it?", 1),
    Turn("assistant", "A kite."),
    Turn("user", ("And ", " beside ", "?"), 2),
    Turn("assistant", ""),
    Turn("user", "<|im_end|> <image>"),
]


def written(pieces) -> str:
    """A string in which media have their numbers."""
    name = {Text: lambda piece: piece.text, Special: lambda piece: piece.token, Media: lambda piece: f"[{piece.index}]"}
    return "".join(name[type(piece)](piece) for piece in pieces)


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_follow_each_other_in_chatml(name):
    line = "\n\n" if name == "upstream_train" else "\n"
    assert written(find_chat(name, None)(TURNS)) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n[0]{line}What is it?<|im_end|>\n"
        "<|im_start|>assistant\nA kite.<|im_end|>\n<|im_start|>user\nAnd [1] beside [2]?<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\n<|im_end|> <image><|im_end|>\n<|im_start|>assistant\n"
    )
    assert "You are a helpful assistant." in written(find_chat(name, None)(TURNS[1:]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoints_template_writes_what_it_writes_for_transformers(family):
    tokenizer = FAMILIES[family].tokenizer()
    if family != "internvl":
        tokenizer.chat_template = FAMILIES["internvl"].CHAT_TEMPLATE.replace("<IMG_CONTEXT>", "<image>")
    tags = ("<IMG_CONTEXT>", "<image>", "<video>")
    messages, number = [], 0
    for turn in TURNS[:-1]:
        texts = ("",) * turn.media + (turn.prompt,) if isinstance(turn.prompt, str) else turn.prompt
        content = [{"type": "text", "text": texts[0]}] if texts[0] or not turn.media else []
        for text in texts[1:]:
            content += [{"type": "image"}, {"type": "text", "text": text}] if text else [{"type": "image"}]
        messages.append({"role": turn.role, "content": content})
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for tag in tags[:2]:
        while tag in rendered:
            rendered, number = rendered.replace(tag, f"[{number}]", 1), number + 1
    assert written(find_chat("checkpoint", tokenizer, tags)(TURNS[:-1])) == rendered


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*TEMPLATES, "checkpoint"])
@pytest.mark.parametrize(("prompt", "media"), [("Why?", 0), ("Why?", 2), (("Is ", " it?"), 1), (("", " or ", ""), 2), ("", 1)])
def test_one_turn_is_the_open_prompt_of_training(family, name, prompt, media):
    tokenizer = FAMILIES[family].tokenizer()
    if family != "internvl":
        tokenizer.chat_template = FAMILIES["internvl"].CHAT_TEMPLATE.replace("<IMG_CONTEXT>", "<image>")
    tags = ("<IMG_CONTEXT>", "<image>", "<video>")
    turn = Turn("user", prompt, media)
    assert find_chat(name, tokenizer, tags)([turn]) == find_template(name, tokenizer, tags)(prompt, media, None)


def test_what_a_user_writes_stays_text():
    tokenizer = FAMILIES["internvl"].tokenizer()
    pieces = find_chat("checkpoint", tokenizer, ("<IMG_CONTEXT>",))(TURNS[-1:])
    assert Text("user\n<|im_end|> <image>") in pieces


def test_a_template_that_refuses_a_role_is_refused():
    tokenizer = FAMILIES["internvl"].tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    with pytest.raises(UserError, match=r"the chat template cannot be used \(no system"):
        find_chat("checkpoint", tokenizer)(TURNS[:2])
