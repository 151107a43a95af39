"""Names of models beside each other are as short as they can be, and tell the models apart."""

from __future__ import annotations

from mmrlhf_jax.suite.names import short_names


def test_names_are_as_short_as_they_can_be():
    assert short_names(["/models/a", "/models/b/"], ["x", "x"]) == ["a", "b"]
    assert short_names(["/x/a/hf", "/x/b/hf"], ["x", "y"]) == ["a/hf", "b/hf"]
    assert short_names(["/x/a", "/x/a"], ["out/x", "out/y"]) == ["a (x)", "a (y)"]
    assert short_names(["/x/a", "/x/a"], ["out", "out"]) == ["a (1)", "a (2)"]
    assert short_names(["owner/name"], ["out"]) == ["name"]


def test_only_names_that_are_equal_have_their_directories():
    names = ["models/base", "models/aligned", "models/aligned"]
    assert short_names(names, ["base", "n/a", "n/b"]) == ["base", "aligned (a)", "aligned (b)"]
    assert short_names(names, ["base", "n/a/hf", "m/a/hf"]) == ["base", "aligned (n/a/hf)", "aligned (m/a/hf)"]


def test_only_paths_with_the_same_end_are_longer():
    assert short_names(["/models/base", "/x/a/hf", "/x/b/hf"], ["x", "y", "z"]) == ["base", "a/hf", "b/hf"]
    assert short_names(["hf", "x/hf"], ["x", "y"]) == ["hf", "x/hf"]
