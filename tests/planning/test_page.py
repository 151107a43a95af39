"""The table of docs/plans.md: every experiment on every pod, of which a small part is compiled again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmrlhf_jax import config
from mmrlhf_jax.planning.table import read_table
from tests.cuda_plugin import needs_cuda_plugin
from tests.planning.planned import ROOT, plan

PAGE = ROOT / "docs" / "plans.md"


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.yaml"))


def test_every_experiment_has_a_cell_for_every_pod_by_its_own_compiler():
    table = read_table(str(PAGE))
    shared = re.findall(r"^`(\w[\w.]*)` stands for (.*) as well\.$", PAGE.read_text(), re.MULTILINE)
    named = {*table.columns, *(name for _, others in shared for name in others.split(", "))}
    assert named == {path.stem for path in files("configs")}
    assert set(table.rows) == {path.stem for path in files("launch") if config.load_launch(path).accelerator is not None}
    cells = {(launch, name): table.cell(launch, [name]) for launch in table.rows for name in table.columns}
    assert not [where for where, cell in cells.items() if cell is None or "~" in cell]


@needs_cuda_plugin
@pytest.mark.long
@pytest.mark.parametrize(("experiment", "launch"), [("mmdpo_internvl2_1b", "l4-1"), ("mmdpo_lora_llava_ov_7b", "h100-1")])
def test_a_cell_is_what_the_plan_says(experiment, launch, tmp_path):
    """To 2 %, because compilers of other versions differ."""
    _, memory, cells = read_table(str(PAGE)).rows[launch]
    figures = re.fullmatch(r"([\d.]+), ([\d.,]+)/s \((\w+)\), ([\d.,]+) h", cells[experiment])
    peak, rate, hours = (float(figures[i].replace(",", "")) for i in (1, 2, 4))
    made = plan(
        ROOT / "configs" / f"{experiment}.yaml", "--launch", ROOT / "launch" / f"{launch}.yaml", "--quick", cache=tmp_path
    )
    assert made["fits"]
    assert [made["hbm_peak_bytes"] / 2**30, made["hbm_capacity_bytes"] / 2**30] == pytest.approx(
        [peak, float(memory)], rel=0.02
    )
    assert [made["pairs_per_second_bound"], made["chip_hours_per_epoch_bound"]] == pytest.approx([rate, hours], rel=0.02)
    assert made["roofline"]["bound"] == figures[3]
