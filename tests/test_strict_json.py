"""A number that is not finite comes in nowhere and goes out nowhere: every reader and writer, with file and record."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf_jax import cli, config, finite, records, strict_json
from mmrlhf_jax.data.mixture import Part, open_examples
from mmrlhf_jax.data.sources import read_records
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import write_json_lines
from mmrlhf_jax.tasks import open_training_examples, task_of
from mmrlhf_jax.training.metrics import MetricsLog, read_metrics

ROOT = Path(__file__).parents[1]
NOT_JSON = ["NaN", "Infinity", "-Infinity", "1e999", "-1e400"]
NO_NUMBERS = ["1e39", "-4e38", "1" + "0" * 39, '"nan"', '"1"', "true", "false", "[1]", "{}"]


# The reader and the writer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NOT_JSON)
def test_what_is_no_json_is_not_read_and_its_field_is_named(number):
    with pytest.raises(strict_json.JSONDecodeError, match=rf"record 'a': field 'x\.1\.y' must be .* found {number}"):
        strict_json.loads(f'{{"id": "a", "x": [0, {{"y": {number}}}]}}')
    with pytest.raises(strict_json.JSONDecodeError, match="no finite number"):
        strict_json.loads(number)


def test_an_integer_of_endless_digits_is_not_read():
    with pytest.raises(strict_json.BadNumber, match="field 'a' must be a finite number, found an integer of 5000 digits"):
        strict_json.loads('{"a": ' + "1" * 5000 + "}")


PRETTY = [
    {"id": "1", "prompt": 'Is NaN a number? And -Infinity, 1e999, "id": 3?', "responses": ["a"]},
    {"id": "2", "prompt": "q", "responses": [{"text": "a", "reward": 0.5, "x": [[], {}, {"y": "\\\\"}]}]},
]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("0.5", "NaN", r"record '2': field 'responses\.0\.reward' must be .* found NaN"),
        ("0.5", "1e999", r"record '2': field 'responses\.0\.reward' must be .* found 1e999"),
        ("0.5", "9" * 400, r"record '2': field 'responses\.0\.reward' must .* an integer of 400 digits"),
        ('"prompt": "q"', '"prompt": "q", "prompt": "r"', r"field 'prompt' stands twice"),
        ('"y": ', '"y": 1, "y": ', r"field 'y' stands twice"),
        ('"q"', '"\\ud800"', r"not valid UTF-8: record '2': field 'prompt' holds half of a character"),
        ('"text"', '"\\udc00"', r"not valid UTF-8: record '2': field 'responses\.0\."),
    ],
)
def test_in_a_list_of_records_the_record_the_field_and_its_line_are_named(tmp_path, old, new, expected):
    """Whatever the texts before it say."""
    text = json.dumps(PRETTY, indent=1)
    (tmp_path / "rows.json").write_text(text)
    assert len(read_records(tmp_path / "rows.json")) == 2
    (tmp_path / "rows.json").write_text(text.replace(old, new))
    line = text[: text.index(old)].count("\n") + 1
    with pytest.raises(UserError, match=rf"rows\.json\[1\]:{line}: {expected}") as error:
        read_records(tmp_path / "rows.json")
    assert "\n" not in str(error.value) and str(error.value).isprintable()


def test_the_number_of_the_record_is_named_in_a_list_of_one_line(tmp_path):
    rows = [{"id": str(n), "prompt": "q", "responses": ["a"]} for n in range(50)]
    (tmp_path / "rows.json").write_text(json.dumps(rows).replace('"id": "33"', '"id": "33", "id": "x"'))
    with pytest.raises(UserError, match=r"rows\.json\[33\]: field 'id' stands twice"):
        read_records(tmp_path / "rows.json")


@pytest.mark.parametrize("text", ['["\\ud800"]', '{"a": {"\\uDFFF": 1}}', '{"a": "\\\\\\uD800\\uD800\\uDC00"}', '"\\udead"'])
def test_half_a_character_is_not_read_by_any_door(text):
    with pytest.raises(strict_json.LoneSurrogate, match="not valid UTF-8"):
        strict_json.loads(text)
    with pytest.raises(strict_json.LoneSurrogate):
        strict_json.loads(text.encode())


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\\\\ud800"', '{"ud800": "\\\\\\\\uD800"}'])
def test_whole_characters_and_what_only_looks_like_half_of_one_are_read(text):
    assert strict_json.loads(text) == json.loads(text)


@given(
    st.recursive(st.integers(-9, 9) | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)), st.data()
)
@pytest.mark.long
def test_a_number_that_is_wrong_is_found_where_it_stands(value, data):
    """Whatever stands before and after it."""
    row = {"before": value, "here": [value, {"wrong": 0.125}], "after": value}
    text = json.dumps(row, indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=data.draw(st.booleans()))
    before, after = text.rsplit('"wrong": 0.125', 1) if json.dumps(value).find("0.125") < 0 else (None, None)
    if before is None:
        return
    with pytest.raises(strict_json.BadNumber, match=r"field 'here\.1\.wrong' must be a finite number, found NaN") as error:
        strict_json.loads(before + '"wrong": NaN' + after)
    assert error.value.pos == len(before) + len('"wrong": ')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_a_value_is_written_as_json_that_any_reader_takes_or_refused(value):
    def strict(name):
        raise AssertionError(name)

    finite_alone = "NaN" not in (text := json.dumps(value)) and "Infinity" not in text
    if finite_alone or not re.search(r"NaN|Infinity", json.dumps(strict_json.with_nulls(value))):
        assert json.loads(strict_json.dumps(strict_json.with_nulls(value)), parse_constant=strict) is not strict
    if finite_alone:
        assert strict_json.loads(strict_json.dumps(value)) == value == strict_json.with_nulls(value)


def test_a_value_that_json_cannot_say_is_not_written_and_its_place_is_named():
    with pytest.raises(UserError, match=r"^out\.jsonl, line 3: a\.1\.b is inf, which JSON cannot say$"):
        strict_json.dumps({"a": [0, {"b": math.inf}]}, where="out.jsonl, line 3")


def test_lines_with_such_a_number_leave_no_file_and_name_the_record(tmp_path):
    with pytest.raises(UserError, match=r"rows\.jsonl: record 'b': reward is nan"):
        write_json_lines(tmp_path / "rows.jsonl", [{"id": "a", "reward": 1.0}, {"id": "b", "reward": math.nan}])
    assert not list(tmp_path.iterdir())


def test_figures_of_a_command_are_null_where_they_are_not_finite_and_that_is_said(capsys):
    strict_json.print_figures({"loss": math.nan, "rows": [1.0, math.inf], "name": "NaN"})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"loss": None, "rows": [1.0, None], "name": "NaN"}
    assert "loss is nan: null" in err and "rows.1 is inf: null" in err


# Doors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e39, -3.5e38, 10**39, 10**400, True, "1", "nan", None, [1]])
def test_a_number_from_outside_is_one_that_float32_holds(value):
    assert not finite.is_finite(value)
    with pytest.raises(UserError, match=r"^here must be a finite number"):
        finite.number(value, "here")


@pytest.mark.parametrize(
    ("text", "value"),
    [("4", 4.0), (" 4.5 ", 4.5), ("-.5", -0.5), ("1e-3", 1e-3), ("+2.", 2.0), ("５", 5.0)]
    + [(text, None) for text in ("", "N/A", "nan", "inf", "Infinity", "1_0", "1e39", "1e999", "٤", "0x1", "1e", ".")],
)
def test_a_text_that_says_a_number_is_one(text, value):
    assert finite.from_text(text) == value


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_every_number_of_float32_is_one(value):
    assert finite.number(value, "here") == value and np.isfinite(np.float32(value))


def record(**fields) -> str:
    response = {"text": "a", "rank": 1} | fields
    text = json.dumps({"id": "r7", "prompt": "p", "responses": [response, {"text": "b", "rank": 2}]})
    return re.sub(r'"<(.*?)>"', lambda raw: raw[1].replace('\\"', '"'), text)


@pytest.mark.parametrize("number", NOT_JSON + NO_NUMBERS)
@pytest.mark.parametrize("fields", [{"reward": "<%s>"}, {"scores": {"ethics": "<%s>"}}], ids=lambda fields: next(iter(fields)))
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_rewards_and_scores_of_records_are_finite_numbers(tmp_path, fields, number, name):
    line = record(**fields).replace("%s", number)
    (tmp_path / name).write_text(f"[{line}]" if name.endswith(".json") else line)
    with pytest.raises(UserError) as error:
        read_records(tmp_path / name)
    assert name in str(error.value) and re.search("reward|scores", str(error.value)) and "\n" not in str(error.value)
    assert "r7" in str(error.value) or "0.responses.0" in str(error.value)


@pytest.mark.parametrize("number", NOT_JSON)
@pytest.mark.parametrize("place", ["seen", "media.0.width"])
def test_fields_that_nobody_reads_are_json_too(tmp_path, number, place):
    """They would be written into a built set."""
    extra = {"seen": "<%s>"} if place == "seen" else {"media": [{"width": "<%s>"}]}
    (tmp_path / "rows.jsonl").write_text(record(**extra).replace("%s", number))
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: record 'r7': field 'responses\.0\.{place}' must be a finite"):
        read_records(tmp_path / "rows.jsonl")


def test_a_record_with_such_a_number_is_not_written():
    """One that a program of the user's own has made."""
    from mmrlhf_jax.data.examples import dump_record

    made = records.RankedRecord("r7", "p", (records.Response("a", reward=math.inf),))
    with pytest.raises(UserError, match=r"record 'r7': responses\.0\.reward is inf"):
        dump_record(made)


