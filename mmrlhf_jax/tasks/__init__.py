"""Tasks: one object for each kind of objective, which connects data and loss. `task_of` returns the task of an objective.

A new kind of objective needs its settings in `config/objective.py`, a module here with its `Task`, and a line in `registry.py`.
"""

from mmrlhf_jax.tasks.examples import open_held_out_examples, open_training_examples
from mmrlhf_jax.tasks.registry import task_of
from mmrlhf_jax.tasks.rows import learnt_records, plan_training_rows, with_settled_objective
from mmrlhf_jax.tasks.task import Reference, Statistics, Task, Terms

__all__ = [
    "Reference",
    "Statistics",
    "Task",
    "Terms",
    "learnt_records",
    "open_held_out_examples",
    "open_training_examples",
    "plan_training_rows",
    "task_of",
    "with_settled_objective",
]
