"""The preference losses are TRL's, to float32 accuracy, whatever the layout the pairs come in.

Oracles: a NumPy float64 transcription of TRL 1.16's formulas (with central differences for gradients), and TRL's own
`DPOTrainer._compute_loss` (with torch autograd), which is fed log-probs through a stub in place of a model.
"""

import functools
import math
from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.loss_names import F_DIVERGENCE_LOSSES, F_DIVERGENCES, LOSSES
from mmrlhf_jax.objectives import weighted
from mmrlhf_jax.objectives.pairs import PairLogps, length_desensitized_pair_logps, pair_logps
from mmrlhf_jax.objectives.preference import pair_loss, preference_losses, preference_metrics

BETA = 0.1
N = 8  # pairs in most batches: one shape, so that each operation compiles once
SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")  # the losses on which TRL's label_smoothing acts
BATCH_LOSSES = ("aot", "aot_unpaired")
CASES = [(name, f) for name in LOSSES for f in F_DIVERGENCES if f == "reverse_kl" or name in F_DIVERGENCE_LOSSES]


# The square of these scores exceeds float32 by itself.
OVERFLOWING = [("ipo", "forward_kl"), ("ipo", "alpha_divergence")]


def smoothing(name: str) -> float:
    return 0.1 if name in SMOOTHED else 0.0


def random_pairs(seed: int, n: int = N) -> PairLogps:
    """n pairs of 5 to 40 tokens, log-ratios of a few nats."""
    rng = np.random.default_rng(seed)
    reference = -rng.uniform(20, 60, (2, n))
    policy = reference + rng.normal(0, 3, (2, n))
    return PairLogps(*np.float32(policy), *np.float32(reference), *np.float32(rng.integers(5, 40, (2, n))))


def alone(logps: PairLogps, i: int) -> PairLogps:
    """A batch in which every pair is pair i."""
    return jax.tree.map(lambda x: jnp.repeat(x[i], N), logps)


@functools.cache
def compiled(names: tuple[str, ...], coefficients: tuple[float, ...], f: str, epsilons: tuple[float, ...]):
    """A mix of losses and its gradients with respect to chosen and rejected policy log-probs and those for `sft`."""

    def loss(chosen, rejected, sft_chosen, logps, beta, weights):
        terms = preference_losses(
            names,
            logps._replace(policy_chosen=chosen, policy_rejected=rejected),
            beta,
            weights,
            label_smoothing=dict(zip(names, epsilons, strict=True)),
            f_divergence=f,
            chosen_logps=sft_chosen,
        )
        return weighted.mix(terms, dict(zip(names, coefficients, strict=True)))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def step(name: str, logps: PairLogps, f="reverse_kl", weights=None, beta=BETA, epsilon=None):
    """Mean loss of a batch and its gradient with respect to (chosen, rejected) policy log-probs, [2, n]."""
    logps = jax.tree.map(jnp.float32, logps)
    weights = jnp.ones_like(logps.policy_chosen) if weights is None else weights
    loss = compiled((name,), (1.0,), f, (smoothing(name) if epsilon is None else epsilon,))
    value, (chosen, rejected, sft) = loss(*logps[:2], logps.policy_chosen, logps, jnp.float32(beta), weights)
    return value, np.stack([chosen + sft, rejected])


def total(name: str, logps: PairLogps, **options) -> jax.Array:
    return step(name, logps, **options)[0]


def step_through(layout, x, weights, names, coefficients=None, f="reverse_kl"):
    """Mean loss and its gradient with respect to x, where layout(x) is (pair log-probs, chosen log-probs for `sft`)."""
    (logps, sft_chosen), back = jax.vjp(layout, jnp.asarray(x))
    epsilons = tuple(smoothing(name) for name in names)
    loss = compiled(tuple(names), tuple(coefficients or [1.0] * len(names)), f, epsilons)
    value, (chosen, rejected, sft) = loss(*logps[:2], sft_chosen, logps, jnp.float32(BETA), weights)
    zeros = jax.tree.map(jnp.zeros_like, logps)
    return value, back((zeros._replace(policy_chosen=chosen, policy_rejected=rejected), sft))[0]


def log_sigmoid64(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -x)


