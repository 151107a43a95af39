"""The page of runs shows the figures that are computed, why others are missing, and the cases with their pictures."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from base64 import b64decode
from pathlib import Path

import pytest
from PIL import Image

from mmrlhf_jax import cli, config, sections
from mmrlhf_jax.commands.report import report
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.figures import figures, read_run
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.page import short_names
from mmrlhf_jax.suite.published import FIGURES
from mmrlhf_jax.suite.results import Document, Results
from mmrlhf_jax.suite.shown_cases import MOST_PICTURES, SIDE_OF_SEVERAL
from mmrlhf_jax.suite.stored import write_suite
from tests.pages.html import parsed, rows, text
from tests.suite import runs
from tests.suite.runs import COLOURS, SUITE

MODEL = {"colours": [100, 0, 100, 100], "shapes": [4, 2, 5, 5], "lies": [10, 20, 30, 40]}
MODEL |= {"first": [60, 80], "second": [20, 40, None]}
BASE = {"colours": [100, 0, 0, 100], "shapes": [3, 2, 4, 5], "lies": [40, 20, 30, 40]}
BASE |= {"first": [50, 50], "second": [20, 10, 30]}


EXPERIMENT = Path(config.__file__).parents[2] / "configs" / "quickstart" / "mmdpo.yaml"


def floats(values) -> list[float | None]:
    return [None if value is None else float(value) for value in values]


def write(directory, values, about=None, **changes):
    """A run's directory with results of these tasks."""
    for task, of_documents in values.items():
        results.write(directory, runs.results(SUITE.tasks[task], floats(of_documents), **changes))
    if about is not None:
        (directory / "run.json").write_text(json.dumps({"version": 1, "settings": {"dtype": "float32"}, "judge": None} | about))
    write_suite(directory, SUITE)
    return directory


@pytest.fixture
def model(tmp_path):
    return write(tmp_path / "aligned", MODEL, {"model": "models/aligned", "judge": {"name": "gpt", "url": None}})


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "base", BASE, {"model": "models/base"})


def page(tmp_path, *directories, published=None):
    report([str(each) for each in directories], str(tmp_path / "report.html"), published)
    return parsed((tmp_path / "report.html").read_text())


def section(tree, name: str):
    return tree.find(f".//section[@id='{name}']")


def first_numbers(cells) -> list[str]:
    return [cell.split()[0] for cell in cells]


def test_the_figures_are_those_that_are_computed(tmp_path, model, base):
    tree, found = page(tmp_path, model, base), figures(SUITE, read_run(model, SUITE), read_run(base, SUITE))
    shown = rows(section(tree, "dimensions").find(".//table"))
    assert list(shown) == ["Seeing", "Lying ↓ lower is better", "Telling"]
    for axis, cells in zip(found.axes.values(), shown.values(), strict=True):
        numbers = [float(cell.replace("−", "-")) for cell in first_numbers(cells)]
        assert numbers == pytest.approx([axis.model.value, axis.base.value, axis.delta.value], abs=0.006)
    table = rows(section(tree, "benchmarks").find(".//table"))
    assert first_numbers(table["Colours %"]) == ["75.00", "50.00", "+25.00"]
    assert table["Shapes of 5"][0].endswith("4 of 4 documents")
    assert "2 of 2 rows" in shown["Seeing"][0]


def test_a_row_of_several_parts_is_followed_by_these(tmp_path, model, base):
    table = rows(section(page(tmp_path, model, base), "benchmarks").find(".//table"))
    assert list(table)[-3:] == ["Tales %; mean of 2 parts", "First %; part", "Second %; part"]
    assert first_numbers(table["Tales %; mean of 2 parts"]) == ["50.00", "35.00", "+17.50"]  # on the documents of both
    assert table["Second %; part"][0].split()[0] == "30.00" and table["Second %; part"][0].endswith("2 of 3 documents")


def test_what_is_missing_is_counted_and_said(tmp_path, model, base):
    tree = page(tmp_path, model, base)
    assert rows(section(tree, "coverage").find(".//table")) == {"the judge failed": ["1", "0"]}
    opening = text(tree.find(".//main/div/ul"))
    assert "1 of 4 rows are not of all documents" in opening and "1 values are of one of the two" in opening


