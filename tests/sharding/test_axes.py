"""Sizes of the mesh: what cannot work is refused by its numbers, from `plan` and `train`, before anything is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from mmrlhf_jax import cli, config
from mmrlhf_jax import mesh_axes as axes
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llava_onevision.config import config_from_hf
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision
from mmrlhf_jax.models.registry import published_config
from mmrlhf_jax.sharding import rules
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.training.layout import check_layout, check_widths, wasted, with_accumulation
from tests import tiny

ROOT = Path(__file__).parents[2]
MMDPO = ROOT / "configs" / "mmdpo_llava_ov_7b.yaml"
LAUNCHES = [path for path in sorted((ROOT / "launch").glob("*.yaml")) if config.load_launch(path).accelerator]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

WRONG = [
    ("mesh: {data: -1}", "mesh.data and mesh.fsdp are -1, and only one axis can take"),
    ("mesh: {fsdp: 1, tensor: -1, context: -1}", "mesh.tensor and mesh.context are -1"),
    ("mesh: {data: -1, tensor: -1, context: -1}", "mesh.data and mesh.fsdp and mesh.tensor and mesh.context are -1"),
    ("mesh: {fsdp: 0}", "mesh.fsdp is 0; give a number of devices"),
    ("mesh: {tensor: 0}", "mesh.tensor is 0; give a number of devices"),
    ("mesh: {context: -2}", "mesh.context is -2; give a number of devices"),
    ("mesh: {data: -7}", "mesh.data is -7; give a number of devices"),
    ("mesh: {data: 2, slices: {data: 3}}", "mesh.slices.data 3 does not divide mesh.data 2"),
    ("mesh: {fsdp: 2.0}", "mesh.fsdp: Input should be a valid integer, found 2.0"),
    ("mesh: {fsdp: '2'}", "mesh.fsdp: Input should be a valid integer, found '2'"),
]
UNEQUAL = [
    (
        "accelerator: v5e-16\nmesh: {fsdp: 8}",
        "data 1 x fsdp 8 x tensor 1 x context 1 needs 8 devices but 16 are in v5e-16",
    ),
    ("accelerator: v6e-32\nmesh: {data: 2, fsdp: 32}", "needs 64 devices but 32 are in v6e-32"),
    ("accelerator: v6e-32\nmesh: {data: 2, fsdp: 16, slices: {data: 2}}", "needs 32 devices but 64 are in 2 x v6e-32"),
    ("accelerator: h100-8\nmesh: {tensor: 3}", "fsdp -1 x tensor 3 x context 1: 3 does not divide the 8 devices in h100-8"),
    ("accelerator: v5p-32\nmesh: {data: -1, fsdp: 5}", "data -1 x fsdp 5 x tensor 1 x context 1: 5 does not divide the 16"),
]


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments: object) -> str:
        """The one line that a command ends with."""
        monkeypatch.setattr(sys, "argv", ["mmrlhf", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert end.value.code == 2
        return line

    return run


@pytest.mark.parametrize("verb", ["plan", "train"])
@pytest.mark.parametrize(("text", "message"), WRONG + UNEQUAL)
@pytest.mark.long
def test_sizes_that_cannot_be_are_one_line_before_anything_else(tmp_path, monkeypatch, command, verb, text, message):
    """Of a model, data and run that are not there: nothing of them is looked at."""
    path = tmp_path / "launch.yaml"
    path.write_text(text + "\n")
    monkeypatch.chdir(tmp_path)
    line = command(verb, MMDPO, "--launch", path, *(["--set", "model.path=nowhere"] if verb == "train" else []))
    assert message in line and str(path) in line
    assert [file.name for file in tmp_path.iterdir()] == ["launch.yaml"]


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"fsdp": 3}, "needs 3 devices but 2 are here"),
        ({"fsdp": -1, "tensor": 3}, "3 does not divide the 2 devices here"),
        ({"fsdp": -1, "data": -1}, "mesh.data and mesh.fsdp are -1"),
        ({"fsdp": 2, "data": -1, "slices": {"data": 2}}, "mesh.slices.data 2 does not divide mesh.data 1"),
        ({"fsdp": 0}, "mesh.fsdp is 0"),
    ],
)
def test_sizes_over_the_devices_that_are_here(mesh, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        make_mesh(mesh, jax.devices()[:1] * 2)


def test_the_axis_that_is_left_open_takes_the_devices_that_are_left():
    for name in axes.MESH_AXES:
        sizes = {"data": 2, "fsdp": 2, "tensor": 2, "context": 2} | {name: -1}
        assert axes.sizes_over(sizes, {}, 24, "here") == sizes | {name: 3}
        assert config.load_launch(None, ["mesh.fsdp=1", f"mesh.{name}=-1"]).mesh.axes[name] == -1


# The model's own sizes -----------------------------------------------------------------------------------------------


def sizes_of(**changes):
    return config_from_hf(tiny.config(**changes), None, "config.json")


def parameters(size):
    """(logical axes, shape) of every parameter of the model."""
    with use_mesh(make_mesh({}, jax.devices()[:1])):
        state = nnx.state(nnx.eval_shape(lambda: LlavaOnevision(size, rngs=nnx.Rngs(0))))
    return [(param.get_metadata().get("out_sharding") or (), param.shape) for _, param in nnx.to_flat_state(state)]


def is_split(found, tensor: int) -> bool:
    """Whether all of them can be stored on a mesh with such a `tensor`, as `jax.jit` would ask."""
    mesh = AbstractMesh((1, 1, tensor, 1), rules.MESH_AXES)
    placed = [(size, entry) for names, shape in found for size, entry in zip(shape, rules.fit_stored(names, shape, mesh))]
    return not any("tensor" in rules.axes_in(entry) and size % tensor for size, entry in placed)


@pytest.mark.parametrize(
    ("size", "named"),
    [
        (sizes_of(), {5: "MLP width 72", 7: "MLP width 72"}),
        (sizes_of(text={"intermediate_size": 75}), {2: "MLP width 75", 6: "MLP width 75"}),
        (sizes_of(text={"vocab_size": 265, "tie_word_embeddings": False}), {5: "MLP width 72", 7: "MLP width 72"}),
        (sizes_of(vision={"intermediate_size": 51}), {2: "vision tower's MLP width 51", 4: "vision tower's MLP width 51"}),
        (sizes_of(vision={"hidden_size": 33}), {2: "vision tower's width 33", 4: "vision tower's width 33"}),
    ],
    ids=["tiny", "odd MLP", "odd vocabulary", "odd vision MLP", "odd vision width"],
)
def test_a_tensor_axis_is_refused_exactly_where_it_does_not_divide_a_parameter(size, named):
    found = parameters(size)
    for tensor in range(1, 9):
        mesh = {"data": 1, "fsdp": 1, "tensor": tensor, "context": 1}
        if is_split(found, tensor):
            check_widths(size, mesh)
            assert tensor not in named
        else:
            with pytest.raises(UserError, match=rf"mesh\.tensor {tensor} does not divide the model's") as error:
                check_widths(size, mesh)
            assert named.get(tensor, "") in str(error.value)


def test_forced_kernels_need_whole_heads():
    size, mesh = sizes_of(), {"data": 1, "fsdp": 1, "tensor": 4, "context": 1}
    check_widths(size, mesh)
    with pytest.raises(UserError, match=r"mesh\.tensor 4 does not divide the model's 2 key/value heads.*pallas"):
        check_widths(size, mesh, forced_kernel=True)


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda path: path.stem)
def test_every_experiment_can_be_laid_over_every_launch_file(launch):
    where = config.load_launch(launch)
    for path in CONFIGS:
        experiment = with_accumulation(config.load_experiment(path), where, where.axes())
        check_layout(experiment, published_config(experiment.model.path), where.axes())


def test_what_works_but_is_waste_is_said_with_its_numbers():
    mesh = config.load_launch(ROOT / "launch" / "v5e-256.yaml").axes()
    half, seven = (published_config(f"lmms-lab/llava-onevision-qwen2-{size}-ov") for size in ("0.5b", "7b"))
    assert wasted(half, 8192, mesh) == [
        "tensor 4 x context 2 does not divide the 14 heads: 8 devices compute the same attention"
    ]
    assert wasted(seven, 8192, mesh | {"context": 1}) == []
    assert wasted(seven, 8193, {"data": 1, "fsdp": 1, "tensor": 1, "context": 2}) == [
        "context 2 does not divide the 8193 slots of a row: its devices compute the same slots"
    ]
    odd = published_config("OpenGVLab/InternVL2-1B")
    assert wasted(odd, 8192, mesh | {"context": 1})[1:] == [
        "tensor 4 does not divide the vocabulary of 151655: its devices hold the same embedding and compute the same logits"
    ]


def test_rows_and_widths_are_checked_by_plan_before_the_data_is_measured(tmp_path, command):
    """The data that the experiment names is no data: who opened it first would say so."""
    (tmp_path / "data.jsonl").write_text("no data\n")
    path = tmp_path / "launch.yaml"
    for mesh, message in (("{fsdp: 16, tensor: 3}", "48 devices but 16"), ("{data: 16, fsdp: 1}", "multiple of the 16 batch")):
        path.write_text(f"accelerator: v5e-16\nmesh: {mesh}\n")
        settings = ["--set", f"data.path={tmp_path / 'data.jsonl'}", "--set", "batch.rows=8"]
        assert message in command("plan", MMDPO, "--launch", path, *settings)


@pytest.mark.parametrize(
    ("batch", "tensor", "message"),
    [
        (config.Batch(rows=3), 1, "batch.rows / accumulation = 3 must be a multiple of the 2 batch shards"),
        (config.Batch(rows=4, accumulation=4), 1, "accumulation = 1 must be a multiple of the 2 batch shards"),
        (config.Batch(rows=2), 5, "mesh.tensor 5 does not divide the model's"),
        (config.Batch(rows=2), 7, "mesh.tensor 7 does not divide the model's"),
    ],
)
def test_train_checks_rows_and_widths_before_it_makes_or_loads_anything(tmp_path, monkeypatch, batch, tensor, message):
    from mmrlhf_jax.training import base, loop, preflight

    mesh = AbstractMesh((1, 2, tensor, 1), rules.MESH_AXES)
    monkeypatch.setattr(preflight, "make_mesh", lambda named: mesh)
    monkeypatch.setattr(base, "load_base", lambda *_: pytest.fail("the model was loaded"))
    if "batch" in message:  # then not even the model's sizes are asked for
        monkeypatch.setattr(preflight, "known_sizes", lambda path: pytest.fail("the model was fetched"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(tiny.config()))
    experiment = config.Experiment(
        model=config.Model(path=str(tmp_path / "model")),
        data=config.Data(path="nowhere"),
        objective=config.Preference(),
        batch=batch,
        run=config.Run(directory=str(tmp_path / "run")),
    )
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        loop.train(experiment, config.Launch())
    assert not (tmp_path / "run").exists()