def oracle(name: str, logps: PairLogps, f: str = "reverse_kl", beta=BETA, epsilon=None, alpha=0.5, tau=0.05) -> float:
    """TRL 1.16's formulas in float64, mean over pairs."""
    pc, pr, rc, rr, len_c, len_r = (np.float64(x) for x in logps)
    epsilon = smoothing(name) if epsilon is None else epsilon
    c, r = pc - rc, pr - rr
    score = {
        "reverse_kl": lambda s: s,
        "forward_kl": lambda s: 1 - np.exp(-s),
        "js_divergence": lambda s: math.log(2) + log_sigmoid64(s),
        "alpha_divergence": lambda s: (np.exp((alpha - 1) * s) - 1) / (alpha - 1),
    }[f]
    delta, norm_delta = score(c) - score(r), score(c) / len_c - score(r) / len_r
    ls, sigma = log_sigmoid64, lambda x: np.exp(log_sigmoid64(x))

    def smoothed(x):
        return -(1 - epsilon) * ls(x) - epsilon * ls(-x)

    x = beta * delta
    losses = {
        "sigmoid": lambda: smoothed(x),
        "hinge": lambda: np.maximum(1 - x, 0),
        "ipo": lambda: (norm_delta - 1 / (2 * beta)) ** 2,
        "exo_pair": lambda: sigma(x) * (ls(x) - math.log(1 - epsilon)) + sigma(-x) * (ls(-x) - math.log(epsilon)),
        "nca_pair": lambda: -ls(beta * c) - 0.5 * ls(-beta * c) - 0.5 * ls(-beta * r),
        "robust": lambda: (-(1 - epsilon) * ls(x) + epsilon * ls(-x)) / (1 - 2 * epsilon),
        "bco_pair": lambda: -ls(beta * c) - ls(-beta * r),
        "sppo_hard": lambda: (c - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2,
        "aot": lambda: smoothed(beta * (np.sort(pc - pr) - np.sort(rc - rr))),
        "aot_unpaired": lambda: smoothed(beta * (np.sort(c) - np.sort(r))),
        "apo_zero": lambda: 1 - sigma(beta * c) + sigma(beta * r),
        "apo_down": lambda: sigma(beta * c) + 1 - sigma(beta * (c - r)),
        "discopop": lambda: (1 - sigma(x / tau)) * -ls(x) + sigma(x / tau) * np.exp(-x),
        "sft": lambda: -pc.sum() / len_c.sum(),
        "sigmoid_norm": lambda: -ls(beta * norm_delta),
    }
    return float(np.mean(losses[name]()))


def oracle_gradient(name: str, logps: PairLogps, f: str, step: float = 1e-4) -> np.ndarray:
    logps = PairLogps(*(np.float64(x) for x in logps))
    gradient = np.zeros((2, logps.policy_chosen.size))
    for side, field in enumerate(("policy_chosen", "policy_rejected")):
        for i in range(logps.policy_chosen.size):
            moved = [getattr(logps, field).copy() for _ in range(2)]
            moved[0][i] += step
            moved[1][i] -= step
            up, down = (oracle(name, logps._replace(**{field: m}), f) for m in moved)
            gradient[side, i] = (up - down) / (2 * step)
    return gradient


# --- against the formulas ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "f"), CASES)
def test_values_and_gradients_equal_the_float64_formulas(name, f):
    logps = random_pairs(1)
    value, gradient = step(name, logps, f)
    np.testing.assert_allclose(value, oracle(name, logps, f), rtol=1e-5)
    expected = oracle_gradient(name, logps, f)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(LOSSES),
    st.lists(st.tuples(*[st.floats(-200, -1, width=32)] * 4), min_size=N, max_size=N),
    st.floats(0.01, 2.0),
)
def test_any_logps_and_any_beta_give_the_formulas_value(name, rows, beta):
    columns = np.float32(rows).T
    logps = PairLogps(*columns, *np.full((2, N), 11, np.float32))
    expected = oracle(name, logps, beta=beta)
    if math.isfinite(expected) and abs(expected) < 1e30:
        np.testing.assert_allclose(total(name, logps, beta=beta), expected, rtol=2e-5, atol=1e-6)


