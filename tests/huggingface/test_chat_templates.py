"""One chat template of four places, the one that transformers takes: in training, in generation, and alone in an export."""

import itertools
import json
import shutil

import jax
import pytest

from mmrlhf_jax.data.templates import CheckpointTemplate, closing_token, find_template, writes_alike
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface import weight_files
from mmrlhf_jax.huggingface.chat_templates import read_chat_templates
from mmrlhf_jax.huggingface.export import export_checkpoint
from mmrlhf_jax.huggingface.generation_config import end_tokens
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.models.llava_onevision.processors import CHAT_TEMPLATE
from mmrlhf_jax.sharding.mesh import make_mesh
from tests import tiny

FILES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")  # first counts


def text(mark: str) -> str:
    """A template whose texts say which it is."""
    return CHAT_TEMPLATE.replace("You are a helpful assistant.", mark)


def put(directory, name: str, value) -> None:
    path = directory / name
    if name.endswith(".jinja"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(value)
        return
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | {"chat_template": value}))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A checkpoint without any template."""
    directory = tiny.checkpoint(tmp_path_factory.mktemp("bare"))
    (directory / "chat_template.jinja").unlink()
    return directory


@pytest.fixture
def model(bare, tmp_path):
    weight_files.say_once.cache_clear()
    return shutil.copytree(bare, tmp_path / "model")


def system(directory) -> str:
    """What training and generation open a conversation with."""
    pieces = CheckpointTemplate(load_tokenizer(directory))("prompt", 0, None)
    return next(piece.text for piece in pieces if getattr(piece, "text", "").startswith("system\n")).removeprefix("system\n")


def templates_in(directory) -> dict[str, object]:
    found = {path.name: path.read_text() for path in directory.rglob("*.jinja")}
    for name in ("processor_config.json", "chat_template.json", "tokenizer_config.json"):
        content = json.loads((directory / name).read_text()) if (directory / name).exists() else {}
        found |= {name: content["chat_template"]} if "chat_template" in content else {}
    return found


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(FILES, 2)))
def test_of_two_places_the_one_that_transformers_prefers_counts_and_the_other_is_said(model, capsys, first, second):
    put(model, second, text("second"))
    assert system(model) == "second"
    put(model, first, text("first"))
    assert system(model) == "first"
    said = f"{model}: the chat template is that of {first}; {second} has another, which is ignored\n"
    assert capsys.readouterr().err == said


def test_of_all_four_one_is_used_and_the_export_holds_that_one_text(model, tmp_path):
    for name in FILES:
        put(model, name, text(name))
    export_checkpoint(model, tmp_path / "out")
    assert templates_in(tmp_path / "out") == {"chat_template.jinja": text("processor_config.json")}
    assert system(tmp_path / "out") == system(model) == "processor_config.json"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("naming", ["hf", "original"])
def test_wherever_the_only_template_stands_the_export_holds_it(model, tmp_path, name, naming):
    put(model, name, text("only"))
    export_checkpoint(model, tmp_path / "out", naming=naming)
    assert templates_in(tmp_path / "out") == {"chat_template.jinja": text("only")}


def test_equal_texts_are_not_worth_a_word(model, capsys):
    for name in FILES:
        put(model, name, text("same"))
    load_tokenizer(model)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("named", ["list", "folder"])
def test_templates_by_name_are_kept_and_the_default_is_used(model, tmp_path, named):
    if named == "list":
        both = [{"name": "default", "template": text("default")}, {"name": "rag", "template": text("rag")}]
        put(model, "tokenizer_config.json", both)
    else:
        put(model, "chat_template.jinja", text("default"))
        put(model, "additional_chat_templates/rag.jinja", text("rag"))
    assert system(model) == "default"
    export_checkpoint(model, tmp_path / "out")
    assert templates_in(tmp_path / "out") == {"chat_template.jinja": text("default"), "rag.jinja": text("rag")}
    assert read_chat_templates(tmp_path / "out") == read_chat_templates(model)


def test_transformers_processor_takes_the_template_that_an_export_holds(model, tmp_path):
    """Oracle: the class's own reading of a directory, before and after."""
    transformers = pytest.importorskip("transformers")
    read = lambda directory: transformers.ProcessorMixin.get_processor_dict(directory)[0]["chat_template"]
    for name in ("chat_template.json", "chat_template.jinja", "tokenizer_config.json"):
        put(model, name, text(name))
    assert read(model) == load_tokenizer(model).chat_template == text("chat_template.json")
    export_checkpoint(model, tmp_path / "out")
    assert read(tmp_path / "out") == text("chat_template.json")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == text("chat_template.json")


