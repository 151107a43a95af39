"""What a module of the harness holds in its names, which some of its functions change (lmms-eval 0.7.3, `tasks/ocrbench`)."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

TASKS = "lmms_eval.tasks."  # what the modules of all tasks begin with


class ModuleState:
    """What a function's module holds, and all modules of tasks do that are imported already. (The one that a YAML file names is
    loaded under another name.)"""

    def __init__(self, function: Callable):
        while isinstance(function, functools.partial):
            function = function.func
        modules = [vars(module) for name, module in list(sys.modules.items()) if name.startswith(TASKS)]
        self._names = [getattr(inspect.unwrap(function), "__globals__", {}), *modules]

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Give the names back what they stood for before, when done.

        Lists, dictionaries and sets that were changed in place, in whatever depth, have their content again. So a function that
        adds its result to what its module holds computes the same when it is called again.
        """
        before = [(names, _remembered(names)) for names in self._names]
        try:
            yield
        finally:
            for names, content in before:
                names.update((name, give_back()) for name, give_back in content.items())


def _remembered(names: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Name -> what gives its object back, as it is now; of plain data alone."""
    kinds = (dict, list, set, tuple, str, bytes, int, float, type(None))
    return {name: _as_it_is(value) for name, value in names.items() if isinstance(value, kinds) and not name.startswith("__")}


def _as_it_is(value: Any) -> Callable[[], Any]:
    """What gives an object back, with the content that it has now if it is a container."""
    if isinstance(value, dict):
        return functools.partial(_fill_dictionary, value, {name: _as_it_is(each) for name, each in value.items()})
    if isinstance(value, list):
        return functools.partial(_fill_list, value, [_as_it_is(each) for each in value])
    if isinstance(value, set):
        return functools.partial(_fill_set, value, frozenset(value))
    return lambda: value


def _fill_dictionary(container: dict, content: dict[Any, Callable[[], Any]]) -> dict:
    container.clear()
    container.update((name, give_back()) for name, give_back in content.items())
    return container


def _fill_list(container: list, content: list[Callable[[], Any]]) -> list:
    container[:] = [give_back() for give_back in content]
    return container


def _fill_set(container: set, content: frozenset) -> set:
    container.clear()
    container.update(content)
    return container