STORED = config.Preference(scaling=config.Scaling(mode="ls_factor", margins="stored"))


@pytest.mark.parametrize("number", NOT_JSON + NO_NUMBERS)
def test_the_numbers_of_pairs_are_finite(tmp_path, number):
    pair = {"id": "r7", "prompt": "p", "chosen": "a", "rejected": "b", "ls_factor": 0}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair).replace(": 0}", f": {number}}}"))
    with pytest.raises(UserError, match=r"pairs\.jsonl.*r7.*ls_factor"):
        open_training_examples(config.Data(path=str(tmp_path / "pairs.jsonl")), task_of(STORED))


def test_a_pair_has_one_number(tmp_path):
    pair = {"id": "r7", "prompt": "p", "chosen": "a", "rejected": "b"}
    lines = [json.dumps(pair | {"ls_factor": factor}) for factor in (0.5, 0.5)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    open_training_examples(config.Data(path=str(tmp_path / "pairs.jsonl")), task_of(STORED))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines).replace("0.5", "0.25", 1))
    with pytest.raises(UserError, match=r"record 'r7', pair \(0, 1\): ls_factor is both 0.25 and 0.5"):
        open_training_examples(config.Data(path=str(tmp_path / "pairs.jsonl")), task_of(STORED))


@pytest.mark.parametrize("weight", [math.nan, math.inf, 0.0, -1.0, 1e300])
def test_the_weight_of_a_set_is_a_number_of_passes(weight):
    with pytest.raises(UserError, match=r"weight must be positive, at least .* and at most"):
        open_examples([Part("a", weight=weight)])


