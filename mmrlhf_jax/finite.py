"""Checks of input numbers: they must be numbers, and finite in float32, in which devices compute."""

from __future__ import annotations

import re
import struct
import unicodedata
from typing import Any

from mmrlhf_jax.errors import UserError, shown

LARGEST = 3.4028234663852886e38  # largest float32
LEAST_NORMAL = 1.1754943508222875e-38  # smallest normal float32; devices may flush smaller numbers to 0


def is_finite(value: Any) -> bool:
    """Whether a value is an int or float (not a bool or text) that is finite in float32."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def as_float32(value: float) -> float:
    """A number rounded to float32; it must be finite there."""
    return struct.unpack("f", struct.pack("f", value))[0]


# Decimal notation. Python's `float` would also accept 1_0, infinity, and digits of other scripts.
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", re.ASCII)


def from_text(text: str) -> float | None:
    """The number in a text (full-width digits are accepted); None if it is no number, or not finite in float32."""
    value = float(text) if _DECIMAL.fullmatch(text := unicodedata.normalize("NFKC", text).strip()) else None
    return value if is_finite(value) else None


def number(value: Any, where: str) -> float:
    """The value as a float. Raises UserError, which begins with `where`, if it is no number or not finite in float32."""
    if not is_finite(value):
        raise UserError(f"{where} must be a finite number (of float32: at most {LARGEST:.3g}), found {shown(value)}")
    return float(value)
