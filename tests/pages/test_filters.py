"""Filters: each option keeps the cases of its class, and a choice that has none says so."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from mmrlhf_jax.pages.filters import Filter, filtered, rules
from mmrlhf_jax.pages.parts import element

WAYS = Filter("way", "Which way", "both", [("up", "up (2)"), ("down", "down (1)")])
MANY = Filter("of", "Benchmark", "all", [(f"of-{i}", f"benchmark {i}") for i in range(9)])
FOUND = [("up", "of-0"), ("up", "of-1"), ("down", "of-0")]


def test_few_options_are_buttons_and_many_are_a_list_and_both_have_names():
    cases = [element("article", class_=" ".join(("case", *classes))) for classes in FOUND]
    tree = ElementTree.fromstring(filtered([WAYS, MANY], cases))
    assert tree.find(".//fieldset/legend").text == "Which way"
    buttons = tree.findall(".//fieldset/input")
    assert {button.get("id") for button in buttons} == {label.get("for") for label in tree.findall(".//fieldset/label")}
    assert [button.get("id") for button in buttons if button.get("checked")] == ["way-all"]
    assert tree.find(".//label[@class='list']/span").text == "Benchmark"
    assert [option.get("id") for option in tree.iter("option")] == ["of-all", *[f"of-of-{i}" for i in range(9)]]
    assert len(tree.findall(".//article")) == 3


def test_an_option_hides_the_cases_without_its_class():
    hidden = dict(re.findall(r"\.filtered:has\(#([\w-]+):checked\) \.case:not\(\.([\w-]+)\)", rules([WAYS, MANY], FOUND)))
    assert hidden == {"way-up": "up", "way-down": "down"} | {f"of-of-{i}": f"of-{i}" for i in range(9)}


def test_a_choice_without_cases_says_so_and_no_other():
    style = rules([WAYS, MANY], FOUND)
    empty = set(re.findall(r"has\(#way-([\w-]+):checked\):has\(#of-([\w-]+):checked\) \.none", style))
    assert {("down", "of-1"), ("up", "of-2"), ("all", "of-8")} <= empty
    assert empty & {("all", "all"), ("up", "all"), ("down", "all"), ("up", "of-1"), ("down", "of-0"), ("all", "of-1")} == set()
    assert len(empty) == 3 * 10 - 8
    assert set(re.findall(r"has\(#way-([\w-]+):checked\) \.none", rules([WAYS], []))) == {"all", "up", "down"}
