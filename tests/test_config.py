"""Experiments: every file here is valid, the paper's values stand in them, and a slip is named with the nearest known key."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pydantic
import pytest
import yaml

from mmrlhf_jax.config import Experiment, Lora, Model, load_experiment, load_launch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.attention import Backend
from mmrlhf_jax.models.registry import published_config
from mmrlhf_jax.sections import resolved
from mmrlhf_jax.tasks import task_of

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MMDPO = ROOT / "configs" / "mmdpo_llava_ov_7b.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_experiment_is_valid_and_resolves_to_itself(path):
    experiment = load_experiment(path)
    assert Experiment.model_validate(yaml.safe_load(resolved(experiment))) == experiment


def test_every_launch_file_is_valid():
    for path in (ROOT / "launch").glob("*.yaml"):
        load_launch(path)


def test_the_papers_values_are_the_defaults_of_mm_dpo():
    objective = load_experiment(MMDPO).objective
    assert (objective.beta, objective.scaling.w, objective.scaling.k) == (0.1, 0.5, 0.5)
    assert objective.scaling.mode == "margin" and objective.scaling.negative_margins == "clamp"
    assert objective.sft_weight == 0.25 and not load_experiment(MMDPO).trains.vision_tower


def test_a_run_may_name_every_implementation_of_attention_and_takes_the_platforms():
    field = Model.model_fields["attention"]
    assert get_args(field.annotation) == get_args(Backend) and field.default == "auto"
    assert load_experiment(MMDPO, ["model.attention=xla"]).model.attention == "xla"


def test_the_ablation_grid_is_the_papers():
    """Figure 12b: w in {0, .1, .5, 1} by k in {.25, .5, 1}; at w = 0 there is no k. Nothing else differs."""
    base, found = load_experiment(MMDPO), []
    for path in sorted((ROOT / "configs" / "ablation").glob("*.yaml")):
        experiment = load_experiment(path)
        scaling = experiment.objective.scaling
        found.append((scaling.w, scaling.k if scaling.w else None))
        same = experiment.model_copy(update={"run": base.run, "objective": base.objective})
        assert same == base and experiment.run.steps and experiment.run.directory.endswith(path.stem)
        assert experiment.objective.model_copy(update={"scaling": base.objective.scaling}) == base.objective
    assert sorted(found, key=str) == sorted(
        [(0.0, None), *[(w, k) for w in (0.1, 0.5, 1.0) for k in (0.25, 0.5, 1.0)]], key=str
    )


@pytest.mark.parametrize(
    ("name", "mode", "margins", "accumulation"),
    [
        ("dpo", "fixed", None, None),
        ("implicit", "batch_implicit", None, 1),  # this beta is of the whole batch
        ("beta_dpo", "beta_dpo", None, 1),
        ("ls_factor", "ls_factor", "stored", None),
    ],
)
def test_the_baselines_differ_from_mm_dpo_in_beta_alone(name, mode, margins, accumulation):
    experiment, base = load_experiment(ROOT / "configs" / f"{name}_llava_ov_7b.yaml"), load_experiment(MMDPO)
    assert experiment.objective.scaling.mode == mode and task_of(experiment.objective).margins == margins
    assert experiment.data.rewards is None and experiment.optimizer == base.optimizer
    assert experiment.batch == base.batch.model_copy(update={"accumulation": accumulation})
    assert experiment.objective.model_copy(update={"scaling": base.objective.scaling}) == base.objective


def test_the_reward_models_of_table_4_differ_in_their_critiques_alone():
    critique, scalar, human = (
        load_experiment(ROOT / "configs" / f"reward{name}_llava_ov_7b.yaml") for name in ("", "_scalar", "_human_critique")
    )
    assert critique.objective.critique_weight == 1 and critique.data.critiques == "critique"
    assert scalar.objective.critique_weight == 0 and scalar.data.critiques is None
    assert human.objective == critique.objective and human.data.path != critique.data.path
    assert scalar.optimizer == human.optimizer == critique.optimizer and scalar.batch == critique.batch


def test_a_base_is_overridden_key_by_key(tmp_path):
    (tmp_path / "base.yaml").write_text(MMDPO.read_text())
    (tmp_path / "own.yaml").write_text("base: base.yaml\noptimizer: {learning_rate: 5e-7}\n")
    own, base = load_experiment(tmp_path / "own.yaml"), load_experiment(MMDPO)
    assert own.optimizer.learning_rate == 5e-7
    assert own.optimizer.model_copy(update={"learning_rate": 1e-6}) == base.optimizer
    assert own.data == base.data


def test_a_base_of_a_base_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: c.yaml\n")
    with pytest.raises(UserError, match=r"b\.yaml: a base may not have a base"):
        load_experiment(tmp_path / "a.yaml")


def test_set_overrides_one_key_and_another_kind_replaces_its_section():
    experiment = load_experiment(MMDPO, ["run.steps=7", "objective.kind=supervised", "data.pairs=2"])
    assert experiment.run.steps == 7 and experiment.objective.kind == "supervised" and experiment.data.pairs == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=1", "unknown key 'optimizer.learning_rat'; did you mean 'learning_rate'"),
        ("objective.scaling.kk=1", "unknown key 'objective.scaling.kk'; did you mean 'k'"),
        ("data.path=[{path: a, wieght: 2}]", "unknown key 'data.path.0.wieght'; did you mean 'weight'"),
        ("modle.path=x", "unknown key 'modle'; did you mean 'model'"),
        ("objective.losses={sigmod: 1}", "unknown loss"),
        ("model.attention=flash", "model.attention: Input should be 'auto', 'xla' or 'pallas'"),
        ("data.pairs=[1", "--set 'data.pairs=[1': not valid YAML"),
        ("model.path=@x", "--set 'model.path=@x': not valid YAML"),
        ("model.path=2026", "model.path: Input should be a valid string, found 2026; write it in quotes"),
        ("batch.rows=0", "batch.rows: Input should be greater than or equal to 1"),
        ("batch.accumulation=5", "batch.rows 32 must be a multiple of batch.accumulation 5"),
        ("objective.kind=reward_model", "needs model.reward_head"),
        ("objective.scaling.momentum=1", "objective.scaling.momentum: must be at least 0 and below 1"),
        ("objective.scaling.filtered=1.0", "objective.scaling.filtered: must be at least 0 and below 1"),
        ("objective.scaling.filtered=.nan", "objective.scaling.filtered: "),
        ("objective.scaling.filtered=0.2", "objective.scaling: filtered 0.2 has an effect only in mode beta_dpo, and the mode"),
        ("objective.scaling.momentum=0.5", "objective.scaling: momentum 0.5 has an effect only in mode beta_dpo, and the mode"),
        ("objective.scaling={mode: fixed, negative_margins: drop}", "negative_margins drop has an effect only in mode margin"),
        (
            "objective.scaling={mode: beta_dpo, negative_margins: unclamped}",
            "beta_dpo; leave it out, or set it to clamp",
        ),
        ("learning_rate", "expected key=value"),
    ],
)
def test_a_slip_ends_in_one_line_that_names_it(override, message):
    with pytest.raises(UserError) as error:
        load_experiment(MMDPO, [override])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "objective", ["objective.losses={aot: 1}", "objective.scaling.mode=batch_implicit", "objective.scaling.mode=beta_dpo"]
)
def test_what_looks_at_the_whole_batch_is_not_taken_in_pieces(objective):
    load_experiment(MMDPO, [objective])
    with pytest.raises(UserError, match=r"looks at the whole batch.*batch\.accumulation: 1"):
        load_experiment(MMDPO, [objective, "batch.accumulation=2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "expected keys and values"),
        ("run: {}\nrun: {}", "given twice"),
        ("base: 5", "expected the name of a file, found 5"),
        ("base: [a.yaml]", "expected the name of a file"),
        ("run: {directory: \xfcber}", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_experiment_is_named(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message) as error:
        load_experiment(path)
    assert "broken.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_config_cannot_be_changed_after_it_was_validated():
    with pytest.raises(pydantic.ValidationError):
        load_experiment(MMDPO).batch.rows = 3


RM, HEAD = "objective={kind: reward_model", "model.reward_head=tanh"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.losses={sigmoid: 0}", "objective.sft_weight=0"], "losses and sft_weight are all 0"),
        (["objective.losses={sigmoid: 1, hinge: -0.5}"], "objective.losses.hinge: Input should be greater than or equal to 0"),
        (
            ["objective={kind: reward_model, score_weight: 0, critique_weight: 0}", "model.reward_head=tanh"],
            "all weights are 0",
        ),
        (
            ["objective={kind: reward_model, score_weight: 0}", "model.reward_head=tanh", "data.critiques=null"],
            "critiques is null",
        ),
        (["trains={projector: false, newline: false, language_model: false}"], "every part is false but reward_head"),
        (
            [
                "trains={projector: false, newline: false, language_model: false, reward_head: false}",
                "objective.kind=supervised",
            ],
            "trains: every part is false, so that nothing would be learnt",
        ),
    ],
)
def test_an_experiment_that_would_learn_nothing_or_the_contrary_is_refused(overrides, message):
    with pytest.raises(UserError) as error:
        load_experiment(MMDPO, overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.losses={sigmoid: 0}"],  # the chosen responses are learnt still
        ["objective.losses={sigmoid: 1, hinge: 0}", "objective.sft_weight=0"],
        [f"{RM}, critique_weight: 0}}", HEAD],
        [
            f"{RM}, critique_weight: 0}}",
            HEAD,
            "trains={projector: false, newline: false, language_model: false}",
        ],
        ["trains={projector: false, language_model: false}"],
    ],
)
def test_one_term_and_one_part_suffice(overrides):
    load_experiment(MMDPO, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.part_rates.vision_tower=1e-5"], "part_rates names vision_tower, which does not learn"),
        (["optimizer.part_rates={newline: 1e-5}", "trains.newline=false"], "part_rates names newline, which does not learn"),
        (["optimizer.matrix_learning_rate=1e-2"], "matrix_learning_rate is of algorithm muon, this is adamw"),
    ],
)
def test_a_rate_of_what_does_not_learn_so_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load_experiment(MMDPO, overrides)
    learnt = ["trains.vision_tower=true", "trains.newline=true", "optimizer.algorithm=muon"]
    load_experiment(MMDPO, [*(each for each in overrides if "trains" not in each), *learnt])


OF_OTHERS = (
    *("mmdpo_internvl2_1b", "mmdpo_internvl3_8b", "reward_internvl3_8b"),
    *("mmdpo_qwen2_5_vl_7b", "reward_qwen2_5_vl_7b"),
    *("mmdpo_qwen3_vl_8b", "reward_qwen3_vl_8b"),
)


@pytest.mark.parametrize("name", OF_OTHERS)
def test_other_families_learn_by_the_same_settings(name):
    """But for the model, and the SFT term without which InternVL was better in the paper; each writes its own template.
    Of models whose media have any size, large ones are made smaller, and the times of frames must be known."""
    kind = name.split("_")[0]
    experiment, base = (load_experiment(ROOT / "configs" / f"{each}.yaml") for each in (name, f"{kind}_llava_ov_7b"))
    assert published_config(experiment.model.path) is not None and experiment.data.template is None
    assert experiment.run.directory == f"runs/{name}"
    same = {"run": base.run, "model": base.model}
    if kind == "mmdpo" and "internvl" in name:
        assert experiment.objective.sft_weight == 0
        same["objective"] = base.objective
        assert experiment.objective.model_copy(update={"sft_weight": base.objective.sft_weight}) == base.objective
    if "qwen" in name:
        of_videos = {"over_budget": ("smaller_media", "drop"), "frames_per_second": 1.0}
        assert experiment.data == base.data.model_copy(update=of_videos)
        same["data"] = base.data
    assert experiment.model_copy(update=same) == base


ONE_CARD = (
    *("mmdpo_lora_llava_ov_7b", "reward_lora_llava_ov_7b", "mmdpo_lora_internvl3_8b", "reward_lora_internvl3_8b"),
    "mmdpo_lora_qwen2_5_vl_7b",
)


@pytest.mark.parametrize("name", ONE_CARD)
def test_what_is_for_one_card_differs_from_full_training_in_what_saves_memory(name):
    """And in the learning rate, which for adapters is ten times as high."""
    experiment, base = (load_experiment(ROOT / "configs" / f"{each}.yaml") for each in (name, name.replace("_lora", "")))
    assert experiment.lora == Lora() and experiment.model.frozen_dtype == "bfloat16"
    assert [part for part, learns in experiment.trains if learns] == ["language_model", "reward_head"]
    assert experiment.optimizer.learning_rate == pytest.approx(10 * base.optimizer.learning_rate)
    assert experiment.batch.rows == base.batch.rows and experiment.batch.slots == 8192
    if name.startswith("mmdpo"):
        assert experiment.objective.reference == "adapter_base"
    same = {
        "model": experiment.model.model_copy(update={"frozen_dtype": base.model.frozen_dtype}),
        "data": experiment.data.model_copy(update={"over_budget": base.data.over_budget}),
        "optimizer": experiment.optimizer.model_copy(update={"learning_rate": base.optimizer.learning_rate}),
        "batch": experiment.batch.model_copy(update={"slots": base.batch.slots}),
        "trains": base.trains,
        "lora": base.lora,
        "run": base.run,
    }
    if name.startswith("mmdpo"):
        same["objective"] = experiment.objective.model_copy(update={"reference": base.objective.reference})
    assert experiment.model_copy(update=same) == base
