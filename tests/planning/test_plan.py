"""`mmrlhf plan`: counts agree with the analytic ones, predictions with measurements, and what does not fit says what would."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import CHIPS
from mmrlhf_jax.commands import plan as commands
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.models.registry import published_config
from mmrlhf_jax.planning import lowering, program, show, table
from mmrlhf_jax.planning import plan as planning
from mmrlhf_jax.planning.advice import advice
from mmrlhf_jax.planning.program import needed_bytes
from mmrlhf_jax.planning.roofline import Collective
from mmrlhf_jax.planning.topology import chip_of
from mmrlhf_jax.planning.workload import assumed_workload, find_workload, pack_workload
from mmrlhf_jax.sharding import mesh as mesh_module
from mmrlhf_jax.sharding.mesh import make_mesh
from mmrlhf_jax.tasks import open_training_examples, plan_training_rows, task_of
from mmrlhf_jax.training.layout import with_accumulation
from tests import ranked, tiny
from tests.families import FAMILIES, OTHERS

ROOT = Path(__file__).parents[2]


def experiment(path: Path, objective: config.Objective, *, remat: str = "full", slots: int = 512) -> config.Experiment:
    head = "tanh" if isinstance(objective, config.RewardModel) else None
    return config.Experiment(
        model=config.Model(path=str(path), dtype="float32", remat=remat, reward_head=head),
        data=config.Data(path="not there", video_frames=1),
        objective=objective,
        batch=config.Batch(rows=2, slots=slots, logprob_chunk=64),
        run=config.Run(directory="not made"),
    )


WIDE = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 3, "vocab_size": 1024, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Wide enough that matrix products are what counts."""
    return tiny.checkpoint(tmp_path_factory.mktemp("model"), tiny.config(text=WIDE))


@pytest.fixture(scope="module", autouse=True)
def one_device():
    devices = lowering.planned_devices
    lowering.planned_devices = lambda launch: jax.devices()[:1]
    yield
    lowering.planned_devices = devices


@pytest.fixture(scope="module", autouse=True)
def nothing_kept(tmp_path_factory):
    """Programs of earlier runs of the tests, or of whoever runs them, do not count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(model):
    return planning.make_plan(experiment(model, config.Preference()), config.Launch(), names=("tiny", "here"))


@pytest.mark.long
def test_flops_of_the_compiled_step_equal_the_analytic_count(made):
    assert made.flops == pytest.approx(made.executed.total, rel=0.05)


@pytest.mark.long
def test_the_same_program_is_compiled_once(made, model, monkeypatch):
    def compile_again(*_):
        raise AssertionError("compiled a second time")

    monkeypatch.setattr(program, "_compile", compile_again)
    again = planning.make_plan(experiment(model, config.Preference()), config.Launch(), names=("tiny", "here"))
    assert planning.as_json(again) == planning.as_json(made)
    with pytest.raises(AssertionError, match="a second time"):
        planning.make_plan(experiment(model, config.Preference(), slots=1024), config.Launch(), generation=False)


def test_memory_read_from_the_buffer_assignment_is_the_executables(tmp_path):
    """Which a compilation that is stopped before machine code goes by."""
    step = jax.jit(lambda w, x: (w - jnp.tanh(x @ w).T @ x @ w, x.sum()), donate_argnums=0)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((512, 512), (64, 512))]
    dump = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True}
    stats = step.lower(*arrays).compile(compiler_options=dump).memory_analysis()
    (text,) = tmp_path.glob("*buffer-assignment.txt")
    found = program.assigned_memory(text.read_text())
    assert found.arguments == stats.argument_size_in_bytes
    assert found.aliased == stats.alias_size_in_bytes == 512 * 512 * 4
    assert found.temporaries == pytest.approx(stats.temp_size_in_bytes, rel=0.01)
    assert found.outputs == stats.output_size_in_bytes


@pytest.mark.long
def test_flops_without_recomputation_and_with_a_reward_head(model):
    settings = experiment(model, config.RewardModel(), remat="none", slots=1024)
    found = planning.make_plan(settings, config.Launch(), generation=False)
    assert found.flops == pytest.approx(found.executed.total, rel=0.05)


@pytest.mark.parametrize(
    "objective", [config.Preference(), pytest.param(config.RewardModel(), marks=pytest.mark.slow)], ids=lambda each: each.kind
)
@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.long
def test_so_they_do_for_every_other_family(family, objective, tmp_path):
    """The reward model's plan has generation in it, too."""
    path = FAMILIES[family].checkpoint(tmp_path / "model", FAMILIES[family].config(text=WIDE))
    judges = isinstance(objective, config.RewardModel)
    settings = experiment(path, objective, slots=1024)
    found = planning.make_plan(settings, config.Launch(), names=(family, "here"), generation=judges)
    assert found.flops == pytest.approx(found.executed.total, rel=0.05)
    assert found.fits and (found.generation is not None) == judges
    assert f"{family} on here" in show.as_text(found)


