"""`mmrlhf bench` counts useful work as the design does, and its two layouts take the same step."""

from __future__ import annotations

import json
import sys

import pytest

from mmrlhf_jax import cli, config, sections
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.rows import group_size
from mmrlhf_jax.data.unshared import exact_batch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.models import registry
from mmrlhf_jax.models.llava_onevision.shapes import SHAPES, shape_config
from mmrlhf_jax.planning import bench_cases
from mmrlhf_jax.planning.bench import group_layout, pair_layout
from mmrlhf_jax.planning.bench_cases import CASES, Case, shape_experiment
from mmrlhf_jax.planning.synthetic import synthetic_group
from mmrlhf_jax.tasks import plan_training_rows, task_of
from mmrlhf_jax.training.work import useful_flops
from tests import ranked
from tests.data import groups
from tests.families import FAMILIES, OTHERS, by_default

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


def test_the_flop_ratio_of_another_family_is_the_one_worked_out_by_hand():
    """InternVL3-8B, 4 responses and an image of 256 tokens, in TFLOP: 6 x 6.525e9 weights of the blocks for 1136 tokens are
    44.5 (for 6432 tokens: 251.8), the vocabulary 2.6 (7.8), attention 0.5 (2.1), the tower 0.72 for 1 tile (8.7 for 12), and
    the projector 0.04 (0.5)."""
    sizes, experiment = bench_cases.shape_sizes("internvl/8b"), shape_experiment("internvl/8b")
    made = synthetic_group(sizes, images=1, responses=4)
    layouts = group_layout(exact_batch([made[0]], sizes.geometry)), pair_layout([made], sizes.geometry)
    works = [layout.work(sizes.geometry.features) for layout in layouts]
    assert [work.tiles for work in works] == [1, 12]
    group, pair = (useful_flops(work, sizes, experiment) for work in works)
    assert group == pytest.approx(48.3e12, rel=0.02) and pair == pytest.approx(270.9e12, rel=0.02)


# The test of an experiment's first batch measures the default family, too.
@pytest.mark.parametrize("name", by_default(*OTHERS))
@pytest.mark.long
def test_a_shape_of_every_family_is_measured(name, tmp_path, monkeypatch, capsys):
    sizes = read_sizes(FAMILIES[name].checkpoint(tmp_path / "model"))
    monkeypatch.setattr(type(registry.family(name)), "bench_configs", lambda self: {"small": sizes})
    shape = "small" if name == registry.DEFAULT else f"{name}/small"
    assert not bench("--shape", shape, "--repeats", "1", "--json", monkeypatch=monkeypatch)
    found = json.loads(capsys.readouterr().out)
    tokens = len(synthetic_group(sizes, images=1, responses=4)[0].tree.visual)
    assert found["image_tokens"] == tokens >= sizes.geometry.features and found["responses"] == 4
    assert found["pair_loss"] == pytest.approx(found["group_loss"], rel=1e-5)
    assert found["pair_grad_norm"] == pytest.approx(found["group_grad_norm"], rel=1e-4)


def test_every_family_has_a_small_shape():
    assert {"small", "0.5b", "7b", "internvl/small", "internvl/1b"} <= set(registry.bench_configs())
    for family in registry.families():
        assert "small" in family.bench_configs()
        assert all(sizes.model_type == family.model_type for sizes in family.bench_configs().values())


