"""Numbers that come from outside: they must be numbers, and finite as float32, which is what devices make of them."""

from __future__ import annotations

import re
import struct
import unicodedata
from typing import Any

from mmrlhf_jax.errors import UserError, shown

LARGEST = 3.4028234663852886e38  # of float32
LEAST_NORMAL = 1.1754943508222875e-38  # below it devices may make 0 of a number


def is_finite(value: Any) -> bool:
    """Whether a value is an integer or a float (no truth value, no text) whose float32 is finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def as_float32(value: float) -> float:
    """The float32 that is nearest to a number whose float32 is finite: what devices make of it."""
    return struct.unpack("f", struct.pack("f", value))[0]


# What people type for a number. Python's own reader of text also takes 1_0, infinity, and digits of other scripts.
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", re.ASCII)


def from_text(text: str) -> float | None:
    """The number that a text says (full-width digits are digits); None if it says none, or one that float32 does not hold."""
    value = float(text) if _DECIMAL.fullmatch(text := unicodedata.normalize("NFKC", text).strip()) else None
    return value if is_finite(value) else None


def number(value: Any, where: str) -> float:
    """The value as a float. Raises UserError, which opens with `where`, for what is no number, or not finite as float32."""
    if not is_finite(value):
        raise UserError(f"{where} must be a finite number (of float32: at most {LARGEST:.3g}), found {shown(value)}")
    return float(value)
