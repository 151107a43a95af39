"""The command line on wrong input: one line on stderr, exit status 2, nothing half-written."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import load_file

from mmrlhf_jax import cli, core_yaml
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.engine import Engine
from tests import ranked, tiny

CONFIG = Path(__file__).parents[1] / "configs" / "mmdpo_llava_ov_7b.yaml"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("reward_model"), reward_head=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ranked.write(tmp_path_factory.mktemp("data"), [(1, 2), (1, 2, 2)], [[(40, 30)], []])


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mmrlhf", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


def refused(monkeypatch, capsys, *arguments: object) -> str:
    """The one line that the command ended with."""
    assert run(monkeypatch, *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_missing_source_is_named_and_nothing_is_written(monkeypatch, capsys, tmp_path):
    message = refused(monkeypatch, capsys, "data", "build", tmp_path / "none.jsonl", tmp_path / "out")
    assert "none.jsonl" in message and list(tmp_path.iterdir()) == []


def test_a_torn_line_is_named_by_number(monkeypatch, capsys, tmp_path, data):
    torn = tmp_path / "torn.jsonl"
    torn.write_text(data.read_text()[:-40])
    message = refused(monkeypatch, capsys, "data", "build", torn, tmp_path / "out", "--media-root", data.parent)
    assert "torn.jsonl:2" in message or "line 2" in message
    assert not (tmp_path / "out").exists()


def test_a_record_without_responses_is_named(monkeypatch, capsys, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"id": "lonely", "prompt": "Why?", "responses": []}) + "\n")
    assert "lonely" in refused(monkeypatch, capsys, "data", "build", path, tmp_path / "out")


def test_an_unknown_key_names_its_neighbour(monkeypatch, capsys):
    message = refused(monkeypatch, capsys, "config", "show", CONFIG, "--set", "optimizer.lerning_rate=1")
    assert "did you mean 'learning_rate'" in message


def test_a_model_directory_without_weights_is_named(monkeypatch, capsys, tmp_path, data, model):
    (tmp_path / "empty").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "empty" / name).write_bytes((model / name).read_bytes())
    out = tmp_path / "out.jsonl"
    message = refused(monkeypatch, capsys, "logprobs", "--model", tmp_path / "empty", "--data", data, "--out", out)
    assert str(tmp_path / "empty") in message and not out.exists()


def test_a_policy_cannot_score(monkeypatch, capsys, tmp_path, data, model):
    out = tmp_path / "out.jsonl"
    message = refused(monkeypatch, capsys, "score", "--model", model, "--data", data, "--out", out)
    assert "no reward head" in message and not out.exists()


@pytest.mark.parametrize("verb", ["logprobs", "score", "eval reward-bench", "generate"])
def test_an_unknown_dtype_is_refused(monkeypatch, capsys, tmp_path, data, model, verb):
    out = tmp_path / "out.jsonl"
    given = ("--prompt", "Why?") if verb == "generate" else ("--data", data)
    given += ("--out", out) if verb in ("logprobs", "score") else ()
    message = refused(monkeypatch, capsys, *verb.split(), "--model", model, *given, "--dtype", "foo")
    assert message == "error: --dtype 'foo': choose from float32, bfloat16" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["data.pairs=[1", "model.path=@x"])
def test_a_setting_that_is_no_yaml_is_named(monkeypatch, capsys, setting):
    assert f"--set {setting!r}: not valid YAML" in refused(monkeypatch, capsys, "config", "show", CONFIG, "--set", setting)


def test_a_misspelt_critique_mode_is_refused_before_anything_is_loaded(monkeypatch, capsys, tmp_path):
    message = refused(
        monkeypatch, capsys, "score", "--model", "none", "--data", "none", "--out", tmp_path / "o", "--critique", "writen"
    )
    assert "writen" in message and "written" in message


@pytest.mark.parametrize("verb", ["score", "logprobs"])
def test_an_out_that_exists_is_refused_before_the_model_is_loaded(monkeypatch, capsys, tmp_path, data, verb):
    (tmp_path / "out").write_text("kept")
    message = refused(monkeypatch, capsys, verb, "--model", tmp_path / "none", "--data", data, "--out", tmp_path / "out")
    assert f"{tmp_path / 'out'}: already exists" in message and (tmp_path / "out").read_text() == "kept"


@pytest.mark.parametrize("critique", ["written", "given", "none"])
@pytest.mark.parametrize("verb", [("score", "--out", "out"), ("eval", "reward-bench")])
def test_a_record_that_is_too_long_to_score_is_refused_before_a_critique_is_written(
    monkeypatch, capsys, tmp_path, reward_model, verb, critique
):
    responses = [{"text": "x" * 300, "rank": 1, "critique": "z"}, {"text": "y", "rank": 2}]
    long = [{"id": "long", "prompt": "Why?", "responses": responses}]
    (tmp_path / "long.jsonl").write_text(json.dumps(long[0]) + "\n")
    monkeypatch.setattr(Engine, "generate", lambda *_, **__: pytest.fail("a critique was written"))
    monkeypatch.chdir(tmp_path)
    settings = ("--data", "long.jsonl", "--critique", critique, "--slots", 256)
    message = refused(monkeypatch, capsys, *verb, "--model", reward_model, *settings)
    one, all_of = "1 of 1 records need more than 256 slots; 'long' needs", "none of 1 records can be scored; the first: record"
    assert (all_of if verb[0] == "eval" else one) in message and "'long' needs" in message and "--slots" in message


def test_a_run_directory_that_is_none_is_named(monkeypatch, capsys, tmp_path):
    assert "nowhere" in refused(monkeypatch, capsys, "export", tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.long
def test_logprobs_writes_one_line_per_record_and_does_not_overwrite(monkeypatch, capsys, tmp_path, data, model):
    out = tmp_path / "out.jsonl"
    assert run(monkeypatch, "logprobs", "--model", model, "--data", data, "--out", out) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    source = [json.loads(line) for line in data.read_text().splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in source]
    for row, record in zip(rows, source, strict=True):
        for found, response in zip(row["responses"], record["responses"], strict=True):
            assert found["tokens"] == len(response["text"].encode()) + 1  # one per byte, and <|im_end|>
            assert found["logprob"] < 0
    assert list(tmp_path.iterdir()) == [out]
    message = refused(monkeypatch, capsys, "logprobs", "--model", model, "--data", data, "--out", out)
    assert "already exists" in message


def test_building_can_leave_contradictory_groups_out_and_says_which(monkeypatch, capsys, tmp_path):
    pairs = [("good", "a", "b"), ("bad", "a", "b"), ("bad", "b", "a")]
    rows = [{"id": i, "prompt": "Why?", "image": None, "chosen": chosen, "rejected": worse} for i, chosen, worse in pairs]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    message = refused(monkeypatch, capsys, "data", "build", path, tmp_path / "out")
    assert "'bad'" in message and "--contradictions drop" in message
    assert "give error or drop" in refused(
        monkeypatch, capsys, "data", "build", path, tmp_path / "out", "--contradictions", "x"
    )
    assert run(monkeypatch, "data", "build", path, tmp_path / "out", "--contradictions", "drop", "--jobs", 1) == 0
    said = capsys.readouterr().err
    assert "'bad'" in said and "1 groups, 2 responses, 1 strictly ordered pairs; 1 contradictory groups left out" in said


def test_beam_takes_its_options_from_the_command_line(monkeypatch, capsys, tmp_path, data):
    from mmrlhf_jax.data import builder

    seen = []
    monkeypatch.setattr(builder, "write_shards_with_beam", lambda shards, options: seen.append(options))
    options = "--runner=DirectRunner --direct_num_workers=2"
    message = refused(monkeypatch, capsys, "data", "build", data, tmp_path / "out", "--beam", options)
    assert seen == [["--runner=DirectRunner", "--direct_num_workers=2"]] and "were not written" in message


def test_an_overlong_text_is_a_finding(monkeypatch, capsys, data):
    assert run(monkeypatch, "data", "validate", data, "--max-text", 5, "--most", 1) == 1
    out = capsys.readouterr().out
    assert "characters, more than 5" in out and "more (--most, --json)" in out


@pytest.mark.long
def test_generate_answers_about_an_image_and_names_a_missing_one(monkeypatch, capsys, tmp_path, model):
    (tmp_path / "a.png").write_bytes(ranked.picture((40, 30), 0))
    asked = ("generate", "--model", model, "--prompt", "What is this?", "--max-new-tokens", 3, "--image")
    assert run(monkeypatch, *asked, tmp_path / "a.png") == 0
    assert capsys.readouterr().out.endswith("\n")
    assert "nowhere.png" in refused(monkeypatch, capsys, *asked, tmp_path / "nowhere.png")


@pytest.fixture
def video(tmp_path):
    """A folder of five frames."""
    (tmp_path / "clip").mkdir()
    for i in range(5):
        (tmp_path / "clip" / f"{i}.png").write_bytes(ranked.picture((40, 30), i))
    return tmp_path / "clip"


@pytest.mark.long
def test_generate_answers_about_the_frames_asked_for_of_a_video(monkeypatch, capsys, model, video):
    from mmrlhf_jax.inference.engine import Engine

    asked = ("generate", "--model", model, "--prompt", "What happens?", "--max-new-tokens", 3, "--video")
    seen, answer = [], Engine.stream
    monkeypatch.setattr(Engine, "stream", lambda self, prompt, *how: seen.append(prompt) or answer(self, prompt, *how))
    assert run(monkeypatch, *asked, video, "--video-frames", 3) == 0
    frames = [(video / f"{i}.png").read_bytes() for i in (0, 2, 4)]
    assert capsys.readouterr().out.endswith("\n") and [list(prompt.example.frames) for prompt in seen] == [frames]
    assert "nowhere.mp4" in refused(monkeypatch, capsys, *asked, video.parent / "nowhere.mp4")
    assert "--image or --video" in refused(monkeypatch, capsys, *asked, video, "--image", video / "0.png")


@pytest.mark.long
def test_log_probs_depend_on_the_frames_asked_for(monkeypatch, tmp_path, model, video):
    source = tmp_path / "records.jsonl"
    source.write_text(json.dumps({"id": "a", "prompt": "What happens?", "video": "clip", "responses": [{"text": "Rain."}]}))
    found = []
    for frames in (1, 3):
        given = ("--data", source, "--out", tmp_path / f"{frames}.jsonl", "--video-frames", frames)
        assert run(monkeypatch, "logprobs", "--model", model, *given) == 0
        found.append(json.loads((tmp_path / f"{frames}.jsonl").read_text())["responses"][0]["logprob"])
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("verb", "place"),
    [
        ("score", ("--model", "none", "--data")),
        ("logprobs", ("--model", "none", "--data")),
        ("eval reward-bench", ("--model", "none", "--data")),
        ("serve", ("--model", "none", "--port", 18761, "--data")),
        ("expand", ("--model", "none", "--data")),
        ("annotate", ("--policy", "none", "--critic", "judge", "--data")),
        ("best-of-n", ("--policy", "none", "--critic", "judge", "--data")),
        ("data build", ()),
        ("data validate", ()),
        ("data stats", ()),
        ("data show", ()),
    ],
)
def test_videos_are_sampled_as_was_asked_for(monkeypatch, capsys, tmp_path, reward_model, verb, place):
    def opened(part, media_root, video_frames, *others):
        raise UserError(f"{part.path} under {media_root} with {video_frames} frames, {others[-2]} of {others[-1]}")

    monkeypatch.setattr("mmrlhf_jax.data.mixture._open", opened)
    asked = ("--media-root", "media", "--video-frames", 5, "--video-fps", 0.5, "--frames-per-second", 2.5)
    place = tuple(reward_model if one == "judge" else one for one in place)
    other = {"data build": (tmp_path / "out",), "data show": ("record",), "expand": ("--out", tmp_path / "out.jsonl")}
    if verb in ("score", "logprobs", "annotate", "best-of-n"):
        other[verb] = ("--out", tmp_path / "out")
    message = refused(monkeypatch, capsys, *verb.split(), *place, "records.jsonl", *other.get(verb, ()), *asked)
    assert message == "error: records.jsonl under media with 5 frames, 0.5 of 2.5"


def image(width: int, height: int, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "empty"),
        (image(40, 30)[:60], "truncated or broken"),
        (image(9, 9, "GIF", save_all=True, append_images=[Image.new("RGB", (9, 9), "blue")]), "holds 2 frames"),
        (image(30_000, 14), "30,000 x 14 pixels"),
        (b"%PDF-1.4 no image", "not an image"),
    ],
    ids=["0 bytes", "truncated", "animated", "strip", "other file"],
)
def test_an_image_that_cannot_be_used_is_named_with_its_record(monkeypatch, capsys, tmp_path, model, content, complaint):
    source = ranked.write(tmp_path, [(1, 2)], [[(40, 30)]])
    (tmp_path / "0_0.png").write_bytes(content)
    out = tmp_path / "out.jsonl"
    message = refused(monkeypatch, capsys, "logprobs", "--model", model, "--data", source, "--out", out)
    assert complaint in message and "group-0" in message
    assert {path.name for path in tmp_path.iterdir()} == {"records.jsonl", "0_0.png"}


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("model.safetensors", truncate, "truncated or not a safetensors file"),
        ("config.json", lambda path: path.write_text('{"model_type": "paligemma"}'), "'paligemma'"),
        ("tokenizer.json", lambda path: path.write_text(path.read_text().replace("<image>", "<picture>")), "no <image> token"),
    ],
    ids=["truncated weights", "another architecture", "tokenizer without <image>"],
)
@pytest.mark.parametrize("verb", ["logprobs", "export"])
def test_a_model_that_is_none_is_named(monkeypatch, capsys, tmp_path, data, verb, name, damage, complaint):
    directory, out = tiny.checkpoint(tmp_path / "model"), tmp_path / "out"
    damage(directory / name)
    given = ("export", directory, out) if verb == "export" else ("logprobs", "--model", directory, "--data", data, "--out", out)
    message = refused(monkeypatch, capsys, *given)
    assert complaint in message and str(directory) in message and not out.exists()


def test_export_of_a_model_directory_is_its_bytes_with_a_card(monkeypatch, tmp_path, model):
    assert run(monkeypatch, "export", model, tmp_path / "out") == 0
    expected, found = (load_file(d / "model.safetensors") for d in (model, tmp_path / "out"))
    assert expected.keys() == found.keys()
    assert all(expected[name].tobytes() == found[name].tobytes() for name in expected)
    assert f"base_model: {model}" in (tmp_path / "out/README.md").read_text()


NAME = "Größe – δ 🙂"  # of which Latin-1 has two letters


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_json_and_yaml_mean_the_same_in_an_encoding_that_lacks_characters(monkeypatch, tmp_path, encoding):
    def printed(*arguments: object) -> str:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written := io.BytesIO(), encoding=encoding))
        assert not run(monkeypatch, *arguments)
        sys.stdout.flush()
        return written.getvalue().decode(encoding)

    (tmp_path / NAME).mkdir()
    path = ranked.write(tmp_path / NAME, [(1, 2)], [[]])
    found = json.loads(printed("data", "margins", path, "--margins", "human_scores", "--json"))
    assert found["data"] == str(path) and found["pairs"] == 1
    shown = core_yaml.parse(printed("config", "show", CONFIG, "--set", f"run.directory={path.parent}"), "")
    assert shown["run"]["directory"] == str(path.parent)
