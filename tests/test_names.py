"""Every name that a file system allows is a name like any other: what is written there can be read, and all is there."""

from __future__ import annotations

import os

import pytest

from mmrlhf_jax import files
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.export import export_checkpoint
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.inference.jobs import run_job
from mmrlhf_jax.training.metrics import MetricsLog, read_metrics
from tests import tiny
from tests.data import groups

NAMES = [
    "a[1]",
    "[!x]*?",
    "**",
    "back\\slash",
    "{a,b}#%25?c",
    " spaces ",
    "new\nline",
    "ä'\"$x`",
    "-x",
    "~",
    "x" * 255,
    "ß" * 127,
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return groups.write(tmp_path_factory.mktemp("groups"), 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(params=NAMES, ids=lambda name: ascii(name)[:20])
def place(request, tmp_path):
    """A path of such a name; in the end it is all that is there."""
    yield tmp_path / request.param
    assert os.listdir(tmp_path) == [request.param]


def test_a_set_is_built_there_and_read(place, source):
    assert list(build(source, place, video_frames=3, jobs=1)) == list(SourceExamples(source, video_frames=3))
    assert list(open_examples(place)) == list(SourceExamples(source, video_frames=3))


def test_what_a_pass_over_data_finds_is_written_there(place, source):
    run_job(open_examples(source, video_frames=3), place, "job", lambda indices: ((i, {"id": i}) for i in indices))
    assert len(place.read_text().splitlines()) == 4


def test_metrics_are_logged_there(place):
    log = MetricsLog(place)
    log.write(1, {"loss": 1.0})
    log.close()
    assert [row["loss"] for row in read_metrics(place)] == [1.0]
    assert os.listdir(place / "tensorboard")


def test_a_model_is_exported_there_and_is_that_model(place, model):
    export_checkpoint(str(model), str(place))
    weights = (place / "model.safetensors").read_bytes()
    assert len(weights) > 1000
    (place.parent / "other").mkdir()
    for file in place.iterdir():
        (place.parent / "other" / file.name).write_bytes(file.read_bytes())
    assert model_fingerprint(place) == model_fingerprint(place.parent / "other")
    (place / "model.safetensors").write_bytes(weights[:-64] + bytes(64))
    assert model_fingerprint(place) != model_fingerprint(place.parent / "other")
    for file in (place.parent / "other").iterdir():
        file.unlink()
    (place.parent / "other").rmdir()


def test_a_pattern_is_looked_for_in_the_folder_that_has_the_name_and_in_no_other(tmp_path):
    for folder in ("a[1]", "a1", "a*"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"bad_{folder[1:]}.npz").touch()
    assert [path.name for path in files.matching(tmp_path / "a[1]", "bad_*.npz")] == ["bad_[1].npz"]
    assert [path.name for path in files.matching(tmp_path / "a*", "bad_*.npz")] == ["bad_*.npz"]
    assert files.matching(tmp_path / "none", "*") == []


@pytest.mark.parametrize("path", ["runs/\udce4", "\udcff"])
def test_a_name_that_is_not_utf_8_is_refused_in_words(path):
    with pytest.raises(UserError, match="is not UTF-8"):
        files.check_place(path)
