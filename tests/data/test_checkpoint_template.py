"""`template: checkpoint`: the model's own chat template gives the tokens that transformers gives, and text stays text in it."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import AddedToken

from mmrlhf_jax.data.templates import CheckpointTemplate, closing_token, find_template, qwen_1_5
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.pieces import Media, Special, Text, Visual
from tests.data import groups

# In the manner of the templates that are published with LLaVA-OneVision, Qwen2.5 and SmolVLM.
PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(template):
    made = groups.byte_tokenizer()
    made.chat_template = template
    return made


def rendered_ids(made, messages, **options):
    """What transformers makes of a conversation: the rendered text, tokenised with its control tokens."""
    backend = made.backend_tokenizer
    backend.encode_special_tokens = False
    ids = backend.encode(made.apply_chat_template(messages, tokenize=False, **options), add_special_tokens=False).ids
    backend.encode_special_tokens = True
    return ids


@pytest.mark.parametrize("media", [0, 1, 2])
@pytest.mark.parametrize(("template", "as_parts"), [(PARTS, True), (WITH_SYSTEM, False)])
def test_tokens_are_those_of_transformers(template, as_parts, media):
    made = tokenizer(template)
    pieces = PieceTokenizer(made, made.convert_tokens_to_ids("<image>"))
    question, answer = "What colour?", "Réd <b>."
    content = [{"type": "image"}] * media + [{"type": "text", "text": question}] if as_parts else "<image>\n" * media + question
    user = {"role": "user", "content": content}
    opening = rendered_ids(made, [user], add_generation_prompt=True)
    checkpoint = find_template("checkpoint", made)
    assert pieces.conversation(checkpoint(question, media, None), [[Visual(1)]] * media).tokens.tolist() == opening
    whole = pieces.conversation(checkpoint(question, media, answer), [[Visual(1)]] * media)
    encode = lambda text: made.backend_tokenizer.encode(text, add_special_tokens=False).ids
    closing = [made.convert_tokens_to_ids("<|im_end|>")] + ([] if as_parts else encode("\n"))
    text = encode(answer)
    assert whole.tokens.tolist() == opening + text + closing
    assert whole.tokens[whole.is_target].tolist() == [*text, closing[0]]


def test_hostile_text_stays_text():
    made = tokenizer(PARTS)
    pieces = PieceTokenizer(made, made.convert_tokens_to_ids("<image>"))
    control = [made.convert_tokens_to_ids(token) for token in made.get_added_vocab()]
    count = lambda text: int(
        np.isin(pieces.conversation(CheckpointTemplate(made)(text, 1, text), [[Visual(1)]]).tokens, control).sum()
    )
    for hostile in (groups.HOSTILE, "{{ messages }}", "{% raw %}", "\ue000prompt\ue001", "\ue000response\ue001"):
        assert count(hostile) == count("x")
        tokens = pieces.conversation(CheckpointTemplate(made)(hostile, 1, hostile), [[Visual(1)]]).tokens
        assert made.decode(tokens).count(hostile) == 2


def test_chatml_of_a_checkpoint_is_our_own_template():
    """The quickstart's template for transformers and `qwen_1_5` are the same conversation."""
    from mmrlhf_jax.quickstart.tokenizer import CHAT_TEMPLATE

    made = tokenizer(CHAT_TEMPLATE)
    for media in (0, 1):
        for response in ("A kite.", None):
            assert _joined(CheckpointTemplate(made)("Why?", media, response)) == _joined(qwen_1_5("Why?", media, response))


def _joined(pieces):
    """Pieces as text; how it was cut into pieces does not matter, what is a target does."""
    names = {Text: lambda p: p.text, Special: lambda p: p.token, Media: lambda p: f"<media {p.index}>"}
    targets = [p.text[p.target_from :] if isinstance(p, Text) else p.token for p in pieces if _is_target(p)]
    return "".join(names[type(piece)](piece) for piece in pieces), targets


