"""`mmrlhf train` and all that a run writes: checkpoints, metrics, its page, the exported model.

`loop.train` runs an experiment; `step` is the train step, a function over pytrees. What is minimised comes from `objectives`.
"""
