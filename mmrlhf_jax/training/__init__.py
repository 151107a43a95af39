"""`mmrlhf train` and all that a run writes: checkpoints, metrics, its page, the exported model.

`loop.train` runs an experiment: it prepares a `run.Run`, then makes its steps one after the other. `step` is the train step, a
function over pytrees; what it minimises comes from the experiment's task (`tasks`).
"""