def test_the_json_form_has_what_programs_read(made):
    written = json.loads(json.dumps(planning.as_json(made)))
    assert written["fits"] is True
    assert 0 < written["hbm_peak_bytes"] < written["hbm_capacity_bytes"]
    assert written["collectives"] == []
    assert {"compute_seconds", "hbm_seconds", "interconnect_seconds", "bound"} <= set(written["roofline"])
    assert written["flops"] > 0 and written["compile_seconds"] > 0
    assert written["generation"]["hbm_peak_bytes"] > 0
    assert 0 < written["flop_utilisation_bound"] <= 1


def test_the_page_says_where_its_numbers_are_from(made):
    page = show.as_text(made)
    assert "MM-RLHF-like sizes (assumed: not there: no such file)" in page
    assert "fits" in page.splitlines()[-1]
    assert "a step gathers nothing\n" in page and "tokens/s on 1 host\n" in page


def test_the_page_says_what_a_token_gathers(made):
    """Weights of another device are no part of the logits."""
    moved = Collective("all-gather", "tensor", 3 * 2**20, 2, 2**20, 0.0)
    spread = dataclasses.replace(made.generation.step, collectives=[moved])
    shown = lambda logits: show.as_text(
        dataclasses.replace(made, generation=dataclasses.replace(made.generation, step=spread, logits=logits))
    )
    assert "a step gathers nothing but logits (3.0 MiB)\n" in shown(3 * 2**20)
    assert "a step gathers 2.0 MiB beside logits (1.0 MiB)\n" in shown(2**20)


def test_the_table_goes_between_its_marks_and_nowhere_else(made, tmp_path):
    page = tmp_path / "plans.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write_table(str(page), show.table_of([made]))
    lines = page.read_text().splitlines()
    assert lines[:2] == ["before", table.BEGIN] and lines[-2:] == [table.END, "after"]
    assert lines[2].startswith("| launch | mesh | HBM | tiny |") and "old" not in lines
    assert lines[4].startswith("| here |  | 15.8 | 0.") and "/s (" in lines[4]
    page.write_text("no marks\n")
    with pytest.raises(UserError, match="no place for the table"):
        table.write_table(str(page), show.table_of([made]))


def test_the_table_has_a_row_per_launch_and_a_column_per_experiment(made):
    other = dataclasses.replace(made, experiment="one, two", launch="there")
    large = dataclasses.replace(made, launch="there", step=dataclasses.replace(made.step, needed=20 * 2**30))
    head, _, here, there, _, note = str(show.table_of([made, other, large])).splitlines()
    assert head == "| launch | mesh | HBM | tiny | two |" and note == "`two` stands for one as well."
    assert here.endswith("| - |") and "| needs 20.0 |" in there and there.endswith(" h |")


def test_where_the_mesh_differs_it_stands_in_the_cell(made):
    chosen = dataclasses.replace(made, experiment="other", mesh=made.mesh | {"fsdp": 2})
    line = str(show.table_of([made, chosen])).splitlines()[2]
    assert line.startswith("| here | , fsdp 2 |") and "| fsdp 2: 0." in line