def test_a_row_without_figure_leaves_its_dimension_without_mean(tmp_path, base):
    model = write(tmp_path / "aligned", MODEL | {"shapes": [None]})
    tree = page(tmp_path, model, base)
    assert rows(section(tree, "dimensions").find(".//table"))["Seeing"][0] == "– 1 of 2 rows: Shapes missing"
    assert rows(section(tree, "benchmarks").find(".//table"))["Shapes of 5"][0].startswith("– no document is scored")
    assert "2 of 3 means are complete" in text(tree.find(".//p[@class='lead']"))


def test_what_was_not_run_is_named_and_not_in_the_charts(tmp_path):
    model = write(tmp_path / "aligned", {"first": [60], "second": [20]})
    tree = page(tmp_path, model)
    assert "Not run, and not on this page: Colours; Shapes; Lies." in text(tree.find(".//main"))
    assert list(rows(section(tree, "dimensions").find(".//table"))) == ["Telling"]
    assert next(iter(rows(section(tree, "benchmarks").find(".//table")))).startswith("Tales")
    assert section(tree, "where-the-models-differ-most") is None and "minus base" not in text(tree)


def test_of_a_benchmark_that_was_run_in_part_the_other_rows_are_named(tmp_path, papers):
    for task in ("pope_pop", "pope_random", "mme", "videochatgpt_gen"):
        for path in (papers / "results").glob(f"{task}.*"):
            path.unlink()
    tree = page(tmp_path, papers)
    assert "Not run, and not on this page: MME; POPE popular; POPE random." in text(tree.find(".//main"))
    table = rows(section(tree, "benchmarks").find(".//table"))
    assert next(cells for head, cells in table.items() if head.startswith("VideoChatGPT of 5"))[0].startswith("–")
    assert "POPE adversarial %" in table and "POPE popular %" not in table


def test_results_that_were_made_otherwise_are_not_compared(tmp_path, model, base):
    results.write(base, runs.results(COLOURS, floats(BASE["colours"]), harness="lmms-eval 0.6.0"))
    tree = page(tmp_path, model, base)
    reason = "one is by lmms-eval 0.7.3, the other one by lmms-eval 0.6.0"
    assert rows(section(tree, "benchmarks").find(".//table"))["Colours %"][2] == f"– {reason}"
    assert f"Not compared with the base: Colours ({reason})." in text(tree.find(".//main"))
    assert not [case for case in tree.findall(".//article") if "Colours" in text(case.find(".//h3"))]
    made = section(tree, "how-the-figures-were-made")
    assert [text(head) for head in made.findall("h3")] == [
        "aligned",
        "base",
        "Settings of the tasks of aligned",
        "Settings of the tasks of base",
    ]


def test_how_figures_were_made_is_on_the_page(tmp_path, model, base):
    made = section(page(tmp_path, model, base), "how-the-figures-were-made")
    of_model, _, settings = map(rows, made.findall(".//table"))
    expected = {"results": [str(model)], "model": ["models/aligned"], "settings: dtype": ["float32"]}
    assert of_model == expected | {"judge: name": ["gpt"], "judge: url": ["–"]}
    assert settings["Colours"] == ["lmms-eval 0.7.3; max new tokens 16"] and "First" in settings


def test_further_runs_are_further_columns(tmp_path, model, base):
    third = write(tmp_path / "third", {"colours": [0, 0, 0, 100]})
    tree = page(tmp_path, model, base, third)
    assert [text(head) for head in section(tree, "benchmarks").findall(".//thead//th")] == [
        "aligned the model",
        "base the base",
        "difference model minus base",
        "third another run",
    ]
    table = rows(section(tree, "benchmarks").find(".//table"))
    assert table["Colours %"][3].split()[0] == "25.00" and table["Shapes of 5"][3] == "– no results"
    assert rows(section(tree, "dimensions").find(".//table"))["Seeing"][3] == "– 1 of 2 rows: Shapes missing"


# Cases


def picture(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "JPEG")
    return file.getvalue()


def with_media(directory, *media: str, task=COLOURS):
    found = results.read(directory, task.name)
    documents = tuple(dataclasses.replace(each, media=media) for each in found.documents)
    results.write(directory, dataclasses.replace(found, documents=documents))