def test_sigmoid_with_smoothing_is_conservative_dpo_and_without_it_trls():
    logps = random_pairs(2)
    np.testing.assert_allclose(total("sigmoid", logps, epsilon=0.2), oracle("sigmoid", logps, epsilon=0.2), rtol=1e-6)
    # In TRL a mix of sigmoid and exo_pair smooths the second only: smoothing per loss says so.
    per_loss = preference_losses(["sigmoid", "exo_pair"], logps, BETA, jnp.ones(N), label_smoothing={"exo_pair": 0.1})
    np.testing.assert_allclose(per_loss["sigmoid"].mean, oracle("sigmoid", logps, epsilon=0.0), rtol=1e-6)
    np.testing.assert_allclose(per_loss["exo_pair"].mean, oracle("exo_pair", logps, epsilon=0.1), rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sft"])
def test_beta_may_differ_from_pair_to_pair(name):
    """Under Dynamic Reward Scaling each pair's loss is the one it has under its own β."""
    logps = random_pairs(3)
    betas = jnp.linspace(0.05, 0.3, N)
    if name in BATCH_LOSSES:  # all partners are alike, so that a pair meets the same one alone
        logps = PairLogps(logps.policy_chosen, *[jnp.zeros(N)] * 3, *logps[4:])
    together = pair_loss(name, logps, betas, jnp.ones(N), label_smoothing=smoothing(name))
    for i in range(N):
        np.testing.assert_allclose(together[i], total(name, alone(logps, i), beta=betas[i]), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpo", {}, "unknown preference loss 'dpo'"),
        ("sigmoid", {"f_divergence": "kl"}, "unknown f_divergence 'kl'"),
        ("bco_pair", {"f_divergence": "forward_kl"}, "needs f_divergence 'reverse_kl'"),
        ("robust", {"label_smoothing": 0.5}, r"label_smoothing in \[0, 0.5\)"),
        ("exo_pair", {}, r"label_smoothing in \(0, 1\)"),
        ("sigmoid", {"label_smoothing": -0.1}, "must lie in"),
        ("sft", {}, "use preference_losses"),
    ],
)
def test_undefined_combinations_are_refused_in_one_line(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        pair_loss(name, random_pairs(0), BETA, jnp.ones(N), **options)
    assert "\n" not in str(error.value)


# --- extreme inputs ---------------------------------------------------------------------------------------------------

EXTREMES = np.float32([[1e4, -1e4, 1e4, -1e4, 0, 1e4, 0, -1e4], [-1e4, 1e4, 1e4, -1e4, 0, 0, -1e4, 0]])  # s⁺ and s⁻


def extreme_pairs() -> PairLogps:
    reference = np.full_like(EXTREMES, -100)
    return PairLogps(*(reference + EXTREMES), *reference, *np.full_like(EXTREMES, 50))


@pytest.mark.parametrize(("name", "f"), [case for case in CASES if case not in OVERFLOWING])
def test_margins_of_ten_thousand_nats_are_finite_in_value_and_gradient(name, f):
    """Each pair alone, so that one cannot hide behind another; also where TRL overflows (discopop, forward_kl)."""
    for i in range(N):
        logps = alone(extreme_pairs(), i)
        value, gradient = step(name, logps, f)
        assert np.isfinite(value), EXTREMES[:, i]
        assert np.isfinite(gradient).all(), EXTREMES[:, i]
        with np.errstate(over="ignore", invalid="ignore"):
            expected = oracle(name, logps, f)
        if math.isfinite(expected) and abs(expected) < 1e30:
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


# --- weights, slots, pieces -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(LOSSES), st.lists(st.integers(0, 3), min_size=N, max_size=N).filter(any), st.integers(0, 99))
def test_a_pair_of_weight_k_is_k_pairs_and_of_weight_0_none(name, counts, seed):
    """Also for aot and aot_unpaired, which sort the batch: a slot of weight 0 takes no place in the order."""
    logps = random_pairs(seed)
    repeated = jax.tree.map(lambda x: np.repeat(x, counts), logps)
    np.testing.assert_allclose(total(name, logps, weights=jnp.float32(counts)), oracle(name, repeated), rtol=2e-5)


def group_batch():
    """Two rows of four responses; six pairs in all, two of the eight slots unused and full of garbage."""
    rng = np.random.default_rng(5)
    reference = -rng.uniform(20, 60, (2, 4)).astype(np.float32)
    policy = (reference + rng.normal(0, 3, (2, 4))).astype(np.float32)
    lengths = np.float32(rng.integers(5, 40, (2, 4)))
    reference[1, 3] = np.nan  # this response is in no pair
    pairs = np.int32([[[0, 1], [9, 9], [0, 2], [2, 1]], [[2, 0], [2, 1], [3, 3], [0, 1]]])
    weights = np.float32([[1, 0, 1, 1], [1, 1, 0, 1]])
    return policy, reference, lengths, pairs, weights


@pytest.mark.parametrize("name", LOSSES)
def test_group_rows_equal_the_expanded_pairs_and_unused_slots_touch_nothing(name):
    """Loss and gradient with respect to each response's log-prob, summed over the pairs it is in."""
    policy, reference, lengths, pairs, weights = group_batch()

    def layout(policy):
        logps = jax.tree.map(jnp.ravel, jax.jit(pair_logps)(policy, reference, lengths, pairs, weights))
        return logps, logps.policy_chosen

    rows, slots = np.nonzero(weights)
    chosen, rejected = pairs[rows, slots].T
    expanded = PairLogps(*(x[rows, side] for x in (policy, reference, lengths) for side in (chosen, rejected)))
    value, gradient = step_through(layout, policy, jnp.ravel(weights), [name])
    np.testing.assert_allclose(value, oracle(name, expanded), rtol=1e-5)
    expected = np.zeros_like(policy)
    for side, pair_gradient in zip((chosen, rejected), oracle_gradient(name, expanded, "reverse_kl"), strict=True):
        np.add.at(expected, (rows, side), pair_gradient)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in BATCH_LOSSES])