KEPT = f"""{table.BEGIN}
| launch | mesh | HBM | old | tiny |
|---|---|---|---|---|
| above | fsdp 2 | 1.0 | 0.5, 3/s (hbm), 1 h | 0.1, 2/s (hbm), 2 h |
| here | fsdp 9 | 9.0 | needs 99.0 | needs 9.0 |
| there | | 2.0 | - | ~0.2, 1/s (hbm), 3 h |
{table.END}
"""


def test_some_rows_of_the_table_are_renewed_and_the_others_kept_cell_by_cell(made, tmp_path):
    page = tmp_path / "plans.md"
    page.write_text(KEPT)
    kept = table.read_table(str(page)).without({"here"})
    assert kept.cell("above", ["another", "old"]) == "0.5, 3/s (hbm), 1 h" and kept.cell("there", ["old"]) is None
    new = dataclasses.replace(made, experiment="new, old", launch="there")
    columns = [["tiny"], ["new", "old"]]
    table.write_table(str(page), show.table_of([made, new]).keeping(kept, columns))
    head, _, above, here, there, _, note = page.read_text().splitlines()[1:-1]
    assert head == "| launch | mesh | HBM | tiny | old |" and note == "`old` stands for new as well."
    assert above == "| above | fsdp 2 | 1.0 | 0.1, 2/s (hbm), 2 h | 0.5, 3/s (hbm), 1 h |"
    assert here.startswith("| here |  | 15.8 | 0.") and here.endswith(" h | - |")
    assert there.startswith("| there |  | 2.0 | ~0.2, 1/s (hbm), 3 h | 0.") and there.endswith(" h |")


def test_a_table_with_a_row_that_is_too_short_is_refused_with_what_to_do(tmp_path):
    page = tmp_path / "plans.md"
    page.write_text(KEPT.replace("| needs 99.0 ", ""))
    with pytest.raises(UserError, match="the row of here has not as many cells as the head; write all without --launch"):
        table.read_table(str(page))


def test_only_the_launch_files_named_and_the_cells_that_are_missing_are_planned(monkeypatch, made, tmp_path):
    """`mmrlhf plan --all --readme PAGE --launch FILE` in a folder with three launch files and two experiments."""
    (tmp_path / "launch").mkdir(), (tmp_path / "configs").mkdir()
    for name in ("above", "here", "there"):
        (tmp_path / "launch" / f"{name}.yaml").write_text("accelerator: v5e-16\nmesh: {fsdp: 16}\n")
    for name, rows in (("old", 16), ("tiny", 32)):
        text = f"model: {{path: none}}\ndata: {{path: none}}\nobjective: {{kind: preference}}\nbatch: {{rows: {rows}}}\n"
        (tmp_path / "configs" / f"{name}.yaml").write_text(text + "run: {directory: none}\n")
    (tmp_path / "plans.md").write_text(KEPT)
    monkeypatch.chdir(tmp_path)
    planned = []

    def make_plan(experiment, launch, *, names, **_):
        planned.append(names)
        return dataclasses.replace(made, experiment=names[0], launch=names[1])

    for name, stand_in in (("make_plan", make_plan), ("as_json", lambda plan: {})):
        monkeypatch.setattr(planning, name, stand_in)
    monkeypatch.setattr(lowering, "model_sizes", lambda experiment: (None, ""))
    monkeypatch.setattr("mmrlhf_jax.planning.workload.find_workload", lambda *_: None)
    for check in ("_check_layout", "_use_stand_ins"):
        monkeypatch.setattr(commands, check, lambda *_: None)
    commands.plan(None, ["launch/here.yaml"], [], every=True, readme="plans.md")
    assert planned == [("old", "here"), ("tiny", "here"), ("old", "there")]
    kept = table.read_table("plans.md")
    assert kept.rows["above"] == ("fsdp 2", "1.0", {"old": "0.5, 3/s (hbm), 1 h", "tiny": "0.1, 2/s (hbm), 2 h"})
    assert kept.rows["there"][2]["tiny"] == "~0.2, 1/s (hbm), 3 h"


