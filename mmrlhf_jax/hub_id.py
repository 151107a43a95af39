"""Names of models on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def is_hub_id(model: str) -> bool:
    """Whether a model's path is a hub id `org/name`: it has this form, and there is no local directory of that name."""
    return HUB_ID.fullmatch(model) is not None and not Path(model).exists()
