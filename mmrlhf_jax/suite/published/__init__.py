"""What MM-RLHF (arXiv 2502.10391) prints: its tables 2 and 3, and the figures of its teaser, from `mm_rlhf.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources

from mmrlhf_jax import strict_json


def _by_model(models: Sequence[str], rows: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    return {model: {row: values[number] for row, values in rows.items()} for number, model in enumerate(models)}


_DATA = strict_json.loads(resources.files(__name__).joinpath("mm_rlhf.json").read_text(encoding="utf-8"))
_TEASER = _DATA["teaser"]

SOURCE: str = _DATA["source"]

# Name of a model -> its figures by the rows of `mm_rlhf.MM_RLHF`'s table. A model stands before the one aligned from it.
FIGURES: Mapping[str, Mapping[str, float]] = _by_model(_DATA["models"], _DATA["rows"])
ALIGNED = " + MM-RLHF"  # behind the name of a model that was aligned by the paper's method
MODELS = tuple(name for name in FIGURES if not name.endswith(ALIGNED))

# The last two columns of table 3: name of a model -> its means by the axes of `mm_rlhf.MM_RLHF`.
MEANS: Mapping[str, Mapping[str, float]] = _by_model(_DATA["models"], _DATA["means"])

# Name of a model -> its figures in the teaser, by axes: before alignment, by plain DPO (whose rows are not printed), by MM-DPO.
TEASER: Mapping[str, Mapping[str, float]] = _by_model(_TEASER["models"], _TEASER["axes"])
BASE, _, MM_DPO = TEASER


def printed(axis: str, model: str) -> dict[str, float]:
    """The means of an axis that the paper prints for a model, by where it does."""
    places = {"the teaser": TEASER, "table 3": MEANS}
    return {place: means[model][axis] for place, means in places.items() if axis in means.get(model, ())}


# (axis, model) -> what is known of a printed mean that the rows of tables 2 and 3 do not give.
UNEXPLAINED: Mapping[tuple[str, str], str] = {(each["axis"], each["model"]): each["note"] for each in _DATA["unexplained"]}