@pytest.mark.parametrize("value", [3, {"default": 3}, [3], [{"name": "../x", "template": "y"}], [{"template": "y"}]])
def test_what_is_no_template_is_refused_by_its_file(model, value):
    put(model, "chat_template.json", value)
    with pytest.raises(UserError, match=r"chat_template\.json: chat_template is neither a text nor texts by name"):
        load_tokenizer(model)


def test_named_templates_without_a_default_are_no_template_to_train_with(model):
    put(model, "chat_template.json", {"rag": text("rag"), "tools": text("tools")})
    with pytest.raises(UserError, match="the chat template cannot be used"):
        find_template("checkpoint", load_tokenizer(model))("prompt", 0, None)


@pytest.mark.parametrize(
    ("own", "name", "alike"),
    [
        (CHAT_TEMPLATE, "qwen_1_5", True),
        (CHAT_TEMPLATE, "checkpoint", True),
        (CHAT_TEMPLATE, "upstream_train", False),  # which differs with media alone
        (text("another system"), "qwen_1_5", False),
        ("no template", "qwen_1_5", False),
    ],
)
def test_an_export_whose_template_is_not_the_one_learnt_with_is_known(model, own, name, alike):
    put(model, "chat_template.jinja", own)
    assert writes_alike(load_tokenizer(model), name) == alike


# Where writing stops


def engine(directory, **options) -> Engine:
    return Engine.load(str(directory), mesh=make_mesh({}, jax.devices()[:1]), **options)


@pytest.mark.parametrize(
    ("stated", "ends"),
    [
        ({"generation_config.json": {"eos_token_id": [256, 7]}}, (256, 7)),
        ({"generation_config.json": {"eos_token_id": 9}, "config.json": {"eos_token_id": 8}}, (9,)),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": [8, 256]}}, (8, 256)),
        ({"config.json": {"text_config": {"eos_token_id": 11}}}, (11,)),
        ({}, ()),
    ],
)
def test_every_token_that_the_checkpoint_says_ends_a_text_ends_one(model, stated, ends):
    for name, content in stated.items():
        path = model / name
        before = json.loads(path.read_text()) if path.exists() else {}
        if "text_config" in content:
            content = {"text_config": before["text_config"] | content["text_config"]}
        path.write_text(json.dumps(before | content))
    assert end_tokens(model) == ends
    assert set(engine(model).stop_tokens) == {258, *ends}  # <|im_end|> closes the template and is the tokenizer's own


def test_a_template_with_another_closing_token_stops_there_as_well(model):
    put(model, "chat_template.jinja", CHAT_TEMPLATE.replace("<|im_end|>", "<|endoftext|>"))
    (model / "generation_config.json").write_text('{"eos_token_id": [7, 258]}')
    assert closing_token(CheckpointTemplate(load_tokenizer(model))) == "<|endoftext|>"
    assert set(engine(model, template="checkpoint").stop_tokens) == {256, 258, 7}


@pytest.mark.parametrize("value", ["<|im_end|>", [1.5], [True], -1, {"a": 1}])
def test_ends_that_are_no_ids_are_refused(model, value):
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id is "):
        engine(model)


def test_scores_written_under_other_stops_are_not_gone_on_from(model):
    before = engine(model).fingerprint
    (model / "generation_config.json").write_text('{"eos_token_id": [256, 258]}')
    assert engine(model).fingerprint != before


def test_an_export_carries_the_ends_or_states_them_all(model, tmp_path):
    raw = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(raw | {"eos_token_id": 256}))
    export_checkpoint(model, tmp_path / "stated")
    assert json.loads((tmp_path / "stated/generation_config.json").read_text())["eos_token_id"] == [258, 256]
    (model / "generation_config.json").write_text('{"eos_token_id": [256, 7], "temperature": 0.3}')
    export_checkpoint(model, tmp_path / "carried")
    carried = (tmp_path / "carried/generation_config.json").read_text()
    assert carried == '{"eos_token_id": [256, 7], "temperature": 0.3}'


def test_a_conversation_is_tokenised_as_the_chosen_template_says(model):
    put(model, "tokenizer_config.json", text("tokenizer"))
    put(model, "chat_template.json", text("file"))
    tokenizer = PieceTokenizer(load_tokenizer(model), tiny.IMAGE_TOKEN)
    ids = tokenizer.conversation(CheckpointTemplate(tokenizer.tokenizer)("hi", 0, None), []).tokens
    assert tokenizer.tokenizer.decode(ids).startswith("<|im_start|>system\nfile<|im_end|>")
