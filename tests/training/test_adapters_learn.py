"""Whatever adapter a config can name learns, or is refused by that name."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest
from flax import nnx

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.load import load_model
from mmrlhf_jax.inference.forward import forward
from mmrlhf_jax.models.llava_onevision import FAMILY
from mmrlhf_jax.models.lora import adapted_layers, merge_lora
from mmrlhf_jax.sharding.feed import place
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.state import split_model, with_adapters
from mmrlhf_jax.training.step import TrainState, loss_and_gradients, reference_outputs
from tests import tiny
from tests.training import groups

PARTS_WITH_LAYERS = ("vision_tower", "projector", "language_model", "reward_head")
EVERYTHING = config.Trains(vision_tower=True)
REWARD = config.RewardModel(centring=0.01)
KINDS, HEADS = ("untied", "tied"), ("tanh", "silu", "linear")


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return groups.examples(tmp_path_factory.mktemp("data"))[1:2]


@pytest.fixture(scope="module")
def text_only(tmp_path_factory):
    return groups.examples(tmp_path_factory.mktemp("text"))[:1]


def checkpoint(directory, *, tied: bool):
    ids = {f"{kind}_token_index": groups.TOKENIZER.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "video")}
    text = {"vocab_size": len(groups.TOKENIZER), "tie_word_embeddings": tied}
    return tiny.checkpoint(directory, tiny.config(text=text, tie_word_embeddings=tied, **ids))


def load(directory, lora: config.Lora | None, head: str = "tanh", **kinds):
    mesh = make_mesh({}, jax.devices()[:1])
    with use_mesh(mesh):
        model = load_model(directory, mesh=mesh, remat="none", reward_head=head, **kinds)
        return mesh, with_adapters(model, lora, seed=0)


def layers_of(model) -> list[tuple[str, str]]:
    """(part, layer) of every linear layer but the patch embedding, found without the code that chooses adapters."""
    linear = [path for path, module in nnx.iter_modules(model) if isinstance(module, nnx.Linear)]
    return [(FAMILY.parts[path[0]], path[-1]) for path in linear if path != ("vision", "patch")]


def adapters(layers) -> config.Lora:
    parts = tuple(part for part in PARTS_WITH_LAYERS if part in dict(layers))
    return config.Lora(parts=parts, layers=tuple(sorted({layer for _, layer in layers})), rank=4, alpha=8)


def gradient_step(mesh, model, lora, rows):
    """A function of a model: the largest entry of every learnt leaf's gradient, by name. One compilation serves all calls."""
    with use_mesh(mesh):
        graphdef, _, frozen = split_model(model, EVERYTHING, lora)
        objective, batch = task_of(REWARD), place(rows, mesh)

        @jax.jit
        def run(params):
            state = TrainState(jnp.int32(0), params, frozen, ())
            return loss_and_gradients(graphdef, objective, state, batch, chunk=16, accumulation=1, seed=0, reference=None)[2]

    def gradients(model) -> dict[str, float]:
        with use_mesh(mesh):
            found = run(split_model(model, EVERYTHING, lora)[1])
        return {".".join(path): float(jnp.abs(leaf[...]).max()) for path, leaf in nnx.to_flat_state(found)}

    return gradients


def moved(model, size: float = 0.02):
    for _, layer in adapted_layers(model):
        b = layer.lora_b[...]
        layer.lora_b[...] = (b + size * np.cos(np.arange(b.size, dtype=np.float32)).reshape(b.shape)).astype(b.dtype)
    return model


@pytest.mark.parametrize(
    ("kind", "head"),
    [("untied", "tanh"), *(pytest.param(*case, marks=pytest.mark.slow) for case in itertools.product(KINDS, HEADS))],
)
@pytest.mark.long
def test_every_adapter_that_a_config_can_name_has_a_gradient(request, examples, kind, head):
    """B's in the first step, where it is zero, and A's as soon as B has moved."""
    directory = request.getfixturevalue(kind)
    layers = layers_of(load(directory, None, head)[1])
    lora = adapters(layers)
    mesh, model = load(directory, lora, head)
    gradients = gradient_step(mesh, model, lora, groups.packed(model, examples, "critique"))
    first, later = gradients(model), gradients(moved(model))
    a, b = ([name for name in first if name.endswith(f"lora_{which}")] for which in "ab")
    assert len(a) == len(b) == len(layers)
    assert not [name for name in b if not first[name] > 0]
    assert not [name for name in a if not later[name] > 0]


@pytest.mark.long
def test_the_adapter_of_the_vocabulary_counts_wherever_words_are_judged(untied, text_only):
    """Log-probs, generation and the merged model, against the same model whose kernel was changed by hand."""
    lora = config.Lora(layers=("head",), rank=4, alpha=8)
    mesh, base = load(untied, None)
    model, by_hand = moved(load(untied, lora)[1], 0.3), load(untied, None)[1]
    head = model.language.head
    by_hand.language.head.kernel[...] += 2 * head.lora_a[...] @ head.lora_b[...]
    rows = place(groups.packed(model, text_only, "answer"), mesh)
    logps = jax.jit(lambda model: forward(model, rows, chunk=16).logps)
    with use_mesh(mesh):
        expected = np.asarray(logps(by_hand))
        assert np.abs(expected - logps(base)).max() > 0.1
        np.testing.assert_allclose(logps(model), expected, rtol=1e-5)
        np.testing.assert_allclose(logps(merge_lora(model)), expected, rtol=1e-5)
        assert written(model) == written(by_hand) != written(base)


