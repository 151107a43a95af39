"""Experiments and launch files: YAML read into frozen, validated models. All defaults are defined here.

An experiment (`configs/*.yaml`) says what is learnt from which data; a launch file (`launch/*.yaml`) says on which devices and
mesh. An experiment may name one `base:` file whose keys it overrides; `--set a.b=c` overrides both.

Like the modules of the top level, this package imports no other package. Other packages import its names from here.
"""

from mmrlhf_jax.config.data import DATA_PLACES, Data, DataSet
from mmrlhf_jax.config.experiment import Experiment, load_experiment, read_experiment, with_absolute_paths
from mmrlhf_jax.config.launch import Distributed, Launch, Mesh, load_launch
from mmrlhf_jax.config.learning import SLOWEST_IN_BFLOAT16, Guard, Lora, Optimizer, Trains
from mmrlhf_jax.config.model import Model
from mmrlhf_jax.config.objective import Objective, ObjectiveSection, Preference, RewardModel, Scaling, Supervised
from mmrlhf_jax.config.run import Batch, Run
from mmrlhf_jax.config.values import Dtype

__all__ = [
    "DATA_PLACES",
    "SLOWEST_IN_BFLOAT16",
    "Batch",
    "Data",
    "DataSet",
    "Distributed",
    "Dtype",
    "Experiment",
    "Guard",
    "Launch",
    "Lora",
    "Mesh",
    "Model",
    "Objective",
    "ObjectiveSection",
    "Optimizer",
    "Preference",
    "RewardModel",
    "Run",
    "Scaling",
    "Supervised",
    "Trains",
    "load_experiment",
    "load_launch",
    "read_experiment",
    "with_absolute_paths",
]
