"""`mmrlhf train`, and everything that a run writes: checkpoints, metrics, its report, the exported model.

`loop.train` runs an experiment: it prepares a `run.Run` and then executes its steps. `step` is the train step, a function over
pytrees; its loss comes from the experiment's task (`tasks`).
"""
