"""A function that changes what its module holds computes the same when it is called again."""

from __future__ import annotations

import functools
import sys
import types

from mmrlhf_jax.suite.harness.module_state import TASKS, ModuleState

CODE = """
TOTAL, SEEN, KINDS, CALLS, NESTED, FIXED = {"right": 0}, [], set(), 0, {"of": {"a": [1]}}, ("a", 1)

def aggregate(results, args=None):
    global CALLS
    CALLS += 1
    TOTAL["right"] += sum(results)
    TOTAL.setdefault("new", len(TOTAL))
    SEEN.extend(results)
    KINDS.update(results)
    NESTED["of"]["a"].append(len(NESTED["of"]["a"]))
    NESTED["of"] = dict(NESTED["of"], b=1)
    if None in results:
        raise ValueError
    return TOTAL["right"], len(SEEN), len(KINDS), CALLS, sum(NESTED["of"]["a"]), len(NESTED["of"])
"""


def module(name: str) -> types.ModuleType:
    made = types.ModuleType(name)
    exec(CODE, vars(made))
    return made


def test_what_a_function_adds_to_its_module_is_taken_back():
    found = module("utils")
    held = [found.TOTAL, found.NESTED["of"]["a"], found.SEEN]
    states = [ModuleState(each) for each in (found.aggregate, functools.partial(found.aggregate, args=1))]
    made = []
    for state in (*states, states[0]):
        with state.kept():
            made.append(found.aggregate([1, 0, 1]))
    assert made == [(2, 3, 2, 1, 2, 2)] * 3
    assert ({"right": 0}, [], set(), 0) == (found.TOTAL, found.SEEN, found.KINDS, found.CALLS)
    assert found.NESTED == {"of": {"a": [1]}} and found.FIXED == ("a", 1)
    assert held[0] is found.TOTAL and held[1] is found.NESTED["of"]["a"] and held[2] is found.SEEN


def test_also_after_an_error_and_in_other_modules_of_tasks(monkeypatch):
    caller, other = module("caller"), module(f"{TASKS}other")
    monkeypatch.setitem(sys.modules, f"{TASKS}other", other)
    state = ModuleState(caller.aggregate)
    try:
        with state.kept():
            other.aggregate([1])
            caller.aggregate([None])
    except TypeError:
        pass
    assert (other.SEEN, other.CALLS, caller.CALLS) == ([], 0, 0)


def test_a_function_without_a_module_holds_nothing():
    with ModuleState(sum).kept():
        assert sum([1, 2]) == 3