def test_pieces_under_the_whole_batchs_denominator_add_up_to_the_whole(name):
    """Gradient accumulation is exact. Denominators need no forward pass: zeros for log-probs give them."""
    logps, weights = random_pairs(6), jnp.float32([1, 0.5, 0, 2, 1, 1, 0.25, 1])
    zeros = logps._replace(policy_chosen=jnp.zeros(N), policy_rejected=jnp.zeros(N))
    options = {"label_smoothing": smoothing(name)}
    denominators = {name: preference_losses([name], zeros, BETA, weights, **options)[name].weight}
    pieces = [
        weighted.mix(
            preference_losses([name], jax.tree.map(lambda x, p=p: x[p], logps), BETA, weights[p], **options),
            {name: 1.0},
            denominators,
        )
        for p in (slice(0, 4), slice(4, 8))
    ]
    np.testing.assert_allclose(sum(pieces), total(name, logps, weights=weights), rtol=1e-5)


def test_an_empty_batch_has_loss_and_gradient_zero():
    logps = random_pairs(7)
    for name in LOSSES:
        value, gradient = step(name, logps, weights=jnp.zeros(N))
        assert value == 0
        assert (gradient == 0).all()


def test_metrics_are_weighted_means_and_extremes_merge_across_pieces():
    logps, weights = random_pairs(8), jnp.float32([1, 1, 0, 1, 1, 1, 1, 1])
    betas = jnp.float32([0.1, 0.12, 9, 0.11, 0.1, 0.14, 0.1, 0.1])
    margins = jnp.float32([1, -1, -5, 0, 2, -3, 4, 1])

    def metrics(p):
        return preference_metrics(jax.tree.map(lambda x: x[p], logps), BETA, betas[p], weights[p], margins[p])

    merged = weighted.summary(weighted.merge(metrics(slice(0, 4)), metrics(slice(4, 8))))
    used = np.asarray(weights) > 0
    chosen, rejected = (BETA * np.float64(s)[used] for s in (logps.chosen_logratios, logps.rejected_logratios))
    expected = {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/accuracies": (chosen > rejected).mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "logps/chosen": logps.policy_chosen[used].mean(),
        "logps/rejected": logps.policy_rejected[used].mean(),
        "beta/mean": np.asarray(betas)[used].mean(),
        "beta/min": 0.1,
        "beta/max": 0.14,
        "reward_model/margin": np.asarray(margins)[used].mean(),
        "reward_model/disagreement": 2 / 7,
    }
    assert merged.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(merged[name], value, rtol=1e-5, err_msg=name)