def test_cases_show_both_answers_and_the_pictures_of_either_run(tmp_path, model, base):
    for directory, names in ((model, ("a.jpg",)), (base, ("b.jpg",))):
        (directory / "media").mkdir()
        for name in names:
            (directory / "media" / name).write_bytes(picture((900, 300)))
        with_media(directory, "a.jpg", "b.jpg")
    tree = page(tmp_path, model, base)
    (case,) = [each for each in tree.findall(".//article") if text(each.find(".//h3")).startswith("Colours")]
    assert text(case.find(".//h3")) == "Colours 2" and "Colours +100.00" in text(case) and "▲ better" in text(case)
    images = case.findall(".//img")
    assert [image.get("alt") for image in images] == [f"picture {n} of 2 of document 2 of Colours" for n in (1, 2)]
    for image in images:
        shown = Image.open(io.BytesIO(b64decode(image.get("src").partition(",")[2])))
        assert max(shown.size) == SIDE_OF_SEVERAL


def test_pictures_that_cannot_be_read_are_counted_and_no_path_leads_out(tmp_path, model, base, capsys):
    (tmp_path / "secret.jpg").write_bytes(picture((10, 10)))
    (model / "media").mkdir()
    (model / "media" / "broken.jpg").write_bytes(b"no picture")
    names = ("../../secret.jpg", str(tmp_path / "secret.jpg"), "broken.jpg", "none.jpg", "fifth.jpg")
    for directory in (model, base):
        with_media(directory, *names)
    tree = page(tmp_path, model, base)
    assert not tree.findall(".//img")
    assert f"{MOST_PICTURES} pictures of 1 of these cases cannot be read" in text(tree)
    assert "cannot be read" in capsys.readouterr().err and "and 1 more" in text(tree)


def test_an_answer_that_is_hostile_stays_text(tmp_path, model, base):
    hostile = "</p><script>alert(1)</script>\x00\u202e مرحبا"
    found = results.read(model, "colours")
    documents = tuple(dataclasses.replace(each, answer=hostile) for each in found.documents)
    results.write(model, dataclasses.replace(found, documents=documents))
    tree = page(tmp_path, model, base)
    assert "</p><script>alert(1)</script>\N{REPLACEMENT CHARACTER}\u202e مرحبا" in text(tree)


# MM-RLHF's own benchmarks


@pytest.fixture
def papers(tmp_path):
    """A run whose results are the paper's figures of a model, one document each."""
    directory = tmp_path / "paper"
    for task in MM_RLHF.tasks.values():
        values = {row.name: FIGURES["LLaVA-OV-7B"][row.part_of or row.name] for row in task.rows}
        document = Document("0", "0", "?", (), "A", None, values)
        found = {name: results.Figure(value) for name, value in values.items()}
        results.write(directory, Results(task.name, "lmms-eval 0.7.3", {}, found, (document,)))
    return directory


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
    tiles = {tile.find("b").text: tile.find("strong").text for tile in tree.iter("div") if tile.get("class") == "tile"}
    assert tiles == {"Conversation": "+19.4 %", "Safety": "+59.7 %", "Documents": str(len(MM_RLHF.tasks))}


MM_RLHF_ROWS = {row.name: row.part_of or row.name for task in MM_RLHF.tasks.values() for row in task.rows}


# Training


