"""What makes a run the run that it is: stored with every checkpoint, so that none of another run is gone on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from mmrlhf_jax import config, sections, strict_json
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.training.reference import model_fingerprint

# As JSON text: compared setting by setting. The resolved configuration is kept beside it for whoever reads the checkpoint.
SETTINGS, CONFIGURATION = "settings", "configuration"


def run_identity(experiment: config.Experiment, rows: Rows, steps: int, source: epath.PathLike) -> dict[str, Any]:
    """`source`: the directory of the model that the run starts from."""
    settings = experiment.model_dump(mode="json", include={"objective", "optimizer", "lora"})
    settings["model"] = experiment.model.model_dump(
        mode="json", include={"dtype", "frozen_dtype", "reduce_dtype", "reward_head"}
    )
    return {
        "data": rows.index.fingerprint,
        "seed": experiment.run.seed,
        "rows": experiment.batch.rows,
        "steps": steps,
        "trains": learning(experiment),
        "plan of rows": rows.identity,
        "model": model_fingerprint(source),
        SETTINGS: strict_json.dumps(settings, sort_keys=True),
        CONFIGURATION: sections.resolved(experiment),
    }


def computed_precision(experiment: config.Experiment) -> dict[str, str]:
    """What of the experiment's precision the numbers of its starting model depend on, beside the model itself."""
    settings = experiment.model
    if (
        settings.dtype == "bfloat16" or settings.frozen_dtype == "float32"
    ):  # weights are rounded where they are used, or nowhere
        return {"dtype": settings.dtype}
    return {"dtype": settings.dtype, "frozen": settings.frozen_dtype, "learns": learning(experiment)}


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first thing (name, as found, as wanted) that makes two identities two runs; None if they are one."""
    for key, value in wanted.items():
        if key == CONFIGURATION or found.get(key) == value:
            continue
        if key != SETTINGS or SETTINGS not in found:
            return key, found.get(key), value
        before, now = (_with_todays_names(_flat(strict_json.loads(text))) for text in (found[SETTINGS], value))
        for name in dict.fromkeys([*before, *now]):
            if before.get(name) != now.get(name):
                return name, before.get(name), now.get(name)
    return None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _with_todays_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Of checkpoints from before precision went by role. Whatever they stored what learns in is restored into float32, and
    sums that were bfloat16 are the default's from here on."""
    names = {"model.param_dtype": "model.frozen_dtype"}
    settings = {names.get(name, name): value for name, value in settings.items() if name != "lora.dtype"}
    return {"model.reduce_dtype": config.Model.model_fields["reduce_dtype"].default} | settings


def learning(experiment: config.Experiment) -> str:
    """What a checkpoint holds, in words: the parts that learn, and how."""
    parts = " ".join(part for part, learns in experiment.trains if learns)
    lora = experiment.lora
    return f"{parts}; lora rank {lora.rank} of {' '.join(lora.parts)}" if lora else parts
