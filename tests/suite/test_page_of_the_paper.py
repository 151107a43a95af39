"""The page of MM-RLHF's own benchmarks, beside the figures of the paper."""

from __future__ import annotations

import dataclasses

import pytest

from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.published import FIGURES
from tests.pages.html import rows, text
from tests.suite.support.reports import first_numbers, page, section


def test_the_papers_figures_stand_beside_and_are_summed_up_by_the_same_rule(tmp_path, papers):
    tree = page(tmp_path, papers)
    shown = rows(section(tree, "dimensions").find(".//table"))
    assert len(shown) == 12
    for cells in shown.values():
        assert first_numbers(cells)[0] == first_numbers(cells)[1]  # the run is the paper's base
    assert shown["Conversation"][1:] == ["55.50", "66.28"] and shown["Unsafety ↓ lower is better"][1:] == ["40.20", "13.85"]
    table = rows(section(tree, "benchmarks").find(".//table"))
    assert table["MME points"] == ["1,997.0 1 of 1 document", "1,997.0", "2,025.0"]
    assert len(table) == 50 + 8  # the rows, and the parts of two of them
    assert "arXiv 2502.10391" in text(tree)


@pytest.mark.parametrize(("published", "heads"), [("InternVL2-1B", 3), ("none", 1)])
def test_another_published_model_is_chosen_by_name(tmp_path, papers, published, heads):
    tree = page(tmp_path, papers, published=published)
    found = [text(head) for head in section(tree, "dimensions").findall(".//thead//th")]
    assert len(found) == heads and all(published in head for head in found[1:])
    assert ("arXiv" in text(tree)) == (heads > 1)


def test_corrected_metrics_are_told_from_those_of_published_figures(tmp_path, papers):
    found = results.read(papers, "nsfw_text")
    results.write(papers, dataclasses.replace(found, settings={"mode": "corrected"}))
    note = "The metrics of these are corrected, and those of the published figures are not: NSFW text ASR."
    assert note in text(page(tmp_path, papers))
    assert note not in text(page(tmp_path, papers, published="none"))
    results.write(papers, dataclasses.replace(found, settings={"mode": "paper"}))
    assert note not in text(page(tmp_path, papers))


def test_the_papers_two_key_figures_are_in_tiles(tmp_path, papers):
    aligned = tmp_path / "aligned"
    for task in MM_RLHF.tasks:
        found = results.read(papers, task)
        values = {name: FIGURES["LLaVA-OV-7B + MM-RLHF"][MM_RLHF_ROWS[name]] for name in found.figures}
        figures = {name: results.Figure(value) for name, value in values.items()}
        documents = tuple(dataclasses.replace(each, values=values) for each in found.documents)
        results.write(aligned, dataclasses.replace(found, figures=figures, documents=documents))
    tree = page(tmp_path, aligned, papers)
    assert "12 of 12 means are complete (hallucination and safety have two each)" in text(tree.find(".//p[@class='lead']"))
    found = [tile for tile in tree.iter("div") if tile.get("class") == "tile"]
    tiles = {tile.find("b").text: tile.find("strong").text for tile in found}
    assert [span.text for span in found[0].findall("span")] == [
        "No interval: 4 of its 4 rows have no interval.",  # one document each
        "Relative change of the mean of the four conversation rows.",
        "The paper reports +19.5 %.",
    ]
    assert "The paper reports +60 % without a formula" in text(found[1])
    assert tiles == {
        "Conversation": "+19.4 %",
        "Safety": "+59.7 %",
        "Documents": f"{len(MM_RLHF.tasks)} of {len(MM_RLHF.tasks)}",
    }


MM_RLHF_ROWS = {row.name: row.part_of or row.name for task in MM_RLHF.tasks.values() for row in task.rows}


def test_titles_with_commas_are_told_apart_and_the_cells_that_the_paper_prints_otherwise_are_named(tmp_path, papers):
    for name in ("adv_target", "crossmodel"):
        for path in (papers / "results").glob(f"{name}.*"):
            path.unlink()
    tree = page(tmp_path, papers)
    assert "Not run, and not on this page: Adv target; Cross-model." in text(tree.find(".//main"))
    notes = text(section(tree, "dimensions"))
    assert (
        "Chart and document of LLaVA-OV-7B: the teaser prints 77.0; the rows give 76.7. " in notes and "InternVL2" not in notes
    )
    assert "Safety of LLaVA-OV-7B + MM-RLHF: the teaser prints 84.8, table 3 prints 85.4; the rows give 86.0" in notes
    other = text(section(page(tmp_path, papers, published="InternVL2-1B"), "dimensions"))
    assert "Safety of InternVL2-1B: table 3 prints 31.9; the rows give 58.76" in other and "LLaVA-OV-7B" not in other