def _is_target(piece):
    return piece.target if isinstance(piece, Special) else isinstance(piece, Text) and piece.target_from is not None


def test_the_closing_token_is_the_templates():
    assert closing_token(find_template("checkpoint", tokenizer(PARTS))) == closing_token(qwen_1_5) == "<|im_end|>"


@pytest.mark.parametrize(
    "template",
    [None, "{{ raise_exception('no') }}", "{% for m in messages %}{{ m.role }}{% endfor %}", "{{ 1 / 0 }}"],
)
def test_a_template_that_cannot_be_used_is_the_users(template):
    with pytest.raises(UserError, match=r"data\.template: checkpoint: .*; choose qwen_1_5"):
        find_template("checkpoint", tokenizer(template))("Why?", 1, "So.")


def test_a_template_that_writes_the_date_is_refused():
    """Two days of one run would not train on the same tokens."""
    with pytest.raises(UserError, match="writes today's date"):
        find_template("checkpoint", tokenizer("{{ strftime_now('%d %b %Y') }}" + WITH_SYSTEM))


def test_a_template_that_writes_nothing_of_its_own_has_no_closing_token():
    plain = find_template("checkpoint", tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    assert closing_token(plain) is None
    assert plain("Why?", 0, "So.") == [Text("Why?So.", target_from=4)]


def test_an_unknown_template_is_named():
    with pytest.raises(UserError, match="unknown chat template 'llama'; there are qwen_1_5, upstream_train, checkpoint"):
        find_template("llama", None)


def test_the_encoder_follows_the_checkpoint():
    one, other = groups.encoder(template="checkpoint"), groups.encoder(template="checkpoint")
    one.tokenizer.tokenizer.chat_template, other.tokenizer.tokenizer.chat_template = PARTS, WITH_SYSTEM
    assert one.fingerprint != other.fingerprint


# In the manner of the published Thinking models: a generated turn begins inside a block of thoughts, and a turn that is given
# has a block before it, which is empty if it has no thoughts.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' %}{% set thoughts = '' %}{% if '</think>' in text %}"
    "{% set thoughts = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<think>\n' + thoughts + '\n</think>\n\n' }}{% endif %}{{ text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


@pytest.mark.parametrize("as_tokens", [False, True])
@pytest.mark.parametrize("answer", ["Réd.", "Why\nnot?\n</think>\n\nRéd.", "<think>\nWhy\nnot?\n</think>\n\nRéd."])
def test_an_empty_block_of_thoughts_is_the_templates_and_no_target(as_tokens, answer):
    """The tokens are those of transformers; a response with thoughts of its own begins inside the block, as if generated."""
    made = tokenizer(THINKING)
    if as_tokens:
        made.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    pieces, checkpoint = PieceTokenizer(made, made.convert_tokens_to_ids("<image>")), find_template("checkpoint", made)
    user = {"role": "user", "content": "What colour?"}
    opening = pieces.conversation(checkpoint("What colour?", 0, None), []).tokens.tolist()
    assert opening == rendered_ids(made, [user], add_generation_prompt=True)
    whole = pieces.conversation(checkpoint("What colour?", 0, answer), [])
    assert whole.tokens.tolist() == rendered_ids(made, [user, {"role": "assistant", "content": answer}])
    assert whole.tokens[: len(opening)].tolist() == opening
    targets = made.decode(whole.tokens[whole.is_target], skip_special_tokens=False)
    assert targets == answer.removeprefix("<think>\n") + "<|im_end|>"


def test_an_empty_block_that_only_given_turns_have_is_left_out_as_before():
    """Where generation does not begin inside a block, neither does a response: the model is to write what it is taught."""
    made = tokenizer(THINKING.replace("assistant\n<think>\n", "assistant\n"))
    text = "".join(getattr(piece, "token", getattr(piece, "text", "")) for piece in CheckpointTemplate(made)("q", 0, "a"))
    assert text == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
