"""`gs://`: what builds and streams on a local disk does in an object store, where other processes and hosts write as well."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import zipfile

import pytest
from etils import epath
from PIL import Image

from mmrlhf_jax import files, growing_file
from mmrlhf_jax.data import shards
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.data.index import build_index
from mmrlhf_jax.data.stream import batches
from mmrlhf_jax.data.validate import validate
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import read_arrays, write_arrays
from tests.data import groups

COUNT = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return groups.write(tmp_path_factory.mktemp("groups"), COUNT)


@pytest.mark.long
def test_a_source_in_a_bucket_builds_into_a_bucket_what_a_local_one_does(bucket, source):
    there = bucket / "some" / "source"
    for file in source.parent.rglob("*"):
        if file.is_file():
            (there / str(file.relative_to(source.parent))).write_bytes(file.read_bytes())
    built = build(there / source.name, bucket / "sets" / "copied", video_frames=3, jobs=1)
    local = SourceExamples(source, video_frames=3)
    assert list(built) == list(local) and built.fingerprint == local.fingerprint
    assert [path.name for path in (bucket / "sets").iterdir()] == ["copied"]
    assert not validate(bucket / "sets" / "copied").findings
    with pytest.raises(UserError, match="leaves the media root"):
        build(_with_image(there, "../../sets/copied/records.jsonl"), bucket / "sets" / "other", video_frames=3, jobs=1)
    with pytest.raises(UserError, match=r"'none\.png' does not exist under gs://bucket/some/source"):
        build(_with_image(there, "none.png"), bucket / "sets" / "other", video_frames=3, jobs=1)


def test_shards_and_archives_in_a_bucket_are_read_as_local_ones_are(bucket, tmp_path):
    for place in (epath.Path(tmp_path), bucket / "packed"):
        (place / "data").mkdir(parents=True, exist_ok=True)
        for number in (2, 10):
            row = {"id": str(number), "prompt": "p", "responses": ["A"], "images": [f"short/{number}.png"]}
            (place / "data" / f"part-{number}.jsonl").write_text(json.dumps(row) + "\n")
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for number in (2, 10):
                image = io.BytesIO()
                Image.new("L", (8, 8), number).save(image, "PNG")
                archive.writestr(f"short/{number}.png", image.getvalue())
        (place / "short.zip").write_bytes(packed.getvalue())
    local = SourceExamples(f"{tmp_path}/data/part-*.jsonl", tmp_path)
    for source in ("data/part-*.jsonl", "data"):
        there = SourceExamples(f"gs://bucket/packed/{source}", "gs://bucket/packed")
        assert [record.id for record in there.records] == ["2", "10"] and list(there) == list(local)
    (example,) = SourceExamples("gs://bucket/packed/data/part-2.jsonl", "gs://bucket/packed/short.zip").part([0])
    assert example.record.images == ("short/2.png",)


def _with_image(folder: epath.Path, name: str) -> epath.Path:
    path = folder / "wrong.jsonl"
    path.write_text('{"id": "a", "prompt": "p", "responses": ["x"], "images": ["%s"]}\n' % name)  # noqa: UP031
    return path


KILLED = """
import os, signal, sys
from mmrlhf_jax.data import shards
from mmrlhf_jax.data.builder import build
shards.SHARD_EXAMPLES = 2
die = lambda stage, done, total: os.kill(os.getpid(), signal.SIGKILL) if (stage, done) == ("write", 5) else None
build(sys.argv[1], sys.argv[2], video_frames=3, jobs=1, progress=die)
"""


@pytest.mark.long
def test_a_killed_build_is_no_data_set_and_goes_on_with_several_processes(bucket, source, monkeypatch):
    out = bucket / "sets" / "killed"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.run([sys.executable, "-c", KILLED, source, str(out)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(out.iterdir())) == 2
    monkeypatch.setattr(shards, "SHARD_EXAMPLES", 2)
    calls = []
    built = build(source, out, video_frames=3, jobs=2, progress=lambda *call: calls.append(call))
    assert calls == [("write", done, COUNT) for done in range(5, COUNT + 1)]  # the first two files were finished
    assert list(built) == list(SourceExamples(source, video_frames=3))
    assert not (out.parent / f".{out.name}.building").exists()
    build(source, out, video_frames=3, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("reused", COUNT, COUNT)
    with pytest.raises(UserError, match="built from other content"):
        build(source, out, video_frames=2)
    (bucket / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="already exists and is not a built data set"):
        build(source, bucket / "mine")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.long
def test_a_set_in_a_bucket_streams_the_batches_of_the_local_source(bucket, source, workers):
    out = bucket / "sets" / "streamed"
    build(source, out, video_frames=3, jobs=1)

    def stream(path, **options):
        rows = groups.rows(path)
        return [groups.digest(batch) for batch in batches(rows, batch_rows=2, steps=2, total=4, **options)]

    assert stream(out, workers=workers) == stream(source)


def test_an_index_is_kept_in_the_bucket(bucket, source):
    examples = SourceExamples(source, video_frames=3)
    made = build_index(examples, groups.encoder(), cache=bucket / "index")
    assert len(list((bucket / "index").iterdir())) == 1
    again = build_index(examples, groups.encoder(), cache=bucket / "index")
    assert (made.sizes == again.sizes).all()


WRITER = "import sys; from mmrlhf_jax.files import write_arrays; import numpy as np; write_arrays(sys.argv[1], a=np.ones(1))"


def test_what_another_process_has_written_is_seen(bucket):
    (bucket / "shared" / "first").write_text("")
    assert not (bucket / "shared" / "a.npz").exists() and len(list((bucket / "shared").iterdir())) == 1
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", WRITER, str(bucket / "shared" / "a.npz")], env=environment, check=True)
    assert (bucket / "shared" / "a.npz").exists() and len(list((bucket / "shared").iterdir())) == 2
    assert read_arrays(bucket / "shared" / "a.npz")["a"] == 1
    write_arrays(bucket / "shared" / "a.npz", a=[2])
    assert read_arrays(bucket / "shared" / "a.npz")["a"] == 2


def test_a_file_that_grows_loses_no_line_here_or_in_a_bucket(bucket, tmp_path, monkeypatch):
    for path, at_once in ((epath.Path(tmp_path) / "log", True), (bucket / "logs" / "log", False)):
        monkeypatch.setattr(growing_file, "REWRITE_SECONDS", 60)
        file = growing_file.GrowingFile(path, "kept\n")
        file.write("a\n")
        assert path.read_text() == ("kept\na\n" if at_once else "kept\n")
        monkeypatch.setattr(growing_file, "REWRITE_SECONDS", -1)
        file.write("b\n")
        assert path.read_text() == "kept\na\nb\n"
        monkeypatch.setattr(growing_file, "REWRITE_SECONDS", 60)
        file.write("c\n")
        file.close()
        assert path.read_text() == "kept\na\nb\nc\n"


def test_what_is_flushed_is_stored_even_where_files_are_only_written_anew(tmp_path, monkeypatch):
    for module in (files, growing_file):
        monkeypatch.setattr(module, "is_remote", lambda path: True)
    path = epath.Path(tmp_path) / "log"
    file = growing_file.GrowingFile(path, "kept\n")
    file.write("a\n")
    assert path.read_text() == "kept\n"
    file.flush()
    assert path.read_text() == "kept\na\n"
    path.write_text("others'")
    file.flush()
    file.close()
    assert path.read_text() == "others'"  # nothing new: nothing is written


def test_gcsfs_that_is_not_installed_is_asked_for():
    script = "import sys; sys.modules['gcsfs'] = None; from mmrlhf_jax.cli import main; main()"
    command = [sys.executable, "-c", script, "data", "validate", "gs://bucket/rows.jsonl"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: gs:// paths need gcsfs; `pip install 'mmrlhf-jax[gcs]'`\n"