def test_weights_within_weights_are_one_too(tmp_path):
    (tmp_path / "mixture.yaml").write_text("datasets: [{path: a, weight: 1000000}]")
    with pytest.raises(UserError, match=r"weight must be positive, at least .* and at most"):
        open_examples([Part(str(tmp_path / "mixture.yaml"), weight=1e6)])


@pytest.mark.parametrize("temperature", ["nan", "inf", "-1", "1e39", "1e-50"])
def test_an_option_that_is_a_number_is_finite(monkeypatch, capsys, temperature):
    monkeypatch.setattr(sys, "argv", ["mmrlhf", "generate", "--model", "m", "--prompt", "p", "--temperature", temperature])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and "--temperature" in capsys.readouterr().err


# Metrics -------------------------------------------------------------------------------------------------------------


def test_metrics_stay_json_whatever_a_step_gives_and_are_read_back(tmp_path):
    log = MetricsLog(tmp_path)
    edges = {"beta/histogram_edges": [0.0, 0.5, 1.0]}
    log.write(1, {"loss": 0.5, "grad_norm": 1.0, "beta/histogram": [0.25, 0.75]} | edges)
    log.write(2, {"loss": math.nan, "grad_norm": math.inf, "beta/histogram": [math.nan, math.nan]} | edges)
    log.close()

    def strict(name):
        raise AssertionError(f"{name} in metrics.jsonl")

    lines = [json.loads(line, parse_constant=strict) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == read_metrics(tmp_path)
    assert (lines[1]["loss"], lines[1]["grad_norm"], lines[1]["beta/histogram"]) == (None, None, None)
    assert MetricsLog(tmp_path, resume_step=2).kept == lines[1]


def test_the_page_of_a_run_whose_last_step_was_not_finite_is_drawn(tmp_path):
    from mmrlhf_jax.training.goodput import Goodput
    from mmrlhf_jax.training.page import PAGE, write_run_page

    log = MetricsLog(tmp_path)
    edges = {"beta/histogram_edges": [0.0, 0.5, 1.0]}
    for step, number in ((1, 0.5), (2, math.nan)):
        log.write(step, {"loss": number, "learning_rate": 1e-6, "beta/histogram": [number, number]} | edges)
    log.close()
    experiment = config.load_experiment(ROOT / "configs" / "mmdpo_llava_ov_7b.yaml")
    write_run_page(tmp_path, experiment, done=2, steps=2, goodput=Goodput().figures())
    assert "<svg" in (tmp_path / PAGE).read_text() and "nan" not in (tmp_path / PAGE).read_text().lower().split("<style")[0]
