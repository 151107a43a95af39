"""Configuration text to values: YAML 1.2's core schema, strict and finite numbers, and what lies over what."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf_jax import cli, config, core_yaml, sections
from mmrlhf_jax.config import load_experiment, load_launch
from mmrlhf_jax.data.mixture import find_parts
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.launching.describe import directories
from mmrlhf_jax.sharding import distributed

MMDPO = Path(__file__).parents[1] / "configs" / "mmdpo_llava_ov_7b.yaml"


def written(tmp_path, text: str, name: str = "own.yaml") -> Path:
    (tmp_path / "base.yaml").write_text(MMDPO.read_text())
    (tmp_path / name).write_text(text)
    return tmp_path / name


# YAML 1.2 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("+1", 1),
        ("1e-6", 1e-6),
        ("1E3", 1e3),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("True", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        # Text, although YAML 1.1 makes true, ninety, a million, two, a date and infinity of it.
        *((text, text) for text in ("yes", "No", "on", "off", "y", "1:30", "1:30:15.5", "1_000", "0b1", "2026-01-02")),
        *((text, text) for text in ("=", "<<", "2026-13-01", "inf", "nan", "Infinity", "1e", "-0x1F", "+0o7", "tRUE", "١٢")),
    ],
)
def test_plain_text_is_what_the_core_schema_of_yaml_1_2_says(text, value):
    found = core_yaml.parse(f"key: {text}", "here")["key"]
    assert found == value and type(found) is type(value)


@given(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()))
def test_what_is_written_is_read_back_the_same(values):
    assert core_yaml.parse(core_yaml.dump(values), "here") == values


@pytest.mark.parametrize(
    "text", ["yes", "010", "0o10", "1:30", "1_000", "1e-6", ".inf", "08", "<<", "=", "2026-01-02", "~", ""]
)
def test_text_that_is_a_number_to_some_reader_is_written_in_quotes(text):
    for read in (yaml.safe_load, lambda dumped: core_yaml.parse(dumped, "here")):
        assert read(core_yaml.dump({"a": text})) == {"a": text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {<<: {steps: 1}}", "merge keys (<<) are not read"),
        ("a: &a {rows: 1}\nbatch:\n  <<: *a\n  rows: 2", "line 3: not valid YAML (merge keys (<<) are not read"),
        ("run: {steps: 1, steps: 2}", "key 'steps' is given twice"),
        ("run:\n  steps: 1\n  'steps': 2", "key 'steps' is given twice"),
        ("1: 2", "key 1 is no text; write it in quotes"),
        ("run: {true: 2}", "key True is no text"),
        ("run: {!!merge <<: 2}", "could not determine a constructor"),
        ("run: {[a]: 2}", "key ['a'] is no text"),
        ("run: {~: 2}", "key None is no text"),
        ("run: !!python/object:os.system {}", "could not determine a constructor"),
        ("run: !!timestamp 2026-01-01", "could not determine a constructor"),
        ("run: {steps: !!int '1_0'}", "'1_0' is no whole number"),
        ("run: " + "[" * 5000, "nested too deeply"),
        ("run: {steps: 1" + "0" * 5000 + "}", "too many digits"),
        ("--- {}\n--- {}", "another document"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        load_experiment(written(tmp_path, text))
    assert message in str(error.value) and "own.yaml" in str(error.value) and "\n" not in str(error.value)


def test_anchors_are_read(tmp_path):
    text = "base: base.yaml\nrun: {steps: &n 7, checkpoint_every: *n}\n"
    assert load_experiment(written(tmp_path, text)).run.checkpoint_every == 7


# Numbers -------------------------------------------------------------------------------------------------------------


def numeric_fields(kind: type[sections.Section]):
    """(section, field, type) of every number and truth value of a section and those inside it."""
    for name, field in kind.model_fields.items():
        for inner in sections.kinds_of(field.annotation):
            if isinstance(inner, type) and issubclass(inner, sections.Section):
                yield from numeric_fields(inner)
            elif inner in (int, float, bool):
                yield kind, name, inner


FIELDS = sorted({*numeric_fields(config.Experiment), *numeric_fields(config.Launch)}, key=str)
WRONG = {int: [True, "1", "yes", 1.0, 1.5, math.nan, math.inf, [1], 2**40], bool: [0, 1, "yes", "true", 1.0, "on"]}
WRONG[float] = [True, "1.0", "yes", "1:30", math.nan, math.inf, -math.inf, 1e39, -1e39, 1e-50, [1.0], 10**400]


@pytest.mark.parametrize(("section", "name", "kind"), FIELDS, ids=lambda each: getattr(each, "__name__", each))
def test_no_field_takes_another_type_for_a_number_nor_one_that_float32_does_not_hold(section, name, kind):
    needed = {key: "x" for key, field in section.model_fields.items() if field.is_required()}
    for value in WRONG[kind]:
        with pytest.raises(UserError, match=name):
            sections.validate(section, {name: value} | needed, "here")


def test_numbers_of_free_keys_are_as_strict():
    assert len(FIELDS) > 50
    for key in ("objective.losses.sigmoid", "optimizer.part_rates.projector"):
        for value in ("yes", "true", ".inf", ".nan", "1:30", "1e39", "'1'", "null", ""):
            with pytest.raises(UserError, match=key):
                load_experiment(MMDPO, [f"{key}={value}"])
    for value in ("yes", "true", "1.0", "'2'"):
        with pytest.raises(UserError, match=r"mesh\.slices\.data"):
            load_launch(None, [f"mesh.slices.data={value}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate='1e-6'", "found '1e-6'; write it without quotes"),
        ("run.steps='10'", "found '10'; write it without quotes"),
        ("optimizer.learning_rate=1_0", "optimizer.learning_rate: Input should be a valid number, found '1_0'"),
        ("objective.losses.sigmoid=yes", ": objective.losses.sigmoid: Input should be a valid number, found 'yes'"),
        ("data.path=[a, {path: b, weight: .inf}]", ": data.path.1.weight: Input should be a finite number, found inf"),
        ("objective.losses={}", "objective.losses: names no loss; choose from"),
        ("run.directory=", "run.directory: Input should be a valid string, found null"),
        ("run.directory=''", "run.directory: the path is empty"),
        ("objective=null", "objective.kind: choose from preference, reward_model, supervised"),
        ("optimizer=5", "optimizer: Input should be a valid dictionary or instance of Optimizer, found 5"),
        ("run.directory.x=5", "run.directory: Input should be a valid string, found {'x': 5}"),
        ("data.path.0=x", "data.path: Input should be a valid string, found {'0': 'x'}"),
        ("objective.kind=", "objective.kind: choose from preference, reward_model, supervised, found nothing"),
        ("objective=supervised", "objective: expected keys and values, found 'supervised'"),
        ("lora.layers=q", "lora.layers: expected a list, as in [a, b], found 'q'"),
        ("lora.layers=[]", "lora.layers: the list is empty"),
        ("lora.parts=[]", "lora.parts: the list is empty"),  # which would train all of them as a whole
        ("data.over_budget=[]", "data.over_budget: the list is empty"),
        ("data.path=[]", "data.path: "),
        ("run..steps=1", "expected key=value"),
        ("run.directory=runs/try #2", "YAML takes '#2' for a comment and would ignore it; write the value in quotes"),
        ("run.directory=#2", "YAML takes '#2' for a comment"),
        ("data.path=[a #b\n, c]", "YAML takes '#b' for a comment"),
        ("=1", "expected key=value"),
        ("run=1", "run: Input should be a valid dictionary or instance of Run, found 1"),
    ],
)
def test_the_line_says_what_was_found_under_the_key_as_the_file_spells_it(override, message):
    with pytest.raises(UserError) as error:
        load_experiment(MMDPO, [override])
    assert message in str(error.value) and "\n" not in str(error.value)


# What lies over what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["runs/try#2", "'runs/try #2'", '"runs/try #2"'])
def test_a_hash_that_begins_no_comment_is_part_of_the_value(value):
    assert load_experiment(MMDPO, [f"run.directory={value}"]).run.directory == value.strip("'\"")


def test_a_dotted_key_sets_that_key_alone():
    losses = load_experiment(MMDPO, ["objective.losses.sigmoid=0.8", "objective.losses.bco_pair=0.2"]).objective.losses
    assert losses == {"sigmoid": 0.8, "bco_pair": 0.2}
    rates = load_experiment(MMDPO, ["optimizer.part_rates.projector=1e-5", "optimizer.part_rates.newline=2e-5"])
    assert rates.optimizer.part_rates == {"projector": 1e-5, "newline": 2e-5}
    slices = load_launch(
        None, ["mesh.slices.data=2", "environment.A=x", "mesh.slices.fsdp=4", "environment.B=y", "mesh.data=2"]
    )
    assert slices.mesh.slices == {"data": 2, "fsdp": 4} and slices.environment == {"A": "x", "B": "y"}


def test_a_dotted_key_beside_the_default_keeps_the_default(tmp_path):
    """A file that says nothing of losses has one, sigmoid; a second one is beside it."""
    text = "model: {path: a}\ndata: {path: b}\nobjective: {kind: preference}\nrun: {directory: c}\n"
    losses = load_experiment(written(tmp_path, text), ["objective.losses.bco_pair=0.2"]).objective.losses
    assert losses == {"sigmoid": 1.0, "bco_pair": 0.2}


def test_the_whole_of_a_mapping_of_free_keys_replaces_it(tmp_path):
    assert load_experiment(MMDPO, ["objective.losses={hinge: 1}"]).objective.losses == {"hinge": 1.0}
    path = written(tmp_path, "base: base.yaml\nobjective: {losses: {ipo: 0.5}}\noptimizer: {part_rates: {newline: 1e-5}}\n")
    assert load_experiment(path).objective.losses == {"ipo": 0.5}
    (tmp_path / "base.yaml").write_text(MMDPO.read_text().replace("optimizer:", "optimizer:\n  part_rates: {projector: 1e-4}"))
    assert load_experiment(path).optimizer.part_rates == {"newline": 1e-5}
    assert load_experiment(path).optimizer.learning_rate == 1e-6


def test_the_whole_of_a_section_merges_as_a_file_over_its_base():
    optimizer = load_experiment(MMDPO, ["optimizer.warmup_ratio=0.5", "optimizer={learning_rate: 1e-3}"]).optimizer
    assert (optimizer.learning_rate, optimizer.warmup_ratio) == (1e-3, 0.5)


def test_keys_that_are_set_beside_another_kind_are_of_that_kind_in_any_order():
    kind, key, head = "objective.kind=reward_model", "objective.centring=0.1", "model.reward_head=tanh"
    for order in ([kind, key, head], [key, head, kind], [head, kind, key]):
        assert load_experiment(MMDPO, order).objective.centring == 0.1
    with pytest.raises(UserError, match=r"unknown key 'objective\.beta'"):
        load_experiment(MMDPO, ["objective.beta=0.3", kind, head])


def test_a_key_that_is_set_twice_is_said_and_the_last_counts(capsys):
    assert load_experiment(MMDPO, ["run.steps=3", "run.seed=1", "run.steps=4"]).run.steps == 4
    assert "--set run.steps is given twice; --set run.steps=4 counts" in capsys.readouterr().err


CHILD, PARENT = "objective.losses.sigmoid=2", "objective.losses={bco_pair: 1}"


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (CHILD, PARENT),
        ("optimizer.learning_rate=1e-3", "optimizer={learning_rate: 1e-4}"),
        ("optimizer.learning_rate=1e-3", "optimizer=null"),
        ("objective.scaling.w=1", "objective.scaling=null"),
        ("objective.beta=0.2", "objective={kind: supervised}"),
        ("objective.kind=supervised", "objective={kind: preference}"),
        ("data.pairs.at_most=2", "data={pairs: all}"),
    ],
)
def test_a_setting_that_takes_away_what_an_earlier_one_sets_is_refused_with_both_named(earlier, later):
    with pytest.raises(UserError) as error:
        load_experiment(MMDPO, [earlier, "run.steps=1", later])
    assert f"--set {later!r} takes away what --set {earlier!r} sets" in str(error.value)


def test_settings_of_a_key_and_of_what_is_below_it_go_together_where_none_is_lost():
    assert load_experiment(MMDPO, [PARENT, CHILD]).objective.losses == {"bco_pair": 1.0, "sigmoid": 2.0}
    made = load_experiment(MMDPO, ["optimizer.learning_rate=1e-3", "optimizer={beta1: 0.5}", "optimizer.beta2=0.9"]).optimizer
    assert (made.learning_rate, made.beta1, made.beta2) == (1e-3, 0.5, 0.9)


@pytest.mark.parametrize("key", ["optimizer.beta1", "optimizer.beta2", "optimizer.warmup_ratio", "guard.decay"])
def test_what_must_be_below_one_is_so_in_float32(key):
    for value in ("0.99999999", "0.99999999999", "1", "1.5", "-0.1"):
        with pytest.raises(UserError, match=rf"{key}: must be at least 0 and below 1, also in float32"):
            load_experiment(MMDPO, [f"{key}={value}"])
    value = 1 - 2**-24  # the largest float32 below 1
    section, name = key.split(".")
    assert getattr(getattr(load_experiment(MMDPO, [f"{key}={value!r}"]), section), name) == value


def test_what_must_be_above_one_is_so_in_float32():
    for value in ("1.00000001", "1", "0.5"):
        with pytest.raises(UserError, match=r"guard\.spike_factor: must be above 1, also in float32"):
            load_experiment(MMDPO, [f"guard.spike_factor={value}"])
    assert load_experiment(MMDPO, ["guard.spike_factor=1.0000002"]).guard.spike_factor == 1.0000002


@pytest.mark.parametrize("key", ["run.directory", "data.path", "model.path", "data.rewards"])
@pytest.mark.parametrize("value", [r'"a\0b"', r'"\0"'])
def test_a_path_with_a_nul_character_is_refused(key, value):
    with pytest.raises(UserError, match=rf"{key.replace('.', '[.]')}: .* has a NUL character"):
        load_experiment(MMDPO, [f"{key}={value}"])


@pytest.mark.parametrize("variable", [r'{A: "a\0b"}', r'{"A\0": b}', "{'A=B': c}", "{'': d}"])
def test_what_no_environment_can_hold_is_refused(variable):
    with pytest.raises(UserError, match=r"environment: .* is no variable"):
        load_launch(None, [f"environment={variable}"])
    assert load_launch(None, ["environment={A: b=c}"]).environment == {"A": "b=c"}


NINES, LETTERS = "9" * 5000, "x" * 5000


@pytest.mark.parametrize(
    "settings",
    [
        [f"run.steps={NINES}"],
        [f"optimizer.weight_decay={NINES[:4000]}"],
        [f"run.{LETTERS}=1"],
        [f"objective.losses.{LETTERS}=1"],
        [LETTERS],
        [f"run.directory.x={LETTERS}", f"run.directory={LETTERS}"],
        [f"{LETTERS}=!!int x"],
        [f"run={{{LETTERS}: 1, {LETTERS}: 2}}"],
    ],
)
def test_a_message_does_not_write_out_what_is_long(settings):
    with pytest.raises(UserError) as error:
        load_experiment(MMDPO, settings)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("nothing", ["", " null", " {}", " ~"])
def test_an_empty_section_means_its_defaults(tmp_path, nothing):
    text = (
        f"model: {{path: a}}\ndata: {{path: b}}\nrun: {{directory: c}}\nobjective:\n  kind: preference\n  scaling:{nothing}\n"
    )
    empty = "".join(f"{name}:{nothing}\n" for name in ("optimizer", "batch", "guard", "trains"))
    assert load_experiment(written(tmp_path, text + empty)) == load_experiment(written(tmp_path, text))
    (tmp_path / "launch.yaml").write_text(f"mesh:{nothing}\n")
    assert load_launch(tmp_path / "launch.yaml") == config.Launch()


def test_an_empty_section_over_a_base_leaves_it_as_it_is(tmp_path):
    path = written(tmp_path, "base: base.yaml\nobjective:\noptimizer:\n")
    assert load_experiment(path) == load_experiment(MMDPO)
    assert load_experiment(path, ["objective=", "run="]) == load_experiment(MMDPO)


def test_a_section_that_may_be_absent_is_there_with_nothing_behind_it_and_absent_with_null(tmp_path):
    assert load_experiment(written(tmp_path, "base: base.yaml\nlora:\n")).lora == config.Lora()
    assert load_experiment(written(tmp_path, "base: base.yaml\nlora: null\n"), []).lora is None
    assert load_experiment(MMDPO, ["lora.rank=8"]).lora == config.Lora(rank=8)
    (tmp_path / "launch.yaml").write_text("distributed:\nenvironment:\n")
    assert load_launch(tmp_path / "launch.yaml") == config.Launch(distributed=config.Distributed())


def test_a_file_of_comments_alone_is_an_empty_one(tmp_path):
    (tmp_path / "launch.yaml").write_text("# nothing yet\n")
    assert load_launch(tmp_path / "launch.yaml") == config.Launch()
    with pytest.raises(UserError, match=r"own\.yaml: model: Field required"):
        load_experiment(written(tmp_path, "# nothing yet\n"))


# Homes ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return str(tmp_path / "home")


def test_a_tilde_in_front_of_a_path_is_the_home_directory(home, tmp_path):
    keys = ("run.directory", "data.rewards", "data.held_out", "data.media_root", "model.path")
    found = load_experiment(MMDPO, [f"{key}=~/x" for key in keys] + ["data.path=[~/a, {path: ~/b, media_root: ~/c}]"])
    values = found.model_dump()
    assert all(values[section][key] == f"{home}/x" for section, key in (name.split(".") for name in keys))
    assert found.data.paths == [f"{home}/a", f"{home}/b"] and found.data.path[1].media_root == f"{home}/c"
    (tmp_path / "mixture.yaml").write_text("datasets: [{json_path: ~/a.jsonl, media_root: ~/m}, {path: b.jsonl}]")
    parts = find_parts(tmp_path / "mixture.yaml")
    assert [part.path for part in parts] == [f"{home}/a.jsonl", f"{tmp_path}/b.jsonl"] and parts[0].media_root == f"{home}/m"


def test_a_base_may_lie_in_the_home_directory(home, tmp_path):
    os.mkdir(home)
    Path(home, "base.yaml").write_text(MMDPO.read_text())
    assert load_experiment(written(tmp_path, "base: ~/base.yaml\n")) == load_experiment(MMDPO)


def test_a_home_of_nobody_is_refused_and_a_container_is_not_given_one(home):
    with pytest.raises(UserError, match=r"run\.directory: ~nobody-of-that-name/x: there is no home directory of that name"):
        load_experiment(MMDPO, ["run.directory=~nobody-of-that-name/x"])
    with pytest.raises(UserError, match="~/runs is another directory in a container"):
        directories(str(MMDPO), ["--set", "run.directory=~/runs"])


def test_a_tilde_in_the_environment_of_a_launch_file_is_what_it_is_in_a_shell(home):
    environment = {"A": "~/mine"}
    launch = load_launch(None, ["environment={JAX_COMPILATION_CACHE_DIR: ~/cache, A: ~/theirs, B: 'x=~/y', C: '~'}"])
    distributed.prepare(launch, environment)
    assert environment == {"JAX_COMPILATION_CACHE_DIR": f"{home}/cache", "A": "~/mine", "B": "x=~/y", "C": "~"}


def test_a_tilde_on_the_command_line_is_the_home_directory(home, monkeypatch, capsys, tmp_path):
    """Where no shell has seen it: `--out=~/x`."""
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["data", "stats", "~/none.jsonl"],
        ["train", "~/none.yaml"],
        ["plan", "~/none.yaml", "--launch=~/x.yaml"],
        ["eval", "benchmarks", "--plan", "--data=ai2d=~/none.parquet"],
    ):
        monkeypatch.setattr("sys.argv", ["mmrlhf", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2 and f"{home}/" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_path_on_the_command_line_knows_the_home_directory():
    """By name: whatever is called like a path has the callback."""
    import typer

    def commands(group):
        for command in group.commands.values():
            yield from commands(command) if hasattr(command, "commands") else [command]

    paths = {"out", "source", "media_root", "data", "experiment", "experiments", "launch", "launches", "batch_file", "model"}
    paths |= {"readme", "image", "video", "checkpoint", "rewards"}
    found = 0
    for command in commands(typer.main.get_command(cli.app)):
        for parameter in command.params:
            if parameter.name in paths:
                found += 1
                assert parameter.callback is not None, (command.name, parameter.name)
    assert found > 30
