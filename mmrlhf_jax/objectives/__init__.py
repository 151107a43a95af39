"""What is minimised, as pure functions: arrays in, weighted sums out. No model, no data set, no configuration.

`preference` has the DPO family, `reward_scaling` β(δ), `reward_model` the losses of score and critique. They take log-probs and
rewards per response (`outputs.Outputs`), which `logprobs` sums from a model's hidden states, and follow `pairs` of them.
`weighted` keeps numerator and denominator apart, so that a batch may be cut into pieces.
"""
