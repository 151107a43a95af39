"""Precision by role: what learns is float32 with all that belongs to it, what is frozen is what the experiment says."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.model_config import read_config
from mmrlhf_jax.models.llava_onevision import FAMILY
from mmrlhf_jax.models.llava_onevision.weights import NAMES
from mmrlhf_jax.models.lora import adapted_layers, is_adapter, merge_lora
from mmrlhf_jax.planning.abstract import abstract_model, abstract_state
from mmrlhf_jax.sections import resolved
from mmrlhf_jax.sharding.feed import place
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training import trained
from mmrlhf_jax.training.base import load_base
from mmrlhf_jax.training.identity import DRAW, SETTINGS, check_identity, computed_precision, difference, known_identity
from mmrlhf_jax.training.optimizer import make_optimizer
from mmrlhf_jax.training.state import init_state, precision_line, split_model
from mmrlhf_jax.training.step import make_train_step
from tests import tiny
from tests.training import groups

LORA = "adapters beside whole parts"
WAYS = {
    "everything": {"trains": {"vision_tower": True}},
    "without the tower": {},
    LORA: {"lora": {"rank": 4, "layers": None}},
    "adapters alone": {
        "trains": {"vision_tower": True, "newline": False},
        "lora": {"rank": 4, "parts": ["vision_tower", "projector", "language_model", "reward_head"]},
    },
    "the newline alone": {"trains": dict.fromkeys(("projector", "language_model", "reward_head"), False)},
}
MESH = make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return groups.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("half"), dtype=tiny.BFLOAT16)


def experiment(directory, *, way: str = "without the tower", optimizer=None, objective=None, **model) -> config.Experiment:
    settings = {"model": {"path": str(directory), "reward_head": "tanh", "remat": "none"} | model, "data": {"path": "d"}}
    settings |= {"objective": objective or {"kind": "reward_model", "centring": 0.01}, "run": {"directory": "r"}}
    return config.Experiment.model_validate(settings | {"optimizer": optimizer or {}} | WAYS[way])


def split(experiment: config.Experiment):
    with use_mesh(MESH):
        return split_model(load_base(experiment, MESH), experiment.trains, experiment.lora)


def dtypes(tree) -> set[str]:
    return {x.dtype.name for x in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
    ("way", "dtype", "frozen"),
    [
        *((way, "bfloat16", "bfloat16") for way in WAYS),
        ("without the tower", "bfloat16", "float32"),
        (LORA, "float32", "bfloat16"),
    ],
)
def test_what_learns_is_float32_and_what_is_frozen_is_what_the_experiment_says(directory, way, dtype, frozen):
    """Also the moments, the copy of the start that a live reference needs, and all of that in a plan."""
    made = experiment(directory, way=way, dtype=dtype, frozen_dtype=frozen)
    tx = make_optimizer(made.optimizer, 10, FAMILY.parts)
    _, params, rest = split(made)
    assert dtypes(params) == {"float32"}
    assert dtypes(rest) <= {frozen}
    with use_mesh(MESH):
        state = init_state(params, rest, tx, MESH, keep_start=True)
    assert {x.dtype.name for x in jax.tree.leaves(state.opt_state) if x.ndim} == {"float32"}
    assert dtypes(state.start) == {"float32"}
    planned = abstract_model(dataclasses.replace(read_config(directory), reward_head="tanh"), made, MESH)
    _, abstract = abstract_state(planned, made, tx, MESH, keep_start=True)
    kinds = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
    assert kinds(abstract) == kinds(state)


def test_a_state_that_would_learn_in_bfloat16_is_refused(directory):
    _, params, frozen = split(experiment(directory))
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    with pytest.raises(ValueError, match="learn and are not float32"):
        init_state(rounded, frozen, make_optimizer(config.Optimizer(), 10, FAMILY.parts), MESH)


def test_learnt_leaves_of_a_float32_checkpoint_are_not_rounded_on_the_way(directory):
    _, params, frozen = split(experiment(directory, frozen_dtype="bfloat16"))
    stored = {NAMES.resolve(name): value for name, value in load_file(directory / "model.safetensors").items()}
    for path, param in [*nnx.to_flat_state(params), *nnx.to_flat_state(frozen)]:
        tensors, layout = NAMES.tensors(path, param.shape[0])
        found = np.asarray([layout.to_parameter(stored[tensor]) for tensor in tensors])
        expected = (found if NAMES.is_stacked(path) else found[0]).astype(param.dtype)
        np.testing.assert_array_equal(param[...], expected, err_msg=".".join(path))


def test_masters_of_a_bfloat16_checkpoint_begin_as_its_values(half):
    _, params, _ = split(experiment(half, way="everything"))
    assert not jnp.any(
        params["language"]["norm"]["scale"] - np.asarray(params["language"]["norm"]["scale"][...], tiny.BFLOAT16)
    )
    assert jnp.unique(params["reward_head"]["dense"]["kernel"][...].astype(jnp.bfloat16).astype(jnp.float32)).size > 1


@pytest.mark.parametrize("way", ["everything", LORA])
@pytest.mark.long
def test_every_learnt_leaf_moves_at_a_learning_rate_of_1e_6(directory, tmp_path, way):
    """A bfloat16 base under three steps: of the entries that have a gradient all but a few move, as they do in float32.

    A float32 of 0.3 or more (a norm's scale) has its neighbours at 3e-8 and more: a step of 1e-6 counts.
    """
    made = experiment(directory, way=way, frozen_dtype="bfloat16", optimizer={"warmup_ratio": 0, "schedule": "constant"})
    graphdef, params, frozen = split(made)
    with use_mesh(MESH):
        model = nnx.merge(graphdef, params, frozen)
        batch = place(groups.packed(model, groups.examples(tmp_path)[1:2], "critique"), MESH)
        tx = make_optimizer(made.optimizer, 10, FAMILY.parts)
        before = jax.tree.map(np.asarray, params)
        state = init_state(params, frozen, tx, MESH)
        step = make_train_step(graphdef, task_of(made.objective), tx, chunk=16)
        for _ in range(3):
            state, _ = step(state, batch)
    moments = [x for x in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "nu")) if hasattr(x, "nu")]
    seen = dict(nnx.to_flat_state(moments[0].nu))
    start = dict(nnx.to_flat_state(before))
    for path, param in nnx.to_flat_state(state.params):
        has_gradient = np.asarray(seen[path][...]) > 0
        moved = np.asarray(param[...]) != start[path][...]
        assert has_gradient.any(), path
        assert moved[has_gradient].mean() > 0.97, (path, moved[has_gradient].mean())
        assert not moved[~has_gradient].any()


def test_second_moments_decay(directory):
    """With nothing new, 2,000 steps of beta2 0.999 leave 0.135 of a second moment, in a run of a bfloat16 base as in any."""
    made = experiment(directory, frozen_dtype="bfloat16")
    _, params, _ = split(made)
    tx = make_optimizer(made.optimizer, 10, FAMILY.parts)

    @jax.jit
    def run(params):
        ones = jax.tree.map(jnp.ones_like, params)
        _, state = tx.update(ones, tx.init(params), params, value=jnp.float32(1))
        zeros = jax.tree.map(jnp.zeros_like, params)
        body = lambda _, state: tx.update(zeros, state, params, value=jnp.float32(1))[1]
        return state, jax.lax.fori_loop(0, 2000, body, state)

    names = nnx.State({"newline": params["newline"]})
    moments = [jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "nu")) for state in run(names)]
    before, after = (next(x.nu for x in leaves if hasattr(x, "nu"))["newline"][...] for leaves in moments)
    np.testing.assert_allclose(after / before, 0.999**2000, rtol=1e-3)


@pytest.mark.parametrize("beta1", [0.0, 0.9, 0.98])
def test_a_first_moment_in_bfloat16_decays(beta1):
    settings = config.Optimizer(mu_dtype="bfloat16", beta1=beta1)
    tx = make_optimizer(settings, 10, FAMILY.parts)
    params = {"newline": jnp.ones(8)}
    _, state = tx.update({"newline": jnp.linspace(0.1, 1, 8)}, tx.init(params), params, value=jnp.float32(1))
    first = lambda state: next(x.mu for x in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu"))
    before = first(state)["newline"]
    assert before.dtype == jnp.bfloat16
    for _ in range(50):
        _, state = tx.update({"newline": jnp.zeros(8)}, state, params, value=jnp.float32(1))
    after = np.asarray(first(state)["newline"] / before, np.float32)
    np.testing.assert_allclose(after, beta1**50, rtol=0.15, atol=1e-6)


@pytest.mark.parametrize("beta1", [0.99, 0.999])
def test_a_first_moment_that_bfloat16_cannot_hold_is_refused(beta1):
    with pytest.raises(pydantic.ValidationError, match="mu_dtype bfloat16 cannot hold"):
        config.Optimizer(mu_dtype="bfloat16", beta1=beta1)
    config.Optimizer(beta1=beta1)


def test_the_older_names_are_read_as_what_they_mean_now(directory):
    older = experiment(directory, param_dtype="bfloat16")
    assert older == experiment(directory, frozen_dtype="bfloat16")
    with pytest.raises(pydantic.ValidationError, match="param_dtype is the older name of frozen_dtype"):
        experiment(directory, param_dtype="bfloat16", frozen_dtype="bfloat16")
    assert config.Lora.model_validate({"dtype": "float32"}) == config.Lora()
    with pytest.raises(pydantic.ValidationError, match="adapters learn in float32"):
        config.Lora.model_validate({"dtype": "bfloat16"})


def test_a_run_from_before_goes_on():
    before = {"model": {"dtype": "bfloat16", "param_dtype": "float32"}, "lora": {"rank": 4, "dtype": "float32"}}
    now = {"model": {"dtype": "bfloat16", "frozen_dtype": "float32"}, "lora": {"rank": 4}}
    assert difference({SETTINGS: json.dumps(before)}, {SETTINGS: json.dumps(now)}) is None
    now["model"]["frozen_dtype"] = "bfloat16"
    found = difference({SETTINGS: json.dumps(before)}, {SETTINGS: json.dumps(now)})
    assert found == "model.frozen_dtype float32, this run has bfloat16"


def test_a_run_from_before_the_settings_of_beta_dpo_goes_on(directory):
    scaling = {"mode": "beta_dpo"}
    preference = experiment(directory, objective={"kind": "preference", "scaling": scaling}, reward_head=None)
    now = known_identity(preference)
    before = json.loads(now[SETTINGS])
    assert before["objective"]["scaling"].pop("momentum") == 0.9 and before["objective"]["scaling"].pop("filtered") == 0
    assert difference({**now, SETTINGS: json.dumps(before)}, now) is None
    filtered = {"kind": "preference", "scaling": scaling | {"filtered": 0.2}}
    other = known_identity(experiment(directory, objective=filtered, reward_head=None))
    found = difference({**now, SETTINGS: json.dumps(before)}, other)
    assert found == "objective.scaling.filtered 0.0, this run has 0.2"


@pytest.mark.parametrize(
    ("scaling", "draws"),
    [
        ({"mode": "batch_implicit"}, True),
        ({"mode": "beta_dpo", "filtered": 0.2}, True),
        ({"mode": "beta_dpo"}, False),
        ({"mode": "margin"}, False),
    ],
)
def test_a_run_whose_pairs_an_earlier_version_drew_by_their_slots_does_not_go_on_with_other_draws(directory, scaling, draws):
    objective = {"kind": "preference", "scaling": scaling}
    now = known_identity(experiment(directory, objective=objective, reward_head=None))
    before = {name: value for name, value in now.items() if name != DRAW}
    check_identity(4, now, now)
    if not draws:
        return check_identity(4, before, now)
    with pytest.raises(UserError, match=r"4 has pairs drawn by their slots \(in an .*\), this run has by their responses:"):
        check_identity(4, before, now)
    fixed = {"kind": "preference", "scaling": {"mode": "fixed"}}  # the setting is named, not what it brings
    for found, wanted in ((before, fixed), (now, fixed)):
        with pytest.raises(UserError, match=r"has objective\.scaling\.\w+ \S+, this run has"):
            check_identity(4, found, known_identity(experiment(directory, objective=wanted, reward_head=None)))


def test_references_of_rounded_weights_are_not_taken_for_those_of_others(directory):
    """Under float32 computation it counts which parameters are stored in bfloat16; under bfloat16 all are rounded anyway."""
    model = {"dtype": "float32", "frozen_dtype": "bfloat16"}
    whole, tower, rounded, half = (
        computed_precision(experiment(directory, **settings))
        for settings in (model | {"frozen_dtype": "float32"}, model, model | {"way": LORA}, model | {"dtype": "bfloat16"})
    )
    assert whole == {"dtype": "float32"} and half == {"dtype": "bfloat16"}
    assert len({json.dumps(each) for each in (whole, tower, rounded, half)}) == 4


def test_a_run_says_what_learns_in_which_precision(directory):
    _, *states = split(experiment(directory, way=LORA, frozen_dtype="bfloat16"))
    line = precision_line(*states, "bfloat16")
    assert re.fullmatch(
        r"[\d,]+ parameters learn in float32, [\d,]+ are frozen in bfloat16; the model computes in bfloat16", line
    )
    assert precision_line(states[0], nnx.State({}), "float32").endswith("learn in float32; the model computes in float32")


def test_a_small_update_survives_merging_into_a_bfloat16_base(directory):
    made = experiment(directory, way=LORA, frozen_dtype="bfloat16")
    model = nnx.merge(*split(made))
    base = {path: np.asarray(layer.kernel[...], np.float32) for path, layer in adapted_layers(model)}
    for _, layer in adapted_layers(model):
        layer.lora_b[...] = layer.lora_b[...] + 1e-6
    merged = dict(nnx.iter_modules(merge_lora(model)))
    assert all(is_adapter((*path, "lora_a")) for path in base)
    for path, kernel in base.items():
        assert (np.asarray(merged[path].kernel[...]) != kernel).mean() > 0.5, path


@pytest.mark.parametrize("stored", [np.float32, np.float16])
@pytest.mark.parametrize("way", [LORA, "the newline alone"])
def test_an_export_has_the_bases_own_values_of_what_did_not_learn(tmp_path, monkeypatch, capsys, way, stored):
    """A run that keeps frozen parameters in bfloat16 rounds neither them in its export nor what adapters are merged into."""
    base = tiny.checkpoint(tmp_path / "base", dtype=stored)
    objective = {"kind": "supervised"}
    made = experiment(base, way=way, objective=objective, reward_head=None, dtype="bfloat16", frozen_dtype="bfloat16")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(resolved(made))
    monkeypatch.setattr(trained, "_chosen", lambda *_: 0)  # adapters and newline as they are before the first step
    trained.export_run(str(tmp_path / "run"), str(tmp_path / "out"))
    said = "rounded to float16, as the base model is stored"
    assert (said in capsys.readouterr().err) is (stored is np.float16)
    for asked in ("bfloat16", "float32"):
        trained.export_run(str(tmp_path / "run"), str(tmp_path / asked), dtype=asked)
        said = "weights that learnt in float32 are rounded to bfloat16. Small updates are lost by this rounding, perhaps most"
        assert (said in capsys.readouterr().err) is (asked == "bfloat16")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    assert not [name for name in before if after[name].dtype != stored or not np.array_equal(after[name], before[name])]


MIXED = {
    "the tower": lambda name: name.startswith("vision_tower."),
    "the vocabulary": lambda name: "embed_tokens" in name,
}


@pytest.mark.parametrize(
    ("narrow", "way", "said"),
    [
        ("the tower", "without the tower", False),
        ("the tower", LORA, False),
        ("the tower", "everything", True),
        ("the tower", "adapters alone", True),
        ("the vocabulary", LORA, False),
        ("the vocabulary", "adapters alone", True),  # a reward head that the base has not is stored as the embedding is
        ("the vocabulary", "without the tower", True),
    ],
)
def test_an_export_says_what_its_dtype_rounds_of_what_learnt_and_of_nothing_else(
    tmp_path, monkeypatch, capsys, narrow, way, said
):
    base = tiny.checkpoint(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    half = {
        name: value.astype(tiny.BFLOAT16) if MIXED[narrow](name.removeprefix("model.")) else value
        for name, value in tensors.items()
    }
    assert {value.dtype.name for value in half.values()} == {"float32", "bfloat16"}
    save_file(half, base / "model.safetensors", metadata={"format": "pt"})
    with_head = way == "adapters alone"
    made = experiment(base, way=way, **({} if with_head else {"objective": {"kind": "supervised"}, "reward_head": None}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(resolved(made))
    monkeypatch.setattr(trained, "_chosen", lambda *_: 0)
    trained.export_run(str(tmp_path / "run"), str(tmp_path / "out"))
    line = "weights that learnt in float32 are rounded to bfloat16, as the base model is stored. Small updates are lost"
    err = capsys.readouterr().err
    assert ("rounded" in err) is said and (line in err) is said