def bench(*arguments: str, monkeypatch) -> int | str | None:
    """The exit status of `mmrlhf bench` on one device."""
    one_device = bench_cases.make_mesh
    monkeypatch.setattr(bench_cases, "make_mesh", lambda axes, *_: one_device({}, bench_cases.jax.devices()[:1]))
    monkeypatch.setattr(sys, "argv", ["mmrlhf", "bench", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_the_case_of_no_arguments_is_the_one_the_project_is_held_to():
    text, vision = SHAPES["small"]
    assert text.layers >= 4 and text.hidden_size >= 512 and vision.patches == 729
    group, alone = synthetic_group(shape_config("small"), images=CASES[0].images, responses=CASES[0].responses)
    assert len(group.pairs) == 6 and all(180 <= len(one.tree.targets) <= 220 for one in alone)
    assert shape_experiment("small").model.dtype == "float32"


@pytest.mark.parametrize("family", by_default(registry.DEFAULT))
@pytest.mark.long
def test_an_experiments_first_batch_is_compared_and_both_layouts_take_the_same_step(tmp_path, monkeypatch, capsys, family):
    """Rows of several groups, in two pieces; the JSON holds seconds, ratio, FLOPs and memory."""
    data = ranked.write(tmp_path / "data", [(1, 2, 3), (1, 1, 2), (1, 2), (2, 1, 3)], [[(30, 30)], [], [(30, 30)] * 2, []])
    experiment = config.Experiment(
        model=config.Model(path=str(FAMILIES[family].checkpoint(tmp_path / "model")), dtype="float32", remat="none"),
        data=config.Data(path=str(data)),
        objective=config.Preference(scaling=config.Scaling(k="median")),
        batch=config.Batch(rows=2, slots=1024, accumulation=2, logprob_chunk=64),
        run=config.Run(directory=str(tmp_path / "run")),
    )
    (tmp_path / "experiment.yaml").write_text(sections.resolved(experiment))
    assert not bench(str(tmp_path / "experiment.yaml"), "--repeats", "1", "--json", monkeypatch=monkeypatch)
    found = json.loads(capsys.readouterr().out)
    assert found["pair_loss"] == pytest.approx(found["group_loss"], rel=1e-5)
    assert found["pair_grad_norm"] == pytest.approx(found["group_grad_norm"], rel=1e-4)
    assert found["pairs"] > 4 and found["flop_ratio"] > 1 and found["pair_peak_bytes"] > 0
    assert found["ratio"] == pytest.approx(found["pair_seconds"] / found["group_seconds"])
    assert not (tmp_path / "run").exists()


def test_groups_that_were_made_smaller_are_compared_as_the_trainer_sees_them(tmp_path):
    """Both layouts hold the responses as an over-budget policy has cut them, and the media with fewer tiles."""
    examples, positions = open_examples(groups.write(tmp_path, 8), video_frames=3), 150
    data, batch = config.Data(path="a", over_budget=["smaller_media", "cut_longest", "drop"]), config.Batch(rows=1, slots=1024)
    encoder, task = groups.encoder(max_positions=positions), task_of(config.Preference())
    rows = plan_training_rows(examples, encoder, data, batch, task, seed=0)
    assert rows.index.cut and rows.index.limits.any()
    sizes = dict(zip(rows.index.groups.tolist(), rows.index.sizes.tolist(), strict=True))
    for t in range(rows.count(1)):
        for number, limit in rows.limited_groups(t):
            group, alone = bench_cases._encoded(rows, number, limit)
            assert group_size(group).tolist() == sizes[number]
            assert sum(len(one.tree.targets) for one in alone) == len(group.tree.targets)
            assert max(len(one.tree.tokens) for one in alone) <= positions


@pytest.mark.parametrize("shape", ["70b", "internvl/7b", "internvl/", "/small", "paligemma/small"])
def test_an_unknown_shape_is_named(shape, monkeypatch, capsys):
    assert bench("--shape", shape, monkeypatch=monkeypatch) == 2
    assert f"--shape '{shape}': choose small, 0.5b, 7b, internvl/small, internvl/1b" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"scaling": {"mode": "beta_dpo"}}, "scaling.mode beta_dpo"),
        ({"scaling": {"mode": "batch_implicit"}}, "scaling.mode batch_implicit"),
        ({"losses": {"aot": 1.0}}, "loss aot"),
    ],
)
def test_an_objective_that_looks_at_the_batch_is_refused_before_anything_is_loaded(settings, named):
    """The pair layout is taken in pieces, of which such a loss would be another one than that of the group layout."""
    made = config.Experiment(
        model=config.Model(path="nowhere"),
        data=config.Data(path="nowhere"),
        objective=config.Preference(**settings),
        run=config.Run(directory="nowhere"),
    )
    with pytest.raises(UserError, match=f"in pieces, which {named} excludes; set another objective.scaling.mode or other"):
        bench_cases.compare_experiment(made, config.Launch(), repeats=1)