def test_the_reference_of_adapters_leaves_out_that_of_the_vocabulary(untied):
    lora = config.Lora(layers=("head", "q"), rank=4, alpha=8)
    graphdef, params, frozen = split_model(moved(load(untied, lora)[1]), EVERYTHING, lora)
    seen = {}

    def look(model, batch, chunk):
        seen.update({path: float(jnp.abs(layer.lora_b[...]).max()) for path, layer in adapted_layers(model)})

    reference_outputs(graphdef, TrainState(jnp.int32(0), params, frozen, ()), None, "adapter_base", chunk=1, forward=look)
    assert seen == {("language", "head"): 0.0, ("language", "layers", "attention", "q"): 0.0}


def written(model) -> list[int]:
    """The tokens that the model writes greedily behind some others."""
    tokens = list(range(10, 18))
    for _ in range(6):
        count = len(tokens)
        hidden = model(np.asarray([tokens]), np.arange(count)[None], np.full((1, count), count))
        tokens.append(int(jnp.argmax(hidden[0, -1] @ model.language.vocabulary())))
    return tokens[8:]


@pytest.mark.long
def test_what_an_adapter_of_the_vocabulary_has_learnt_is_not_rounded_into_a_bfloat16_kernel(untied, text_only):
    """A step of 1e-5 of B is below half a unit of the kernel's last place, and still changes every log-prob of the model."""
    lora = config.Lora(layers=("head",), rank=4, alpha=8)
    mesh, model = load(untied, lora, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    rows = place(groups.packed(model, text_only, "answer"), mesh)
    run = jax.jit(lambda model: forward(model, rows, chunk=16).token_logps)
    with use_mesh(mesh):
        before, after = np.asarray(run(model)), np.asarray(run(moved(model, 1e-5)))
    used = before != 0
    assert (before != after)[used].mean() > 0.5


@pytest.mark.parametrize("layers", [("head",), ("q", "head")])
def test_an_adapter_of_a_tied_vocabulary_is_refused_by_name(tied, layers):
    with pytest.raises(UserError, match=r"lora\.layers names head, .*tie_word_embeddings"):
        load(tied, config.Lora(layers=layers))


@pytest.mark.parametrize("name", ["embedding", "norm", "patch", "positions"])
def test_what_has_no_adapter_is_refused_by_name(untied, name):
    with pytest.raises(UserError, match=rf"lora\.layers: this model has no '{name}'"):
        load(untied, config.Lora(parts=("vision_tower", "language_model"), layers=("q", name)))


def test_a_layer_may_be_in_several_parts(untied):
    _, model = load(untied, config.Lora(parts=("vision_tower", "projector"), layers=("up",)))
    assert {path[0] for path, _ in adapted_layers(model)} == {"vision", "projector"}


@pytest.mark.parametrize(
    ("parts", "layers", "idle"),
    [
        (("vision_tower", "language_model"), ("head",), "vision_tower"),
        (("projector", "language_model"), ("q", "v"), "projector"),
    ],
)
def test_a_part_that_would_get_no_adapter_is_refused_by_name(untied, parts, layers, idle):
    with pytest.raises(UserError, match=f"{idle} has none of these and would not learn"):
        load(untied, config.Lora(parts=parts, layers=layers))


def experiment(objective: dict, lora: dict, **data) -> config.Experiment:
    settings = {"model": {"path": "m", "reward_head": "tanh"}, "data": {"path": "d", **data}, "run": {"directory": "r"}}
    return config.Experiment.model_validate(settings | {"objective": objective, "lora": lora})


IDLE = [
    ({"kind": "preference"}, {"parts": ["reward_head"]}, {}, "reward_head, but no term"),
    ({"kind": "supervised"}, {"parts": ["language_model", "reward_head"]}, {}, "reward_head, but no term"),
    ({"kind": "reward_model", "score_weight": 0}, {"parts": ["reward_head"]}, {}, "reward_head, but no term"),
    ({"kind": "reward_model", "critique_weight": 0}, {"layers": ["head"]}, {}, "head, but no term"),
    ({"kind": "reward_model"}, {"layers": ["q", "head"]}, {"critiques": None}, "head, but no term"),
]


@pytest.mark.parametrize(("objective", "lora", "data", "message"), IDLE)
def test_adapters_that_the_objective_never_reaches_are_refused(objective, lora, data, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        experiment(objective, lora, **data)


def test_adapters_that_the_objective_reaches_are_taken():
    for objective, lora in itertools.product([{"kind": "reward_model"}], [{"parts": ["reward_head"]}, {"layers": ["head"]}]):
        experiment(objective, lora)
    experiment({"kind": "reward_model", "score_weight": 0, "centring": 0.1}, {"parts": ["reward_head"]})
    experiment({"kind": "supervised"}, {"layers": ["head"]})
