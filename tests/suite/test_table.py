"""The table of text has a line per figure, and says what is missing and why."""

from __future__ import annotations

import dataclasses

from mmrlhf_jax.suite.figures import Run, figures, read_run
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.reasons import BEYOND_LIMIT
from mmrlhf_jax.suite.results import Figure
from mmrlhf_jax.suite.table import as_lines
from tests.suite.support import whole_runs
from tests.suite.support.runs import SUITE
from tests.suite.test_figures import BASE, MODEL, run


def lines(*of: Run) -> list[str]:
    return list(as_lines(figures(SUITE, *of)))


def test_the_table_of_one_run():
    table = lines(run(**MODEL))
    assert table[0].split() == ["aligned", "scored"]
    assert table[1].startswith("Seeing") and " 74.2 [" in table[1] and table[1].endswith("2 of 2 rows")
    assert table[2].startswith("Lying ↓")
    assert any(line.startswith("  Shapes") and line.endswith("3 of 3") for line in table)
    assert len({line.index(" of ") for line in table[1:]}) == 1


def test_what_was_not_run_stands_in_one_line_and_nowhere_else():
    table = lines(run(lies=MODEL["lies"]))
    assert [line.split()[0] for line in table] == ["aligned", "Lying", "Lies", "not"]
    assert table[-1] == "not run: Colours; Shapes; Tales"


def test_a_small_run_of_many_rows_has_a_small_table(tmp_path):
    whole_runs.write(tmp_path / "run", "LLaVA-OV-7B", without=tuple(MM_RLHF.tasks.keys() - {"adv_target", "nsfw_text"}))
    table = list(as_lines(figures(MM_RLHF, read_run(tmp_path / "run", MM_RLHF), read_run(tmp_path / "run", MM_RLHF))))
    assert len(table) == 1 + 3 + 1 + 2  # head; axis and rows; not run; of either run what is not scored
    assert [line.split("  ")[0] for line in table[1:2]] == ["Unsafety ↓"] and table[4] == "not run: 48 of 50 rows"
    assert not any(" - " in line for line in table[2:4]) and not any("relative change" in line for line in table)


def test_a_long_name_of_a_run_is_shortened():
    head, first, *_ = lines(run("models/" + "x" * 40 + "-aligned-1000", **MODEL), run("base", **BASE))
    assert head.index("base") == first.index(" 55.0") + 1 and "...xxxxxxxx-aligned-1000 " in head
    long = [f"{kind}-of-a-very-long-name-without-a-folder" for kind in ("aligned", "base")]
    head, *_ = lines(run(long[0], **MODEL), run(long[1], **BASE))
    assert head.split()[:2] == ["aligned-of-a-very-lon...", "base-of-a-very-long-n..."]


def test_models_of_one_name_are_told_apart_by_their_directories():
    model, base = run(colours=MODEL["colours"], shapes=[None]), run("aligned", colours=BASE["colours"], shapes=[4.0])
    named = [dataclasses.replace(each, directory=place) for each, place in ((model, "out/o4"), (base, "out/o4/against"))]
    table = lines(*named)
    assert table[0].split() == ["aligned", "(o4)", "aligned", "(against)", "difference", "scored"]
    assert "aligned (o4): no figure of Shapes: no document is scored" in table
    assert not any("None" in line or "aligned: " in line for line in table)


def test_paths_are_named_by_the_ends_in_which_they_differ():
    long = "models/of/a/very/long/path/to"
    head, *_ = lines(run(f"{long}/aligned/hf", **MODEL), run(f"{long}/base/hf", **BASE))
    assert head.split() == ["aligned/hf", "base/hf", "difference", "scored"]


def test_a_reason_that_is_the_whole_row_s_is_said_once():
    reason = "its server is away"
    base = run("base", **BASE)
    colours = base.results["colours"]
    lost = dataclasses.replace(
        colours,
        figures={"colours": Figure(None, reason)},
        documents=tuple(dataclasses.replace(each, values={}, missing=reason) for each in colours.documents),
    )
    table = lines(Run("failed", {"colours": lost, "shapes": base.results["shapes"]}))
    assert [line for line in table if reason in line] == [f"failed: no figure of Colours: {reason}"]
    other = dataclasses.replace(lost, left_out={"another reason": 1})
    table = lines(Run("failed", {"colours": other}))
    assert f"failed: documents not scored of colours: 1: another reason, 4: {reason}" in table


def test_the_table_of_two_runs_has_differences_with_signs():
    table = lines(run(**MODEL), run("base", **BASE))
    assert table[0].split() == ["aligned", "base", "difference", "scored"]
    (lies,) = [line for line in table if line.startswith("  Lies ↓")]
    assert "15.0 [" in lies and "30.0 [" in lies and "-15.0 [-30.0, +0.0]" in lies
    assert any(line.startswith("Twice: +1.5 %") for line in table)


def test_the_table_says_what_is_missing_and_why():
    base = run("base", **BASE)
    other = dataclasses.replace(base.results["colours"], harness="lmms-eval 0.8.0")
    model = run(colours=MODEL["colours"], shapes=[4.0, None, None], lies=[None, None])
    table = lines(model, Run("base", base.results | {"colours": other}))
    assert "base: no figure of" not in "".join(table)
    assert "aligned: no figure of Lies: no document is scored" in table
    assert "aligned: documents not scored of shapes; lies: 2: the judge failed" in table
    assert "not compared: Colours: one is by lmms-eval 0.7.3, the other one by lmms-eval 0.8.0" in table
    assert "aligned: no mean of" not in "".join(table)
    assert "aligned: no figure of Tales: no results" in table


def test_the_table_says_on_how_many_documents_a_difference_is():
    table = lines(run(**MODEL | {"shapes": [4.0, None, 5.0]}), run("base", **BASE))
    said = [line for line in table if line.startswith("difference of")]
    assert said == [
        "difference of Shapes: on the 2 documents scored for both models; 1 document is scored for one of them alone"
    ]


def test_the_table_says_what_only_one_of_both_has():
    table = lines(run(shapes=MODEL["shapes"]), run("base", colours=BASE["colours"]))
    assert "aligned: no figure of Colours: no results" in table
    assert "base: no figure of Shapes: no results" in table
    assert "not run: Lies; Tales" in table
    assert any(line.startswith("  Shapes") and "3.67 [" in line and line.endswith("3 of 3") for line in table)


def test_the_table_says_why_there_is_no_mean():
    model = run(**MODEL)
    other = dataclasses.replace(model.results["colours"], harness="lmms-eval 0.8.0")
    table = lines(Run("mixed", model.results | {"colours": other}))
    assert table[-1] == "mixed: no mean of Seeing: its rows are by lmms-eval 0.7.3 and lmms-eval 0.8.0"


def test_documents_that_nobody_could_count_are_no_number():
    colours = run(**MODEL).results["colours"]
    gone = dataclasses.replace(colours, figures={"colours": Figure(None, "the hub is away")}, documents=())
    (line,) = [line for line in lines(Run("gone", {"colours": gone})) if line.startswith("  Colours")]
    assert line.endswith("0 of ?")


def test_a_limit_is_said_once():
    model = run(**MODEL)
    limited = {name: dataclasses.replace(each, left_out={BEYOND_LIMIT: 90 + len(name)}) for name, each in model.results.items()}
    table = lines(Run("first", limited))
    assert [line for line in table if "limit" in line] == ["first: only the first documents of tasks were taken (--limit)"]