def test_a_run_of_training_shows_its_curves_and_its_configuration(tmp_path, model, base):
    run = tmp_path / "mmdpo"
    run.mkdir()
    experiment = config.load_experiment(EXPERIMENT)
    (run / "config.yaml").write_text(sections.resolved(experiment))
    lines = [{"step": step, "loss": 1.0 / step, "rewards/accuracies": 0.5} for step in range(1, 9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    part = section(page(tmp_path, run, model, base), "training")
    assert text(part.find("h3")) == "mmdpo" and [text(head) for head in part.findall("h4")][:2] == ["Loss", "Preferences"]
    assert len(part.findall(".//svg[@role='img']")) == 2 and "learning_rate" in part.find(".//pre").text
    (run / "metrics.jsonl").unlink()
    assert "It has logged no metrics." in text(section(page(tmp_path, model, base, run), "training"))


# The command


def test_wrong_directories_are_refused_in_one_line(tmp_path, model, papers):
    def refused(*directories, published=None) -> str:
        with pytest.raises(UserError) as error:
            report([str(each) for each in directories], str(tmp_path / "out.html"), published)
        assert not (tmp_path / "out.html").exists() and "\n" not in str(error.value)
        return str(error.value)

    assert "none: no such directory" in refused(model, tmp_path / "none")
    assert "neither an evaluation" in refused(tmp_path)
    assert "is of other benchmarks than" in refused(model, papers)
    assert "--published GPT: choose InternVL2-1B, LLaVA-OV-0.5B, LLaVA-OV-7B or none" in refused(papers, published="GPT")
    assert "has no figures of the small suite" in refused(model, published="InternVL2-1B")
    for name, file, message in (("begun", "run.json", "without results yet"), ("rewards", "figures.json", "a reward model")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        assert message in refused(tmp_path / name)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    assert "a training run, whose page is the report.html in it" in refused(run)
    (model / "suite.json").unlink()
    assert "none of its results are of MM-RLHF's benchmarks" in refused(model)


def test_the_verb_takes_several_directories(tmp_path, model, base, monkeypatch):
    out = tmp_path / "new" / "report.html"
    monkeypatch.setattr(sys, "argv", ["mmrlhf", "report", str(model), f"{base}/", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and text(parsed(out.read_text()).find(".//h1")) == "the small suite: aligned"


def test_names_are_as_short_as_they_can_be():
    assert short_names(["/models/a", "/models/b/"], ["x", "x"]) == ["a", "b"]
    assert short_names(["/x/a/hf", "/x/b/hf"], ["x", "y"]) == ["a/hf", "b/hf"]
    assert short_names(["/x/a", "/x/a"], ["out/x", "out/y"]) == ["a (x)", "a (y)"]
    assert short_names(["/x/a", "/x/a"], ["out", "out"]) == ["a (1)", "a (2)"]
    assert short_names(["owner/name"], ["out"]) == ["name"]


def test_the_command_says_what_it_wrote_and_who_is_compared(tmp_path, model, base, capsys):
    other = write(tmp_path / "other", BASE, {"model": "models/other"})
    for directories, says in (((model,), "aligned."), ((model, base), "aligned against base.")):
        page(tmp_path, *directories)
        assert capsys.readouterr().err.splitlines()[-1] == f"Wrote {tmp_path / 'report.html'}: {says}"
    page(tmp_path, model, base, other)
    assert capsys.readouterr().err.endswith(": aligned against base, beside other.\n")


def test_titles_with_commas_are_told_apart_and_the_cells_that_the_paper_prints_otherwise_are_named(tmp_path, papers):
    for name in ("adv_target", "crossmodel"):
        for path in (papers / "results").glob(f"{name}.*"):
            path.unlink()
    tree = page(tmp_path, papers)
    assert "Not run, and not on this page: Adv target; Cross-model." in text(tree.find(".//main"))
    notes = text(section(tree, "dimensions"))
    assert "Chart and document of LLaVA-OV-7B: the rows give 76.7. " in notes and "InternVL2" not in notes
    other = text(section(page(tmp_path, papers, published="InternVL2-1B"), "dimensions"))
    assert "Safety of InternVL2-1B: the rows give 58.76" in other and "LLaVA-OV-7B" not in other


def test_parts_of_a_row_have_differences_or_the_reason_why_not(tmp_path, model, base):
    table = rows(section(page(tmp_path, model, base), "benchmarks").find(".//table"))
    assert first_numbers(table["First %; part"]) == ["70.00", "50.00", "+20.00"]
    assert first_numbers(table["Second %; part"])[2] == "+15.00"  # of the two documents that both have
    results.write(base, runs.results(SUITE.tasks["first"], floats(BASE["first"]), settings={"max_new_tokens": 8}))
    table = rows(section(page(tmp_path, model, base), "benchmarks").find(".//table"))
    assert table["First %; part"][2] == "– made with other settings: max_new_tokens 16 and 8"


def test_of_many_intervals_it_is_said_how_many_would_err(tmp_path, model, base):
    assert "intervals of 95 %, " not in text(page(tmp_path, model, base).find(".//main/div"))
