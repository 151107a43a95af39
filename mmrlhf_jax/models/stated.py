"""Reads values from a JSON object of a checkpoint's directory, each checked on access. This module imports no jax."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.finite import LEAST_NORMAL, is_finite

KEPT = ("torch_dtype", "dtype", "reward_head")  # keys that a config.json has under the same name in every naming


def kept(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and values of a config.json that are the same in every naming."""
    return {key: raw[key] for key in KEPT if key in raw}


def architectures(raw: Mapping[str, Any]) -> list[str]:
    """The class names that a config.json states; none if it states something else, by which no model is recognised."""
    stated = raw.get("architectures")
    return [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []


class Stated:
    """The keys and values of `raw`, with `defaults` for missing keys. `where` is its location for messages.

    Every method raises UserError, with location and key, for a value of the wrong type.
    """

    def __init__(self, raw: Any, where: str, defaults: Mapping[str, Any] | None = None):
        if not isinstance(raw, dict):
            raise UserError(f"{where} must be an object, found {shown(raw)}")
        self._values, self.where = dict(defaults or {}) | raw, where

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def part(self, key: str, defaults: Mapping[str, Any] | None = None) -> Stated:
        """A nested object; empty if the key is missing or null."""
        value = self.get(key)
        return Stated({} if value is None else value, f"{self.where}: {key}", defaults)

    def parts(self, key: str) -> list[Stated]:
        """The objects of a list; none if the key is missing or null."""
        value = self.get(key) or []
        if not isinstance(value, list):
            self._refuse(key, "a list of objects", value)
        return [Stated(each, f"{self.where}: {key}[{number}]") for number, each in enumerate(value)]

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def integer(self, key: str, default: int | None = None, *, least: int | None = None) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
            self._refuse(key, "a whole number" if least is None else f"a whole number of at least {least}", value)
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if not is_finite(value) or value < LEAST_NORMAL:
            self._refuse(key, "a positive, finite number", value)
        return float(value)

    def colour(self, key: str, default: tuple[float, ...], *, positive: bool = False) -> tuple[float, ...]:
        """Three numbers, one per channel; `default` if the key is missing or null."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, list) or len(value) != 3 or not all(map(is_finite, value)):
            self._refuse(key, "three finite numbers", value)
        if positive and min(value) < LEAST_NORMAL:
            self._refuse(key, "three positive numbers", value)
        return tuple(map(float, value))

    def choice(self, key: str, known: Collection[str], default: str) -> str:
        value = self.get(key, default)
        if value not in known:
            self._refuse(key, f"one of {', '.join(map(repr, known))}", value)
        return value

    def truth(self, key: str, default: bool) -> bool:
        """A bool; null counts as false."""
        value = self.get(key, default)
        if not isinstance(value, bool | None):
            self._refuse(key, "true or false", value)
        return bool(value)

    def pairs(self, key: str, default: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """Pairs of positive integers; `default` if the key is missing, null or empty."""
        value = self.get(key) or default
        if not isinstance(value, list | tuple) or not all(map(_is_pair, value)):
            self._refuse(key, "pairs of whole numbers, height and width", value)
        return tuple((first, second) for first, second in value)

    def _refuse(self, key: str, expected: str, value: Any) -> None:
        raise UserError(f"{self.where}: {key} must be {expected}, found {shown(value)}")


def _is_pair(value: Any) -> bool:
    numbers = isinstance(value, list | tuple) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in value)
    return numbers and len(value) == 2
