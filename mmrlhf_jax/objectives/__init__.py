"""What is minimised, as pure functions: arrays in, weighted sums out. No model, no data set, no configuration.

`preference` has the DPO family, `reward_scaling` β(δ), `reward_model` the losses of score and critique. They take log-probs and
rewards per response (`outputs.Outputs`), which `logprobs` sums from a model's hidden states, and follow `pairs` of them.
`weighted` keeps numerator and denominator apart, so that a batch may be cut into pieces.
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
