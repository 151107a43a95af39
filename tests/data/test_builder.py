"""Built data sets hold exactly what their source holds, in its order, and appear complete or not at all."""

import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mmrlhf_jax import ownership, workplace
from mmrlhf_jax.data import shards
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.built_examples import BuiltExamples
from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.errors import UserError

COUNT = 12


def image_bytes(seed: int, format: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(out, format=format)
    return out.getvalue()


@pytest.fixture
def source(tmp_path):
    """Text, image, two-image and video groups under ids that do not sort; some files end in zero bytes."""
    folder = tmp_path / "source"
    (folder / "clip").mkdir(parents=True)
    for i in range(5):
        (folder / "clip" / f"{i}.jpg").write_bytes(image_bytes(100 + i, "JPEG"))
    rows = []
    for i in range(COUNT):
        (folder / f"{i}.png").write_bytes(image_bytes(i, "PNG") + b"\0" * (i % 3))
        media = [{}, {"images": [f"{i}.png"]}, {"images": [f"{i}.png", "0.png"]}, {"video": "clip"}][i % 4]
        responses = [{"text": f"<image> <|im_end|> {k}\0é", "rank": k + 1, "critique": "fine"} for k in range(3)]
        rows.append({"id": f"{(7 * i) % COUNT}", "prompt": "\u2028?", "responses": responses, "kept": {"n": i}} | media)
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def listing(folder):
    return sorted(os.listdir(folder))


def test_every_example_comes_back_whole_and_in_order(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 4000)  # several files
    built = build(source, tmp_path / "out", video_frames=3)
    assert len([name for name in listing(tmp_path / "out") if "array_record" in name]) > 2
    expected = SourceExamples(source, video_frames=3)
    assert len(built) == len(expected) == COUNT
    assert list(built) == list(expected)
    assert built.records == expected.records
    assert built[2].images == tuple((source.parent / name).read_bytes() for name in ("2.png", "0.png"))
    assert built[3].frames == tuple((source.parent / "clip" / f"{i}.jpg").read_bytes() for i in (0, 2, 4))
    with pytest.raises(IndexError):
        built[COUNT]


def test_the_result_is_an_ordinary_tfds_data_set(source, tmp_path):
    import tensorflow_datasets as tfds

    build(source, tmp_path / "out")
    stored = tfds.builder_from_directory(tmp_path / "out").as_data_source("train")
    assert [json.loads(row["record"])["kept"]["n"] for row in stored] == list(range(COUNT))
    assert stored[1]["images"][0] == (source.parent / "1.png").read_bytes()


def test_nothing_is_printed_and_progress_counts_records(source, tmp_path, capfd):
    calls = []
    build(source, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls == [("write", n + 1, COUNT) for n in range(COUNT)]
    assert capfd.readouterr().out == ""


def test_the_fingerprint_is_the_sources_and_follows_its_content(source, tmp_path):
    original = SourceExamples(source, video_frames=4).fingerprint
    assert build(source, tmp_path / "out", video_frames=4).fingerprint == original
    assert SourceExamples(source, video_frames=5).fingerprint != original

    rows = source.read_text().split("\n")
    source.write_text("\n".join([rows[1], rows[0], *rows[2:]]))
    assert SourceExamples(source, video_frames=4).fingerprint != original
    source.write_text("\n".join(rows))
    assert SourceExamples(source, video_frames=4).fingerprint == original
    (source.parent / "1.png").write_bytes(image_bytes(99, "PNG"))
    assert SourceExamples(source, video_frames=4).fingerprint != original


def test_media_may_stand_under_another_root(source, tmp_path):
    moved = tmp_path / "moved.jsonl"
    source.rename(moved)
    with pytest.raises(UserError, match=r"moved\.jsonl: record '7': media file '1\.png' does not exist under"):
        build(moved, tmp_path / "out")
    with pytest.raises(UserError, match="the media root is not a folder"):
        build(moved, tmp_path / "out", tmp_path / "nowhere")
    assert len(build(moved, tmp_path / "out", source.parent)) == COUNT


# Atomic and idempotent -----------------------------------------------------------------------------------------------


def test_the_same_content_is_not_built_twice(source, tmp_path):
    first = build(source, tmp_path / "out")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    calls = []
    again = build(source, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls[-1] == ("reused", COUNT, COUNT)
    assert again.fingerprint == first.fingerprint
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before


def test_other_content_is_never_overwritten(source, tmp_path):
    build(source, tmp_path / "out", video_frames=3)
    with pytest.raises(UserError, match="built from other content; choose another OUT, or remove it first"):
        build(source, tmp_path / "out", video_frames=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("mine", "file"):
        with pytest.raises(UserError, match="already exists and is not a built data set; choose another OUT"):
            build(source, tmp_path / name)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "precious"


def test_an_empty_directory_and_missing_parents_are_fine(source, tmp_path):
    (tmp_path / "empty").mkdir()
    assert len(build(source, tmp_path / "empty")) == len(build(source, tmp_path / "a" / "b" / "c")) == COUNT
    assert listing(tmp_path) == ["a", "empty", "source"] and listing(tmp_path / "a" / "b") == ["c"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "9.png").unlink(), r"record '3': media file '9\.png' does not exist"),
        (
            lambda folder: ((folder / "9.png").unlink(), (folder / "9.png").mkdir()),
            r"record '3': media file .*9\.png cannot be read \(Is a directory\)",
        ),
        (
            lambda folder: (folder / "9.png").write_bytes(b"GIF"),
            r"record '3', image '9\.png': not an image that can be read",
        ),
        (
            lambda folder: (folder / "clip" / "0.jpg").write_text("x"),
            r"record '9': .*clip: 0\.jpg: not an image that can",
        ),
        (lambda folder: (folder / "rows.jsonl").open("a").write('\n{"id": "torn'), r"rows\.jsonl:13: not valid JSON"),
    ],
)
def test_a_failed_build_names_the_record_and_leaves_nothing(source, tmp_path, damage, expected):
    damage(source.parent)
    with pytest.raises(UserError, match=expected):
        build(source, tmp_path / "out")
    assert listing(tmp_path) == ["source"]


def cut_into_small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_EXAMPLES", 2)


def modification_times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_build_that_finished_no_shard_leaves_nothing(source, tmp_path):
    def interrupt(stage, done, total):
        if (stage, done) == ("write", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "out", progress=interrupt)
    assert listing(tmp_path) == ["source"]


KILLED = """
import os, signal, sys
from mmrlhf_jax.data import shards
from mmrlhf_jax.data.builder import build
shards.SHARD_EXAMPLES = 2
die = lambda stage, done, total: os.kill(os.getpid(), signal.SIGKILL) if (stage, done) == ("write", int(sys.argv[3])) else None
build(sys.argv[1], sys.argv[2], jobs=1, progress=die)
"""


def test_a_build_killed_at_any_moment_is_continued_and_its_finished_shards_are_not_written_again(source, tmp_path, monkeypatch):
    cut_into_small_shards(monkeypatch)
    workplace = tmp_path / ".out.building"
    for killed_at in (5, 8):  # SIGKILL in the middle of the third shard, then at the end of the fourth, before its note
        result = subprocess.run([sys.executable, "-c", KILLED, source, tmp_path / "out", str(killed_at)], check=False)
        assert result.returncode == -9
        assert not (tmp_path / "out").exists()
        assert len(listing(workplace / "notes")) == (killed_at - 1) // 2
    finished = listing(workplace / "notes")
    before = modification_times(workplace / "data")
    build(source, tmp_path / "out")
    after = modification_times(tmp_path / "out")
    assert {name.removesuffix(".json") for name in finished} <= before.keys()
    assert all(after[name.removesuffix(".json")] == before[name.removesuffix(".json")] for name in finished)
    assert list(open_examples(tmp_path / "out")) == list(SourceExamples(source))  # nothing lost, nothing twice
    assert open_examples(tmp_path / "out").fingerprint == SourceExamples(source).fingerprint
    assert listing(tmp_path) == ["out", "source"]


def test_after_a_correction_only_its_shard_is_written_again(source, tmp_path, monkeypatch):
    cut_into_small_shards(monkeypatch)
    good = (source.parent / "9.png").read_bytes()
    (source.parent / "9.png").write_bytes(b"GIF")
    with pytest.raises(UserError, match=r"image '9\.png'"):
        build(source, tmp_path / "out", jobs=1)
    before = modification_times(tmp_path / ".out.building" / "data")
    assert len(before) == 4
    (source.parent / "9.png").write_bytes(good)
    (source.parent / "1.png").write_bytes(good)  # in a finished one
    build(source, tmp_path / "out", jobs=1)
    after = modification_times(tmp_path / "out")
    assert [after[name] == time for name, time in sorted(before.items())] == [False, True, True, True]
    assert list(open_examples(tmp_path / "out")) == list(SourceExamples(source))


def test_the_workplace_of_a_build_that_was_killed_after_its_last_act_is_cleared_away(source, tmp_path):
    build(source, tmp_path / "out")
    (tmp_path / ".out.building" / "notes").mkdir(parents=True)
    (tmp_path / ".out.building" / "notes" / "a.json").write_text("{}")
    build(source, tmp_path / "out")
    assert listing(tmp_path) == ["out", "source"]


def test_of_two_builds_of_the_same_out_one_is_told_of_the_other_and_changes_nothing(source, tmp_path, monkeypatch):
    """The second begins while the first has written half: in another process, as people do by mistake."""
    cut_into_small_shards(monkeypatch)
    second = f"from mmrlhf_jax.data.builder import build; build({str(source)!r}, {str(tmp_path / 'out')!r}, jobs=1)"
    refused = []

    def interfere(stage, done, total):
        if (stage, done) == ("write", 5):
            before = listing(tmp_path / ".out.building")
            result = subprocess.run([sys.executable, "-c", second], capture_output=True, text=True, check=False)
            refused.append(result.stderr.strip().splitlines()[-1])
            assert listing(tmp_path / ".out.building") == before

    built = build(source, tmp_path / "out", jobs=1, progress=interfere)
    (line,) = refused
    assert f"out: process {os.getpid()} on {socket.gethostname()} is building it; wait for it, or end it (" in line
    assert list(built) == list(SourceExamples(source))
    assert listing(tmp_path) == ["out", "source"]


@pytest.mark.parametrize("owner", ["dead", "recycled", "other host", "torn"])
def test_a_lock_is_taken_over_where_its_process_has_certainly_ended(source, tmp_path, owner, monkeypatch):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    pid = os.getpid() if owner == "recycled" else int(gone.stdout)
    host = "elsewhere" if owner == "other host" else socket.gethostname()
    lock = tmp_path / ".out.building" / "lock"
    lock.parent.mkdir()
    lock.write_text("" if owner == "torn" else json.dumps({"pid": pid, "host": host}))
    if owner in ("other host", "torn"):  # of these nothing is known but that they are silent
        monkeypatch.setattr(ownership, "LOOK_SECONDS", 0.02)
        monkeypatch.setattr(ownership, "SILENT_SECONDS", 0.2)
    assert len(build(source, tmp_path / "out")) == COUNT
    assert listing(tmp_path) == ["out", "source"]


@pytest.mark.parametrize("owner", ["other host", "torn"])
def test_a_build_elsewhere_that_gives_signs_of_life_is_left_alone(source, tmp_path, owner, monkeypatch):
    lock = tmp_path / ".out.building" / "lock"
    lock.parent.mkdir()
    lock.write_text("torn 0" if owner == "torn" else json.dumps({"pid": 7, "host": "elsewhere", "beat": 0}))

    def beat(seconds):
        lock.write_text("torn 1" if owner == "torn" else json.dumps({"pid": 7, "host": "elsewhere", "beat": 1}))

    monkeypatch.setattr(ownership.time, "sleep", beat)
    who = "another process" if owner == "torn" else "process 7 on elsewhere"
    with pytest.raises(UserError, match=rf"out: {who} is building it; wait for it, or remove .*lock if it has ended"):
        build(source, tmp_path / "out")
    assert listing(tmp_path) == [".out.building", "source"] and listing(lock.parent) == ["lock"]


MOUNTED = """
import os, sys
from mmrlhf_jax import workplace
mount = sys.argv[2]
workplace.os.path.ismount = lambda path: os.fspath(path) == mount
"""


@pytest.mark.parametrize("cut", [None, 7])
def test_a_mounted_disk_is_filled_and_a_build_that_was_killed_there_goes_on(source, tmp_path, monkeypatch, cut):
    """Nothing can take its place: renaming over it fails, and so does removing it."""
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(workplace.os.path, "ismount", lambda path: os.fspath(path) == os.fspath(out))
    monkeypatch.setattr(type(epath.Path(out)), "rename", lambda *_: pytest.fail("renamed"))
    cut_into_small_shards(monkeypatch)
    if cut is not None:
        subprocess.run([sys.executable, "-c", MOUNTED + KILLED, source, out, str(cut)], check=False)
        assert (out / ".out.building" / "unfinished").exists() and list(out.glob("*.array_record*"))
    built = build(source, out, jobs=1)
    assert list(built) == list(SourceExamples(source)) and listing(tmp_path) == ["out", "source"]
    assert not [name for name in os.listdir(out) if name.startswith(".")]
    assert list(build(source, out, jobs=1)) == list(built)


@pytest.mark.parametrize("place", ["empty", "deeper/empty"])
def test_a_link_to_an_empty_directory_is_built_into_that_directory(source, tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / place)
    assert len(build(source, tmp_path / "out", jobs=1)) == COUNT
    assert (tmp_path / "out").is_symlink() and (tmp_path / place / "dataset_info.json").exists()


def test_a_build_that_failed_half_way_holds_nothing(source, tmp_path, monkeypatch):
    cut_into_small_shards(monkeypatch)
    (source.parent / "9.png").write_bytes(b"GIF")
    with pytest.raises(UserError, match=r"image '9\.png'"):
        build(source, tmp_path / "out", jobs=1)
    assert listing(tmp_path / ".out.building") == ["data", "notes", "unfinished"]


def test_what_was_left_by_a_build_of_something_else_is_cleared_away(source, tmp_path, monkeypatch):
    cut_into_small_shards(monkeypatch)
    subprocess.run([sys.executable, "-c", KILLED, source, tmp_path / "out", "7"], check=False)
    rows = source.read_text().split("\n")
    source.write_text("\n".join(rows[:3]))
    assert list(build(source, tmp_path / "out")) == list(SourceExamples(source))
    assert listing(tmp_path) == ["out", "source"]


def test_several_processes_write_what_one_does(source, tmp_path, monkeypatch):
    cut_into_small_shards(monkeypatch)
    calls = []
    one = build(source, tmp_path / "one", jobs=1)
    two = build(source, tmp_path / "two", jobs=2, progress=lambda *call: calls.append(call))
    assert list(one) == list(two) and one.fingerprint == two.fingerprint
    assert len([name for name in listing(tmp_path / "two") if "array_record" in name]) == 6
    assert [done for _, done, _ in calls] == list(range(1, COUNT + 1))


ENDLESS = """
import sys, time
from mmrlhf_jax.data import processes

def adopt(what): ...

if __name__ == "__main__":
    with processes.spawn_pool(2, adopt, None) as pool:
        for _ in pool.map(time.sleep, [0, 0]):
            print("working", flush=True)
        time.sleep(600)
"""


@pytest.mark.long
def test_the_processes_of_a_killed_build_end_with_it(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(tmp_path / "endless.py")]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    parent.stdout.readline()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(parent.pid, 0)  # whether any process of its group is left
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(parent.pid, signal.SIGKILL)
    pytest.fail("processes outlived the one that started them")


def test_an_error_in_a_process_of_a_build_is_the_users(source, tmp_path, monkeypatch):
    cut_into_small_shards(monkeypatch)
    (source.parent / "9.png").write_bytes(b"GIF")
    with pytest.raises(UserError, match=r"record '3', image '9\.png': not an image"):
        build(source, tmp_path / "out", jobs=2)


def test_the_same_pipeline_runs_on_beam(source, tmp_path, monkeypatch):
    pytest.importorskip("apache_beam")
    cut_into_small_shards(monkeypatch)
    options = ["--runner=DirectRunner", "--direct_num_workers=1"]
    beam = build(source, tmp_path / "beam", beam_options=options)
    assert list(beam) == list(SourceExamples(source))
    assert beam.fingerprint == build(source, tmp_path / "one", jobs=1).fingerprint
    (source.parent / "9.png").write_bytes(b"GIF")
    with pytest.raises(UserError, match=r"^\S+rows\.jsonl: record '3', image '9\.png': not an image that can be read"):
        build(source, tmp_path / "wrong", beam_options=options)


def test_beam_that_is_not_installed_is_asked_for(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'mmrlhf-jax\[beam\]'"):
        build(source, tmp_path / "out", beam_options=[])
    assert listing(tmp_path) == ["source"]


def test_images_inside_a_parquet_file_are_built_like_files(source, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    contents = [(source.parent / f"{i}.png").read_bytes() for i in range(8)]
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [pair | {"images": [{"bytes": content, "path": None}]} for content in contents]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=3)
    assert [example.images[0] for example in build(tmp_path / "rows.parquet", tmp_path / "out")] == contents


def test_layouts_are_known_without_reading_media(source, tmp_path):
    built, original = build(source, tmp_path / "out", video_frames=3), SourceExamples(source, video_frames=3)
    for path in (tmp_path / "out").glob("*.array_record*"):
        path.write_bytes(b"")
    assert [built.layout(i) for i in range(COUNT)] == [original.layout(i) for i in range(COUNT)]
    assert (built.layout(2).images, built.layout(3).frames) == (((20, 30), (20, 30)), 3)


# Opening and worker processes ----------------------------------------------------------------------------------------


def test_open_examples_tells_directories_from_sources(source, tmp_path):
    build(source, tmp_path / "out")
    assert isinstance(open_examples(tmp_path / "out"), BuiltExamples)
    assert isinstance(open_examples(source), SourceExamples)
    with pytest.raises(UserError, match="not a built data set; make one with"):
        open_examples(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        open_examples(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match="no such file"):
        open_examples(tmp_path / "nowhere" / "records.jsonl")


@pytest.mark.parametrize("name", ["records.jsonl", "layouts.jsonl"])
def test_a_directory_that_lost_a_file_is_refused(source, tmp_path, name):
    build(source, tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing; remove the directory and build it again"):
        open_examples(tmp_path / "out")


def test_directories_of_other_programs_are_refused(source, tmp_path):
    build(source, tmp_path / "out")
    (tmp_path / "out" / "metadata.json").write_text("{}")
    with pytest.raises(UserError, match="a data set of another program"):
        open_examples(tmp_path / "out")
    (tmp_path / "out" / "dataset_info.json").write_text('{"torn')
    with pytest.raises(UserError, match=r"dataset_info\.json cannot be read") as error:
        open_examples(tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["source", "built"])
def test_examples_pickle_after_use_and_read_on(source, tmp_path, kind):
    examples = SourceExamples(source) if kind == "source" else build(source, tmp_path / "out")
    before, fingerprint = examples[1], examples.fingerprint
    examples.records  # noqa: B018  (loads them)
    copy = pickle.loads(data := pickle.dumps(examples))
    assert (copy[1], copy.fingerprint, copy.records) == (before, fingerprint, examples.records)
    if kind == "built":
        assert len(data) < 1000 + len(str(tmp_path))  # neither files nor records travel


def test_building_and_reading_import_neither_jax_nor_tensorflow(source, tmp_path):
    script = f"""
import sys
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.mixture import open_examples
build({str(source)!r}, {str(tmp_path / "out")!r})
list(open_examples({str(tmp_path / "out")!r})), list(open_examples({str(source)!r}))
print([name for name in ("jax", "jaxlib", "tensorflow", "torch", "grain") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


GRAIN_SCRIPT = """
import sys
from mmrlhf_jax.data.mixture import open_examples

def content(example):
    return example.record.id, example.images, example.frames

if __name__ == "__main__":
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain reads absl flags when it starts workers
    examples = open_examples(sys.argv[1])
    dataset = grain.MapDataset.source(examples).map(content).to_iter_dataset()
    workers = grain.MultiprocessingOptions(num_workers=1)
    read = [tuple(map(tuple, element)) for element in dataset.mp_prefetch(workers)]
    assert read == [tuple(map(tuple, content(example))) for example in examples]
    print(len(read))
"""


@pytest.mark.long
def test_grain_worker_processes_read_the_same_examples_in_order(source, tmp_path):
    build(source, tmp_path / "out")
    (tmp_path / "script.py").write_text(GRAIN_SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{COUNT}\n"
