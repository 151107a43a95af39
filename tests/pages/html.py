"""What tests ask of a page."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree


def parsed(page: str) -> ElementTree.Element:
    """The page as a tree. An XML parser is the judge that every tag is closed and every character escaped; nothing is loaded
    from elsewhere, there is no script, ids are unique, pictures have texts, and headings descend one level at a time."""
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "@import" not in page and "url(" not in page
    tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert not list(tree.iter("script"))
    ids = [each.get("id") for each in tree.iter() if each.get("id") is not None]
    assert len(ids) == len(set(ids))
    assert {link.get("href").removeprefix("#") for link in tree.iter("a")} <= set(ids)
    assert all(image.get("alt") for image in tree.iter("img"))
    levels = [int(each.tag[1]) for each in tree.iter() if re.fullmatch("h[1-6]", each.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels)), levels
    return tree


def text(element: ElementTree.Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def rows(table: ElementTree.Element) -> dict[str, list[str]]:
    """The cells of a table by the heads of its rows."""
    found = {}
    for tr in table.findall("tbody/tr"):
        if tr[0].get("scope") == "row":
            found[text(tr[0])] = [text(cell) for cell in tr[1:]]
    return found