def test_one_plan_does_not_take_the_whole_tables_place():
    with pytest.raises(UserError, match="use it with --all"):
        commands.plan(["x.yaml"], [str(ROOT / "launch" / "v5e-64.yaml")], [], readme="docs/plans.md")
    with pytest.raises(UserError, match="name no experiment"):
        commands.plan(["x.yaml"], [str(ROOT / "launch" / "v5e-64.yaml")], [], every=True, readme="docs/plans.md")


def test_a_launch_file_without_an_accelerator_is_refused():
    with pytest.raises(UserError, match=r"local\.yaml: names no accelerator"):
        commands.plan(["none.yaml"], [str(ROOT / "launch" / "local.yaml")], [])


@pytest.mark.parametrize(
    ("sizes", "slices", "placed"),
    [
        ({"data": 2, "fsdp": 4, "tensor": 1, "context": 1}, {"data": 2}, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ({"data": 1, "fsdp": 4, "tensor": 2, "context": 1}, {"fsdp": 2}, [[[0, 1], [2, 3], [4, 5], [6, 7]]]),
    ],
)
def test_stand_ins_are_laid_out_host_by_host(sizes, slices, placed):
    """Eight devices in two hosts of four: only the axes between slices leave a host."""
    found = mesh_module._hybrid(sizes, slices, list(range(8)), 4)
    np.testing.assert_array_equal(found, np.reshape(placed, tuple(sizes.values())))
    with pytest.raises(UserError, match="leaves 4 devices to a slice, which has 8"):
        mesh_module._hybrid(sizes, slices, list(range(8)), 8)


def test_the_page_of_plans_has_a_place_for_the_table():
    text = (ROOT / "docs" / "plans.md").read_text()
    assert table.BEGIN in text and table.END in text


def test_what_does_not_fit_says_by_how_much_and_what_would_make_it_fit(model):
    chip = dataclasses.replace(CHIPS["v5e"], hbm_bytes=2**30)
    settings = experiment(model, config.Preference(), remat="dots")
    line = advice(3 * 2**30, chip, settings, config.Launch(), make_mesh({}, jax.devices()[:1]))
    assert "3.00 GiB per device of 1.00 GiB, 2.00 GiB too much" in line
    pieces = "rows_per_device: 1 in the launch file (1 row per batch shard at a time instead of 2)"
    for way in ("model.remat: full", pieces, "optimizer.mu_dtype: bfloat16", "4 times the devices"):
        assert way in line


def test_a_plan_says_in_how_many_pieces_the_rows_are_taken(made):
    pieces = dataclasses.replace(made, accumulation=2)
    assert [planning.as_json(each)["accumulation"] for each in (made, pieces)] == [1, 2]
    assert ["taken in 2 pieces" in show.as_text(each) for each in (made, pieces)] == [False, True]


def test_advice_names_the_key_that_decides_how_many_rows_are_taken_at_once(model):
    chip, mesh = dataclasses.replace(CHIPS["v5e"], hbm_bytes=2**30), make_mesh({}, jax.devices()[:1])
    settings = experiment(model, config.Preference())
    overruled = settings.model_copy(update={"batch": config.Batch(rows=4, accumulation=2)})
    few, many = config.Launch(rows_per_device=1), config.Launch(rows_per_device=2)
    lines = [advice(3 * 2**30, chip, *each, mesh) for each in ((settings, few), (settings, many), (overruled, few))]
    assert ["rows_per_device: 1 in the launch file" in line for line in lines] == [False, True, False]
    assert ["batch.accumulation: 4" in line for line in lines] == [False, False, True]


def test_advice_for_a_gpu_of_which_xla_reserves_too_little(model):
    """One device has no other for half of a row's slots."""
    mesh, settings = make_mesh({}, jax.devices()[:1]), experiment(model, config.Preference(), slots=8192)
    way = "XLA_CLIENT_MEM_FRACTION: 0.92 in the launch file's environment (instead of 0.75)"
    shares = {}, {"XLA_CLIENT_MEM_FRACTION": "0.95"}
    launches = [config.Launch(accelerator="h100-1", mesh=config.Mesh(fsdp=1), environment=each) for each in shares]
    lines = [advice(65 * 2**30, chip_of(each), settings, each, mesh) for each in launches]
    assert [way in line for line in lines] == [True, False]
    assert way not in advice(75 * 2**30, chip_of(launches[0]), settings, launches[0], mesh)
    assert not any("mesh.context" in line for line in lines)


def test_advice_names_only_what_helps(model):
    """Storing what is frozen in bfloat16 where most of the model is; a first moment in bfloat16 where it can decay."""
    chip, mesh = dataclasses.replace(CHIPS["v5e"], hbm_bytes=2**30), make_mesh({}, jax.devices()[:1])
    settings = experiment(model, config.Preference())
    lora = settings.model_copy(update={"lora": config.Lora()})
    stored = lora.model_copy(update={"model": lora.model.model_copy(update={"frozen_dtype": "bfloat16"})})
    slow = settings.model_copy(update={"optimizer": config.Optimizer(beta1=0.995)})
    lines = [advice(3 * 2**30, chip, each, config.Launch(), mesh) for each in (settings, lora, stored, slow)]
    assert ["model.frozen_dtype: bfloat16" in line for line in lines] == [False, True, False, False]
    assert ["optimizer.mu_dtype: bfloat16" in line for line in lines] == [True, True, True, False]


def test_the_compilers_message_says_what_a_program_takes():
    message = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    message += "temporaries (54.25G) exceeds available HBM (15.75G). HLO module: jit_f."
    assert needed_bytes(message, 2**30) == int(55.25 * 2**30)
    assert needed_bytes("Used 20.50G of 15.48G hbm. Exceeded hbm capacity by 5.02G.", 7) == int(20.5 * 2**30)
    assert needed_bytes("INTERNAL: something else", 7) is None


@pytest.mark.parametrize(
    ("name", "layers", "tower_layers"),
    [
        ("lmms-lab/llava-onevision-qwen2-7b-ov", 28, 26),
        ("llava-onevision-qwen2-72b-ov", 80, 26),
        ("OpenGVLab/InternVL2-1B", 24, 24),
        ("OpenGVLab/InternVL3-8B-hf", 28, 24),
        ("models/InternVL3-78B", 80, 45),
    ],
)
def test_published_sizes_stand_in_for_a_hub_that_is_out_of_reach(name, layers, tower_layers):
    found = published_config(name)
    assert (found.text.layers, found.tower_work.layers) == (layers, tower_layers)
    assert published_config("someone/else") is None


def test_an_unknown_model_is_an_error_not_a_guess(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        lowering.model_sizes(experiment(tmp_path / "none", config.Preference()))


@pytest.mark.parametrize(
    "name",
    [
        "mmdpo_llava_ov_7b",
        "mmdpo_internvl3_8b",
        "mmdpo_qwen2_5_vl_7b",
        pytest.param("mmdpo_qwen3_vl_8b", marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mmdpo_internvl2_1b", "reward_internvl3_8b")),
    ],
)
@pytest.mark.long
def test_the_assumed_data_makes_the_papers_four_pairs_a_query(name):
    planned = config.load_experiment(ROOT / "configs" / f"{name}.yaml")
    sizes, where = lowering.model_sizes(planned)
    assert "published sizes" in where
    work = assumed_workload(planned, sizes.geometry, "")
    assert work.used["pairs"] * work.rows / work.groups == pytest.approx(4, abs=0.3)
    assert work.fill > 0.9


@pytest.mark.parametrize("objective", [config.Preference(), config.RewardModel()])
def test_the_experiments_own_data_is_measured_where_it_is_at_hand(model, tmp_path, objective):
    """Budget, rows and pairs are those that `mmrlhf train` packs; rewards need not be there yet."""
    data = config.Data(path=str(ranked.write(tmp_path / "data", [(1, 2), (1, 2, 3), (1, 1, 2)], [[(30, 30)], [], [(75, 40)]])))
    settings = experiment(model, objective, slots=2048).model_copy(update={"data": data})
    sizes, _ = lowering.model_sizes(settings)
    work = find_workload(settings, sizes)
    task = task_of(objective)
    encoder = task.encoder(data, load_tokenizer(model), sizes)
    rows = plan_training_rows(open_training_examples(data, task), encoder, data, settings.batch, task, seed=42)
    assert (work.budget, work.rows, work.groups) == (rows.budget, rows.count(1), 3)
    assert work.source == f"measured in {data.path}"
    assert work.used["pairs"] * work.rows == 1 + 3 + 2


def test_rows_that_the_mesh_cannot_share_are_refused_before_anything_is_compiled(model):
    settings = experiment(model, config.Preference()).model_copy(update={"batch": config.Batch(rows=3, accumulation=3)})
    mesh = make_mesh({}, jax.devices()[:1])
    with_accumulation(settings, config.Launch(), mesh.shape)
    with pytest.raises(UserError, match="a multiple of the 8 batch shards"):
        with_accumulation(settings, config.Launch(), jax.sharding.AbstractMesh((2, 4, 1, 1), mesh.axis_names).shape)


def test_experiments_that_differ_in_no_shape_share_a_plan():
    names = ["mmdpo_llava_ov_7b", "dpo_llava_ov_7b", "reward_llava_ov_7b", "mmdpo_llava_ov_0.5b", "ablation/w1_k1"]
    names += ["reward_human_critique_llava_ov_7b", "reward_scalar_llava_ov_7b", "implicit_llava_ov_7b"]
    found = commands.alike({name: config.load_experiment(ROOT / "configs" / f"{name}.yaml") for name in names})
    together = [["mmdpo_llava_ov_7b", "dpo_llava_ov_7b", "ablation/w1_k1"], ["reward_llava_ov_7b", names[5]]]
    alone = [
        ["mmdpo_llava_ov_0.5b"],
        ["reward_scalar_llava_ov_7b"],
        ["implicit_llava_ov_7b"],
    ]  # the last takes all rows at once
    assert [names for names, _ in found] == [*together, *alone]


@pytest.mark.long
def test_a_kernel_skips_the_blocks_that_no_token_of_the_data_sees(model):
    """Of rows that one group fills whole it would skip hardly any; the more groups to a row, the more."""
    geometry = lowering.model_sizes(experiment(model, config.Preference()))[0].geometry
    settings = (experiment(model, config.Preference(), slots=slots) for slots in (1024, 8192))
    short, long = (assumed_workload(each, geometry, "for a test") for each in settings)
    assert 1 >= short.visible_blocks(128) > long.visible_blocks(128) > 1 / 64
    assert long.visible_pairs < long.visible_blocks(128) * 8192**2 / 2 * 1.1
    work = pack_workload(
        experiment(model, config.Preference(), slots=512), np.array([[512, 1, 4, 256, 2, 1]]), "one group", np.array([1])
    )
    # The trunk's 256 and a branch of 128 after it: 2 x 3 / 2 blocks, 2 branches' own and 2 x 2 that see the trunk.
    assert work.visible_blocks(128) == (3 + 2 + 4) / 10
    assert work.visible_pairs == 256 * 257 / 2 + 2 * (128 * 129 / 2 + 128 * 256)


MEASURED = """
import sys
sys.path.insert(0, {root!r})
import jax, jax.numpy as jnp, numpy as np
from mmrlhf_jax import config
from mmrlhf_jax.sharding import mesh as mesh_module
from mmrlhf_jax.planning import lowering
from mmrlhf_jax.sharding.mesh import use_mesh
from mmrlhf_jax.planning.workload import find_workload
from mmrlhf_jax.training.layout import with_accumulation
from tests.planning.test_plan import experiment

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

settings = experiment({path!r}, config.Preference(), slots=1024)
sizes, _ = lowering.model_sizes(settings)
settings = lowering.with_budget(settings, find_workload(settings, sizes).budget)
settings = with_accumulation(settings, config.Launch(), lowering.launch_mesh(config.Launch()).shape)
lowered, _, mesh = lowering.lower_step(settings, config.Launch())
assert mesh.size == 1
with use_mesh(mesh):
    compiled = lowered.compile()
    stats = compiled.memory_analysis()
    predicted = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes - stats.alias_size_in_bytes
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    # 1e-3 and not zeros: memory that is never written is never resident.
    make = lambda x: jax.jit(lambda: jnp.full(x.shape, 1e-3, jnp.float32).astype(x.dtype), out_shardings=x.sharding)()
    step, state, batch = lowering.step_arguments(settings, sizes, mesh)
    state, batch = jax.block_until_ready(jax.tree.map(make, (state, batch)))
    jax.block_until_ready(compiled(state, batch))
print(predicted, status("VmHWM") - before)
"""


@pytest.mark.slow
def test_predicted_memory_is_what_a_step_takes(tmp_path):
    """Resident memory at its highest while the state is made and one step runs, on one CPU device."""
    text = {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 6, "vocab_size": 8192}
    path = tiny.checkpoint(tmp_path, tiny.config(text=text | {"tie_word_embeddings": False}))
    code = MEASURED.format(root=str(ROOT), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, env=os.environ)
    predicted, measured = map(int, done.stdout.split()) if done.returncode == 0 else pytest.fail(done.stderr[-3000:])
    assert measured == pytest.approx(predicted, rel=0.10)


@pytest.mark.parametrize(
    ("objective", "held_out", "passes"),
    [
        (config.Preference(), "held out", ["evaluation", "reference"]),
        (config.Preference(), None, ["reference"]),
        (config.Preference(reference="live"), "held out", ["evaluation"]),
        (config.Supervised(), "held out", ["evaluation"]),
        (config.RewardModel(), None, []),
    ],
)
def test_what_a_run_computes_beside_its_steps_is_planned_with_it(model, objective, held_out, passes):
    planned = experiment(model, objective)
    planned = planned.model_copy(update={"data": planned.data.model_copy(update={"held_out": held_out})})
    assert lowering.run_passes(planned) == passes


@pytest.mark.long
def test_a_setting_that_only_data_determine_needs_none_in_a_plan(made, model):
    settled_by_data = experiment(model, config.Preference(scaling=config.Scaling(k="median")))
    settled_by_data = settled_by_data.model_copy(
        update={"data": settled_by_data.data.model_copy(update={"held_out": "not there either"})}
    )
    plan = planning.make_plan(settled_by_data, config.Launch(), generation=False, passes=True)
    assert plan.step.needed == made.step.needed and plan.step.device_flops == made.step.device_flops
    assert plan.passes.keys() == {"evaluation", "reference"}


@pytest.mark.long
def test_evaluation_and_reference_pass_are_compiled_and_their_memory_shown(made, model):
    """Beside the evaluation stay the optimizer's moments, two numbers for each that learns; no pass needs gradients."""
    judged = experiment(model, config.Preference())
    judged = judged.model_copy(update={"data": judged.data.model_copy(update={"held_out": "not there either"})})
    plan = planning.make_plan(judged, config.Launch(), names=("tiny", "here"), generation=False, passes=True)
    before, after = planning.as_json(made), planning.as_json(plan)
    assert {name: value for name, value in before.items() if value is None}.keys() >= {"evaluation", "reference"}
    evaluation, reference = after["evaluation"], after["reference"]
    learnt = sum(x.size * 4 for x in jax.tree.leaves(_learnt(lowering.with_budget(judged, plan.workload.budget))))
    assert evaluation["resident_bytes"] == pytest.approx(2 * learnt, rel=0.01)
    assert reference["resident_bytes"] == 0
    for found in (evaluation, reference):
        assert 0 < found["hbm_peak_bytes"] < plan.step.needed and found["hbm"]["temporaries"] > 0
    shown = show.as_text(plan)
    assert "  evaluation " in shown and "  reference  " in shown and "kept beside it" in shown


def _learnt(made):
    sizes, _ = lowering.model_sizes(made)
    return lowering.step_arguments(made, sizes, make_mesh({}, jax.devices()[:1]))[1].params


def test_a_pass_that_does_not_fit_is_a_plan_that_does_not_fit(made):
    small = dataclasses.replace(made, generation=None, passes={})
    assert small.fits
    large = planning.Pass(made.step, resident=made.chip.hbm_bytes)
    assert not dataclasses.replace(small, passes={"evaluation": large}).fits
