"""Which parts of a model learn is asked of the model's family: a part that it lacks neither learns nor stands in the way."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.models import internvl, parameters, registry
from mmrlhf_jax.models.internvl.config import InternVLConfig
from mmrlhf_jax.models.internvl.family import InternVLFamily
from mmrlhf_jax.models.internvl.model import InternVL
from mmrlhf_jax.models.lora import adapted_layers
from mmrlhf_jax.planning import lowering
from mmrlhf_jax.planning.plan import make_plan
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.training import planned
from mmrlhf_jax.training.identity import LACKS, difference, known_identity, learnt_otherwise
from mmrlhf_jax.training.learning import check_learning, learning_of
from mmrlhf_jax.training.optimizer import decays, make_optimizer
from mmrlhf_jax.training.planned import plan_run
from mmrlhf_jax.training.state import split_model, with_adapters
from mmrlhf_jax.training.work import Work, useful_flops
from tests.families import FAMILIES

MESH = make_mesh({}, jax.devices()[:1])
HAS_NEWLINE = {name: name == "llava_onevision" for name in FAMILIES}
NEWLINE_ONLY = config.Trains(projector=False, language_model=False, reward_head=False)
HEAD_ONLY = config.Trains(projector=False, language_model=False)  # and the newline, by default


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, tmp_path_factory):
    return FAMILIES[family].checkpoint(tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def head_model(family, tmp_path_factory):
    return FAMILIES[family].checkpoint(tmp_path_factory.mktemp(family), reward_head=True)


def experiment(path, tmp_path, *, reward_head=None, objective=None, **sections) -> config.Experiment:
    return config.Experiment(
        model=config.Model(path=str(path), reward_head=reward_head, dtype="float32", remat="none"),
        data=config.Data(path=str(tmp_path / "data.jsonl")),
        objective=objective or config.Preference(scaling=config.Scaling(mode="fixed")),
        batch=config.Batch(rows=2, slots=512),
        run=config.Run(directory=str(tmp_path / "run")),
        **sections,
    )


@pytest.fixture
def data(tmp_path):
    responses = [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "0", "prompt": "Which?", "responses": responses}) + "\n")


def refusal(check) -> str:
    with pytest.raises(UserError) as refused:
        check()
    return str(refused.value)


def test_every_attribute_of_a_familys_model_belongs_to_a_part_that_trains_names(family, head_model):
    sizes = read_sizes(head_model, "tanh")
    with use_mesh(MESH):
        made = nnx.eval_shape(lambda: registry.family(family).model()(sizes, rngs=nnx.Rngs(0)))
    parts = registry.parts_of(sizes)
    assert {path[0] for path in dict(nnx.to_flat_state(nnx.state(made)))} == set(parts)
    assert set(parts.values()) <= set(config.Trains.model_fields)
    policy = dataclasses.replace(sizes, reward_head=None)
    assert set(registry.parts_of(policy)) == set(parts) - {"reward_head"}


def test_a_run_in_which_nothing_learns_is_refused_before_a_weight_is_read_and_in_a_plan(
    family, model, tmp_path, data, monkeypatch
):
    """The newline alone learns, which not every family has."""
    made = experiment(model, tmp_path, trains=NEWLINE_ONLY)
    if HAS_NEWLINE[family]:
        assert plan_run(made).steps == 1
        return
    monkeypatch.setattr(planned, "plan_training_rows", None)
    for check in (lambda: plan_run(made), lambda: make_plan(made, config.Launch())):
        assert (
            f"of the parts of this {registry.family(family).title} model that the objective depends on none learns; set one of"
            in refusal(check)
        )


def test_a_head_that_the_objective_does_not_look_at_is_not_enough(family, head_model, tmp_path):
    made = experiment(head_model, tmp_path, reward_head="tanh", trains=HEAD_ONLY)
    sizes = read_sizes(head_model, "tanh")
    if HAS_NEWLINE[family]:
        check_learning(made, sizes)
    else:
        assert "set one of vision_tower, projector, language_model to true" in refusal(lambda: check_learning(made, sizes))


def test_a_rate_of_a_part_that_the_model_lacks_is_refused(family, model, head_model, tmp_path):
    sizes = read_sizes(model)
    for part, there in (("newline", HAS_NEWLINE[family]), ("reward_head", False), ("projector", True)):
        made = experiment(model, tmp_path, optimizer=config.Optimizer(part_rates={part: 1e-5}))
        if there:
            check_learning(made, sizes)
        else:
            assert f"optimizer.part_rates names {part}, which this" in refusal(lambda made=made: check_learning(made, sizes))
    made = experiment(head_model, tmp_path, optimizer=config.Optimizer(part_rates={"reward_head": 1e-5}))
    check_learning(made, read_sizes(head_model, "tanh"))


def test_with_a_reference_without_adapters_only_what_the_model_has_must_learn_through_adapters(family, model, tmp_path):
    settings = dict(objective=config.Preference(reference="adapter_base"), lora=config.Lora(rank=2))
    made = experiment(model, tmp_path, trains=config.Trains(projector=False), **settings)
    sizes = read_sizes(model)
    if HAS_NEWLINE[family]:
        assert refusal(lambda: check_learning(made, sizes)).endswith("through lora; set trains.newline: false")
    else:
        check_learning(made, sizes)
    made = experiment(model, tmp_path, **settings)
    named = "trains.projector: false" + ", trains.newline: false" * HAS_NEWLINE[family]
    assert refusal(lambda: check_learning(made, sizes)).endswith(f"set {named}")


def test_no_gradient_is_counted_through_a_language_model_below_which_nothing_learns(family, head_model, tmp_path):
    """A run of the head alone: its FLOPs are those of a forward pass, if there is no newline that learns."""
    sizes = read_sizes(head_model, "tanh")
    objective = config.RewardModel(critique_weight=0)
    made = experiment(head_model, tmp_path, reward_head="tanh", objective=objective, trains=HEAD_ONLY)
    assert learning_of(made, sizes).through_language_model == HAS_NEWLINE[family]
    work = Work(*map(jnp.float32, (100, 5000, 0, 0, 1)))
    forward, step = useful_flops(work, sizes), useful_flops(work, sizes, made)
    assert step >= 2 * forward if HAS_NEWLINE[family] else step == forward


def test_what_is_said_of_a_part_that_the_model_lacks_makes_no_other_run(family, model, tmp_path, data):
    one, other, third = (
        experiment(model, tmp_path, trains=config.Trains(**trains))
        for trains in ({}, {"newline": False}, {"newline": False, "projector": False})
    )
    before = plan_run(one).identity
    assert (LACKS in before) != HAS_NEWLINE[family]
    assert before["trains"] == "projector newline language_model reward_head"
    for now in (plan_run(other).identity, known_identity(other)):  # the second before the model is read
        assert (difference(before, now) is None) != HAS_NEWLINE[family]
    assert (learnt_otherwise(before, other, plan_run(other).source) is None) != HAS_NEWLINE[family]
    assert difference(before, plan_run(third).identity).startswith("trains ")
    begun_before = {name: value for name, value in before.items() if name != LACKS}
    assert difference(begun_before, plan_run(one).identity) is None
    assert difference(begun_before, known_identity(one)) is None


# A family with an attribute and a vector of its own ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OtherConfig(InternVLConfig):
    model_type: ClassVar[str] = "other"


class Other(InternVL):
    def make_vision(self, config, **options) -> None:
        super().make_vision(config, **options)
        self.merger = self.projector
        del self.projector
        self.separator = parameters.vector(jnp.zeros((1, 4, config.text.hidden_size), options["param_dtype"]))


class OtherFamily(InternVLFamily):
    model_type = "other"
    parts: ClassVar = {name: part for name, part in InternVLFamily.parts.items() if name != "projector"} | {
        "merger": "projector",
        "separator": "newline",
    }

    def model(self):
        return Other


@pytest.fixture
def other(monkeypatch, tmp_path):
    """A model of a family that brings its own attributes, and an experiment on it."""
    monkeypatch.setitem(sys.modules, "tests.other_family", types.SimpleNamespace(FAMILY=OtherFamily()))
    monkeypatch.setitem(registry.FAMILIES, "other", "tests.other_family")
    registry.family.cache_clear()
    read = read_sizes(FAMILIES["internvl"].checkpoint(tmp_path / "model"))
    sizes = OtherConfig(**{field.name: getattr(read, field.name) for field in dataclasses.fields(read)})
    with use_mesh(MESH):
        yield Other(sizes, rngs=nnx.Rngs(0)), experiment("not read", tmp_path)
    registry.family.cache_clear()


@pytest.mark.long
def test_a_family_says_itself_which_part_its_attributes_belong_to(other):
    model, made = other
    assert registry.family_of(model.config).title == internvl.FAMILY.title
    trains = config.Trains(language_model=False)
    _, params, frozen = split_model(model, trains)
    assert set(params) == {"merger", "separator"} and set(frozen) == {"vision", "language"}
    assert learning_of(made.model_copy(update={"trains": trains}), model.config).whole == ("projector", "newline")
    check_learning(made.model_copy(update={"trains": trains}), model.config)
    adapted = with_adapters(model, config.Lora(parts=("projector", "vision_tower"), rank=2), seed=0)
    assert {path[0] for path, _ in adapted_layers(adapted)} == {"merger", "vision"}
    assert ("vision", "patch") not in dict(adapted_layers(adapted))


@pytest.mark.long
def test_a_family_says_itself_which_of_its_parameters_are_vectors(other):
    """A separator of three axes decays as little as a bias, and its part's rate is its own."""
    model, _ = other
    params = split_model(model, config.Trains())[1]
    flat = dict(nnx.to_flat_state(decays(params)))
    decayed = {path: all(jax.tree.leaves(variable)) for path, variable in flat.items()}
    assert not decayed["separator",] and decayed["merger", "up", "kernel"] and not decayed["merger", "up", "bias"]
    settings = config.Optimizer(learning_rate=1e-3, part_rates={"newline": 5e-3}, warmup_ratio=0, weight_decay=0.1)
    tx = make_optimizer(settings, 10, OtherFamily.parts)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params, value=jnp.float32(1))
    np.testing.assert_allclose(updates["separator"][...], -5e-3, rtol=1e-4)
    np.testing.assert_allclose(updates["merger"]["up"]["bias"][...], -1e-3, rtol=1e-4)
    assert config.Trains(**dict.fromkeys(config.Trains.model_fields, False)) == lowering.NOTHING
