"""`mmrlhf bench` counts useful work as the design does, and its two layouts take the same step."""

from __future__ import annotations

import json
import sys

import pytest

from mmrlhf_jax import cli, config, sections
from mmrlhf_jax.data.unshared import exact_batch
from mmrlhf_jax.models.llava_onevision.shapes import SHAPES, shape_config
from mmrlhf_jax.planning import bench_cases
from mmrlhf_jax.planning.bench import group_layout, pair_layout
from mmrlhf_jax.planning.bench_cases import CASES, Case, shape_experiment
from mmrlhf_jax.planning.synthetic import synthetic_group
from mmrlhf_jax.training.work import useful_flops
from tests import ranked, tiny

# Useful FLOPs of the pair-expanded step over the group's, answers of 200 tokens, all pairs, LLaVA-OneVision 7B: worked out by
# hand from the sizes of the model (6.525e9 weights in the blocks, 0.642 TFLOP a tile).
RATIOS = {
    Case(1, 3): 4.23,
    Case(1, 4): 7.36,
    Case(1, 5): 10.87,
    Case(3, 3): 5.10,
    Case(3, 4): 9.50,
    Case(3, 5): 14.80,
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.images}-{case.responses}")
def test_the_flop_ratio_is_the_one_worked_out_by_hand(case):
    """To 2 %: lengths vary around 200."""
    sizes, experiment = shape_config("7b"), shape_experiment("7b")
    made = synthetic_group(sizes, images=case.images, responses=case.responses)
    layouts = group_layout(exact_batch([made[0]], sizes.geometry)), pair_layout([made], sizes.geometry)
    group, pair = (useful_flops(layout.work(sizes.vision.patches), sizes, experiment) for layout in layouts)
    assert pair / group == pytest.approx(RATIOS[case], rel=0.02)
    if case == CASES[0]:
        assert group == pytest.approx(68e12, rel=0.02) and pair == pytest.approx(498e12, rel=0.02)


def test_the_case_of_no_arguments_is_the_one_the_project_is_held_to():
    text, vision = SHAPES["small"]
    assert text.layers >= 4 and text.hidden_size >= 512 and vision.patches == 729
    group, alone = synthetic_group(shape_config("small"), images=CASES[0].images, responses=CASES[0].responses)
    assert len(group.pairs) == 6 and all(180 <= len(one.tree.targets) <= 220 for one in alone)
    assert shape_experiment("small").model.dtype == "float32"


def test_an_experiments_first_batch_is_compared_and_both_layouts_take_the_same_step(tmp_path, monkeypatch, capsys):
    """Rows of several groups, in two pieces; the JSON holds seconds, ratio, FLOPs and memory."""
    data = ranked.write(tmp_path / "data", [(1, 2, 3), (1, 1, 2), (1, 2), (2, 1, 3)], [[(30, 30)], [], [(30, 30)] * 2, []])
    experiment = config.Experiment(
        model=config.Model(path=str(tiny.checkpoint(tmp_path / "model")), dtype="float32", remat="none"),
        data=config.Data(path=str(data)),
        objective=config.Preference(),
        batch=config.Batch(rows=2, slots=1024, accumulation=2, logprob_chunk=64),
        run=config.Run(directory=str(tmp_path / "run")),
    )
    (tmp_path / "experiment.yaml").write_text(sections.resolved(experiment))
    one_device = bench_cases.make_mesh
    monkeypatch.setattr(bench_cases, "make_mesh", lambda axes: one_device({}, bench_cases.jax.devices()[:1]))
    monkeypatch.setattr(sys, "argv", ["mmrlhf", "bench", str(tmp_path / "experiment.yaml"), "--repeats", "1", "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["pair_loss"] == pytest.approx(found["group_loss"], rel=1e-5)
    assert found["pair_grad_norm"] == pytest.approx(found["group_grad_norm"], rel=1e-4)
    assert found["pairs"] > 4 and found["flop_ratio"] > 1 and found["pair_peak_bytes"] > 0
    assert found["ratio"] == pytest.approx(found["pair_seconds"] / found["group_seconds"])
    assert not (tmp_path / "run").exists()


def test_an_unknown_shape_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mmrlhf", "bench", "--shape", "70b"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and "choose small, 0.5b, 7b" in capsys.readouterr().err