def test_pairs_without_a_beta_count_for_everything_but_beta():
    logps, weights = random_pairs(8), jnp.ones(N)
    betas, with_beta = jnp.linspace(0.101, 0.171, N), jnp.float32([0, 1, 1, 0, 1, 1, 1, 0])
    every = preference_metrics(logps, BETA, betas, weights, betas, (0.1, 0.2))
    found = preference_metrics(logps, BETA, betas, weights, betas, (0.1, 0.2), beta_weights=with_beta)
    used = np.asarray(betas)[np.asarray(with_beta) > 0]
    every, found = weighted.summary(every), weighted.summary(found)
    betas = [found.pop(f"beta/{name}") for name in ("mean", "min", "max")]
    np.testing.assert_allclose(betas, [used.mean(), used[0], used[-1]], rtol=1e-6)
    edges = np.linspace(0.1, 0.2, weighted.BINS + 1)
    np.testing.assert_allclose(found.pop("beta/histogram"), np.histogram(used, edges)[0] / len(used))
    for name, value in found.items():
        np.testing.assert_array_equal(value, every[name])


def test_equal_rewards_are_a_miss():
    same = PairLogps(*np.full((6, 3), 2, np.float32))
    assert preference_metrics(same, BETA, BETA, jnp.ones(3))["rewards/accuracies"].mean == 0


# --- LD-DPO -----------------------------------------------------------------------------------------------------------


def token_batch():
    """One row of three responses of 3, 5 and 2 targets, two of them in several runs; three pairs and an unused slot."""
    responses = np.int32([[0, 0, 1, 1, 1, 0, 2, 2, 1, 3, 1]])
    rng = np.random.default_rng(9)
    policy, reference = -rng.uniform(0, 3, (2, 1, 11)).astype(np.float32)
    pairs, weights = np.int32([[[0, 1], [1, 2], [2, 0], [7, 7]]]), np.float32([[1, 1, 1, 0]])
    return policy, reference, responses, pairs, weights


def test_ld_alpha_1_gives_plain_sums():
    policy, reference, responses, pairs, weights = token_batch()
    sums = [np.float32([[x[0][responses[0] == r].sum() for r in range(3)]]) for x in (policy, reference)]
    plain = pair_logps(*sums, np.float32([[3, 5, 2]]), pairs, weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        length_desensitized_pair_logps(policy, reference, responses, 3, pairs, weights, 1.0),
        plain,
    )


def test_tokens_beyond_the_shorter_response_count_ld_alpha():
    policy, reference, responses, pairs, weights = token_batch()
    out = length_desensitized_pair_logps(policy, reference, responses, 3, pairs, weights, 0.3)
    texts = [policy[0][responses[0] == r] for r in range(3)]
    for p, (c, r) in enumerate(pairs[0, :3]):
        shared = min(len(texts[c]), len(texts[r]))
        expected = texts[c][:shared].sum() + 0.3 * texts[c][shared:].sum()
        np.testing.assert_allclose(out.policy_chosen[0, p], expected, rtol=1e-6)
    assert all(x[0, 3] == 0 for x in out)


