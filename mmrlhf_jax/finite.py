"""Numbers that come from outside: they must be numbers, and finite as float32, which is what devices make of them."""

from __future__ import annotations

from typing import Any

from mmrlhf_jax.errors import UserError, shown

LARGEST = 3.4028234663852886e38  # of float32
LEAST_NORMAL = 1.1754943508222875e-38  # below it devices may make 0 of a number


def is_finite(value: Any) -> bool:
    """Whether a value is an integer or a float (no truth value, no text) whose float32 is finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def number(value: Any, where: str) -> float:
    """The value as a float. Raises UserError, which opens with `where`, for what is no number, or not finite as float32."""
    if not is_finite(value):
        raise UserError(f"{where} must be a finite number (of float32: at most {LARGEST:.3g}), found {shown(value)}")
    return float(value)
