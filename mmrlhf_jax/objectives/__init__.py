"""Losses as pure functions from arrays to weighted sums, independent of model, data set and configuration.

`preference` has the DPO family, `reward_scaling` β(δ), `beta_dpo` the β of β-DPO, `pair_draws` the draws of pairs by chance,
`reward_model` the losses of score and critique. They take log-probs and rewards per response (`outputs.Outputs`), which
`logprobs` computes from hidden states, and gather them by `pairs` of responses.
`weighted` keeps numerators and denominators apart, so that gradient accumulation is exact.
"""

from mmrlhf_jax.objectives.logprobs import sum_by_response, target_counts, target_logps
from mmrlhf_jax.objectives.outputs import Outputs
from mmrlhf_jax.objectives.pairs import PairLogps, gather_pairs, length_desensitized_pair_logps, pair_logps
from mmrlhf_jax.objectives.weighted import Metric, WeightedSum, divide, merge, mix, summary, weighted_sum

__all__ = [
    "Metric",
    "Outputs",
    "PairLogps",
    "WeightedSum",
    "divide",
    "gather_pairs",
    "length_desensitized_pair_logps",
    "merge",
    "mix",
    "pair_logps",
    "sum_by_response",
    "summary",
    "target_counts",
    "target_logps",
    "weighted_sum",
]
