"""The types of settings: numbers that devices can represent, and paths that can be read from or written to."""

from __future__ import annotations

from typing import Annotated

import pydantic
from pydantic import AfterValidator, Strict

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import check_place, expand_home
from mmrlhf_jax.finite import LARGEST, LEAST_NORMAL, as_float32, is_finite

FROM_FILE = "file"  # validation context of values from files and options; code may use an empty path as placeholder


def _in_float32(value: float) -> float:
    if not is_finite(value) or 0 < abs(value) < LEAST_NORMAL:
        raise ValueError(f"{value:g} has no place in float32, whose numbers are 0 or from {LEAST_NORMAL:.2g} to {LARGEST:.2g}")
    return value


def _below_one(value: float) -> float:
    if not 0 <= as_float32(value) < 1:
        raise ValueError(f"must be at least 0 and below 1, also in float32, which rounds from 1 - 3e-8 to 1; found {value!r}")
    return value


def _above_one(value: float) -> float:
    if not as_float32(value) > 1:
        raise ValueError(f"must be above 1, also in float32, which rounds up to 1 + 6e-8 to 1; found {value!r}")
    return value


def _place(path: str, info: pydantic.ValidationInfo, writes: bool = False) -> str:
    if not path and info.context == FROM_FILE:
        raise ValueError("the path is empty")
    try:
        return check_place(expand_home(path), writes=writes)
    except UserError as error:
        raise ValueError(str(error)) from None


def _written_place(path: str, info: pydantic.ValidationInfo) -> str:
    return _place(path, info, writes=True)


# Strict: bools and texts are not accepted as numbers.
Number = Annotated[float, Strict(), AfterValidator(_in_float32)]
# Checked in float32, in which devices compute: a decay that rounds to 1 never decays, and 1 - decay would be 0 in a division.
BelowOne = Annotated[Number, AfterValidator(_below_one)]
AboveOne = Annotated[Number, AfterValidator(_above_one)]
Integer = Annotated[int, Strict(), pydantic.Field(ge=-(2**31), lt=2**31)]
Flag = Annotated[bool, Strict()]
PathName = Annotated[str, AfterValidator(_place)]
WrittenPath = Annotated[str, AfterValidator(_written_place)]