# --- against TRL itself -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl_step():
    """TRL's loss, gradient with respect to token log-probs, and metrics; tokens are [2n, T], chosen first."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("trl", minversion="1.16.0")
    from trl.trainer.dpo_trainer import DPOTrainer

    class Replay(torch.nn.Module):
        """A model that answers with given token log-probs."""

        is_gradient_checkpointing = False

        def __init__(self, log_probs):
            super().__init__()
            self.log_probs = log_probs

        def forward(self, **_):
            zeros = torch.zeros_like(self.log_probs)
            return SimpleNamespace(log_probs=self.log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    def step(policy, reference, lengths, names, loss_weights=None, f="reverse_kl", ld_alpha=None):
        leaf = torch.tensor(policy, requires_grad=True)
        mask = torch.arange(policy.shape[1]) < torch.tensor(lengths)[:, None]
        completion_mask = torch.cat([torch.zeros(len(mask), 1), mask], dim=1).long()  # one prompt token in front
        model = Replay(leaf * mask)
        trainer = SimpleNamespace(
            model=model,
            ref_model=Replay(torch.tensor(reference) * mask),
            accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
            args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
            aux_loss_enabled=False,
            precompute_ref_logps=False,
            use_weighting=False,
            ld_alpha=ld_alpha,
            f_divergence_type=f,
            f_alpha_divergence_coef=0.5,
            label_smoothing=max(smoothing(name) for name in names),
            beta=BETA,
            loss_types=names,
            loss_weights=loss_weights or [1.0] * len(names),
            _metrics={"train": defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )
        inputs = {
            "input_ids": torch.zeros_like(completion_mask),
            "attention_mask": torch.ones_like(completion_mask),
            "completion_mask": completion_mask,
        }
        loss = DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
        loss.backward()
        return loss.item(), leaf.grad.numpy(), {k: v[-1] for k, v in trainer._metrics["train"].items()}

    return step


def random_tokens(seed: int, n: int = N, length: int = 9):
    rng = np.random.default_rng(seed)
    reference = -rng.uniform(0, 4, (2 * n, length)).astype(np.float32)
    policy = (reference + rng.normal(0, 0.5, reference.shape)).astype(np.float32)
    return policy, reference, rng.integers(2, length + 1, 2 * n)


@jax.jit
def trl_layout(policy, reference, lengths, ld_alpha):
    """TRL's batch of [2n, T] tokens as one row of 2n responses and n pairs."""
    count, width = policy.shape
    responses = jnp.where(jnp.arange(width) < lengths[:, None], jnp.arange(count)[:, None], count).reshape(1, -1)
    pairs = jnp.arange(count).reshape(1, 2, -1).swapaxes(1, 2)
    row = (policy.reshape(1, -1), reference.reshape(1, -1), responses, count, pairs, jnp.ones((1, count // 2)))
    logps, plain = (length_desensitized_pair_logps(*row, alpha) for alpha in (ld_alpha, 1.0))
    return jax.tree.map(jnp.ravel, (logps, plain.policy_chosen))


def our_step(policy, reference, lengths, names, coefficients=None, f="reverse_kl", ld_alpha=1.0):
    def layout(tokens):
        return trl_layout(tokens, reference, lengths, ld_alpha)

    metrics = preference_metrics(layout(policy)[0], BETA, BETA, jnp.ones(N))
    return *step_through(layout, policy, jnp.ones(N), names, coefficients, f), weighted.summary(metrics)


def assert_same_step(ours, theirs, rtol=1e-5):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=rtol)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=rtol, atol=rtol * np.abs(theirs[1]).max())
    for key in set(ours[2]) & set(theirs[2]):
        np.testing.assert_allclose(ours[2][key], theirs[2][key], rtol=1e-5, atol=1e-5, err_msg=key)
    assert set(ours[2]) - set(theirs[2]) == {"beta/mean", "beta/min", "beta/max"}


@pytest.mark.parametrize(("name", "f"), CASES)
def test_loss_gradient_and_metrics_equal_trls_own_code(trl_step, name, f):
    batch = random_tokens(10)
    assert_same_step(our_step(*batch, [name], f=f), trl_step(*batch, [name], f=f))


@pytest.mark.parametrize(
    ("names", "loss_weights"),
    [(["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]), (["sigmoid", "exo_pair"], [1.0, 0.5]), (list(LOSSES), None)],
)
def test_mixes_equal_trls_own_code(trl_step, names, loss_weights):
    batch = random_tokens(11)
    assert_same_step(our_step(*batch, names, loss_weights), trl_step(*batch, names, loss_weights))


@pytest.mark.parametrize("name", LOSSES)
def test_ld_alpha_equals_trls_own_code(trl_step, name):
    batch = random_tokens(12)
    assert_same_step(our_step(*batch, [name], ld_alpha=0.3), trl_step(*batch, [name], ld_alpha=0.3))


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_margins_equal_trls_own_code_where_it_is_finite(trl_step, name):
    """The first token of each response carries the whole log-ratio. TRL's discopop is NaN far below a margin of 0.

    Quarters of nats, so that sums of tokens are exact and only the losses are compared.
    """
    ratios = EXTREMES[:, [0, 2, 3, 4, 5, 6, 0, 5]] if name == "discopop" else EXTREMES
    reference = np.round(4 * random_tokens(13)[1]) / 4
    policy = reference.copy()
    policy[:, 0] += ratios.ravel()
    batch = policy, reference, np.full(2 * N, 9)
    theirs = trl_step(*batch, [name])
    assert math.isfinite(theirs[0])
    assert_same_step(our_step(*batch, [name]), theirs)
