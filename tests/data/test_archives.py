"""Sets as the hub has them: media in zip archives beside the rows, rows in shards, all of it behind hf://."""

import functools
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import pytest
from etils import epath
from etils.epath import backend
from PIL import Image

from mmrlhf_jax.data import archives, media
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.data.media import read_media, read_video_frames, resolve_media
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.shards import plan_shards
from mmrlhf_jax.data.sources import read_records
from mmrlhf_jax.data.validate import validate
from mmrlhf_jax.errors import UserError
from tests.data.hub import serve


def png(grey) -> bytes:
    out = io.BytesIO()
    Image.new("L", (20, 10), grey).save(out, "PNG")
    return out.getvalue()


MEDIA = {f"short/{i}.png": png(i) for i in range(6)} | {"mcq/deep/m.png": png(50), "plain/p.png": png(60)}
MEDIA |= {f"video/clip/{i}.png": png(100 + i) for i in range(12)}


def pairs() -> list[dict]:
    named = [{"image": f"short/{i}.png"} for i in range(6)] + [{"image": "mcq/deep/m.png"}, {"image": "plain/p.png"}]
    texts = {"prompt": "Which?", "chosen": "A", "rejected": "B", "chosen_reason": "good"}
    return [{"id": str(i)} | media | texts for i, media in enumerate([*named, {"video": "video/clip"}])]


def write_rows(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_zip(path: Path, members: dict[str, bytes], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    for name, data in MEDIA.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return write_rows(folder / "dpo_pairs.jsonl", pairs())


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """MM-RLHF's layout on the hub: an archive per kind, with that folder inside (here one without, one folder not packed)."""
    folder = tmp_path_factory.mktemp("packed")
    write_zip(folder / "short.zip", {name: data for name, data in MEDIA.items() if name.startswith("short/")})
    write_zip(folder / "mcq.zip", {"deep/m.png": MEDIA["mcq/deep/m.png"]}, compression=zipfile.ZIP_DEFLATED)
    frames = {name: data for name, data in MEDIA.items() if name.startswith("video/")}
    write_zip(folder / "video.zip", {"video/": b"", "video/clip/": b""} | frames)
    (folder / "plain").mkdir()
    (folder / "plain" / "p.png").write_bytes(MEDIA["plain/p.png"])
    write_rows(folder / "data" / "dpo_pairs.jsonl", pairs())  # a copy, for media roots that are another folder
    return write_rows(folder / "dpo_pairs.jsonl", pairs())


# Archives ------------------------------------------------------------------------------------------------------------


def test_media_in_archives_are_the_media_of_the_folders_they_stand_for(packed, unpacked):
    ours, theirs = (SourceExamples(path, video_frames=5) for path in (packed, unpacked))
    assert list(ours) == list(theirs) and ours.fingerprint == theirs.fingerprint
    assert [ours.layout(i) for i in range(len(ours))] == [theirs.layout(i) for i in range(len(theirs))]
    assert not validate(packed, video_frames=5).findings
    assert list(SourceExamples(packed.parent / "data" / packed.name, packed.parent, 5)) == list(theirs)


def test_a_set_with_archives_builds_into_what_the_unpacked_one_does_and_nothing_is_unpacked(packed, unpacked, tmp_path):
    before = sorted(packed.parent.rglob("*"))
    built = build(packed, tmp_path / "packed", video_frames=5, jobs=2)
    assert built.fingerprint == build(unpacked, tmp_path / "unpacked", video_frames=5, jobs=1).fingerprint
    assert sorted(packed.parent.rglob("*")) == before


@pytest.mark.parametrize("root", ["merged.zip", "merged"])
@pytest.mark.parametrize("inside", ["", "merged/"])
def test_a_media_root_may_be_an_archive(tmp_path, root, inside):
    """VLFeedback's layout: images by name alone, in an archive that may hold a folder of its own name."""
    write_zip(tmp_path / "merged.zip", {f"{inside}a.png": png(1), f"{inside}sub/b.png": png(2)})
    rows = [{"id": str(i), "prompt": "p", "responses": ["A"], "image": name} for i, name in enumerate(["a.png", "sub/b.png"])]
    examples = SourceExamples(write_rows(tmp_path / "rows" / "rows.jsonl", rows), tmp_path / root)
    assert [example.images for example in examples] == [(png(1),), (png(2),)]


@pytest.mark.parametrize("root", ["images/deep", "images.zip/deep"])
def test_a_media_root_may_be_a_folder_inside_an_archive(tmp_path, root):
    """As MMPR's meta.json names them: images/ScienceQA, in images.zip."""
    write_zip(tmp_path / "images.zip", {"images/deep/a.png": png(1), "images/deep/clip/2.png": png(2), "images/b.png": png(3)})
    rows = [{"id": "a", "prompt": "p", "responses": ["A"], "image": "a.png"}]
    rows += [{"id": "b", "prompt": "p", "responses": ["A"], "video": "clip"}]
    path = write_rows(tmp_path / "rows" / "rows.jsonl", rows)
    first, second = SourceExamples(path, tmp_path / root, 2)
    assert (first.images, second.frames) == ((png(1),), (png(2), png(2)))
    with pytest.raises(UserError, match="does not exist under"):
        resolve_media(tmp_path / root, "b.png", "r")
    with pytest.raises(UserError, match="leaves the media root"):
        resolve_media(tmp_path / root, "../b.png", "r")


def test_rows_may_lie_in_an_archive_too(tmp_path):
    """As MMPR has them: annotations.zip."""
    write_zip(tmp_path / "annotations.zip", {"annotations/x.jsonl": json.dumps(own("inside"))})
    assert [record.id for record in open_examples(tmp_path / "annotations" / "x.jsonl").records] == ["inside"]
    with pytest.raises(UserError, match="no such file"):
        open_examples(tmp_path / "annotations" / "y.jsonl")


def test_a_file_in_a_folder_comes_before_one_in_an_archive(tmp_path):
    write_zip(tmp_path / "short.zip", {"short/a.png": b"packed", "short/b.png": b"packed"})
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.png").write_bytes(b"unpacked")
    assert [resolve_media(tmp_path, f"short/{name}.png", "r").read_bytes() for name in "ab"] == [b"unpacked", b"packed"]
    assert resolve_media(tmp_path, "./short/../short/b.png", "r").read_bytes() == b"packed"


@pytest.mark.parametrize(
    ("folder", "archive"),
    [
        ({"v/c/0.png": b"0"}, {"c/0.png": b"0", "c/1.png": b"1", "c/2.png": b"2"}),
        ({"v/c/0.png": b"0", "v/c/1.png": b"1"}, {"v/c/0.png": b"0", "v/c/1.png": b"1", "v/c/3.png": b"2"}),
        ({"v/c/0.png": b"0", "v/c/1.png": b"1"}, {"v/c/0.png": b"0", "v/c/2.png": b"1"}),
        ({"v/c/._0.png": b""}, {"v/c/0.png": b"0"}),
    ],
)
def test_a_frame_folder_that_is_unpacked_in_part_is_refused_with_both_counts(tmp_path, folder, archive):
    for name, data in folder.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    write_zip(tmp_path / "v.zip", archive)
    count = sum(not Path(name).name.startswith(".") for name in folder)
    expected = rf"^record 'x': folder .*v/c holds {count} images, but .*v\.zip holds {len(archive)} for it"
    with pytest.raises(UserError, match=expected):
        resolve_media(tmp_path, "v/c", "record 'x'")


def test_a_frame_folder_beside_its_archive_is_read_where_both_hold_the_same_or_the_archive_is_none(tmp_path):
    (tmp_path / "v" / "c").mkdir(parents=True)
    for name in ("0.png", "1.png", "._0.png", "note.txt"):
        (tmp_path / "v" / "c" / name).write_bytes(name.encode())
    write_zip(tmp_path / "v.zip", {"v/c/0.png": b"0", "v/c/1.png": b"1", "__MACOSX/v/c/._0.png": b"", "v/other/0.png": b""})
    assert read_video_frames(resolve_media(tmp_path, "v/c", "r"), 2) == [b"0.png", b"1.png"]
    (tmp_path / "v.zip").write_bytes(b"PK not whole")
    assert read_video_frames(resolve_media(tmp_path, "v/c", "r"), 2) == [b"0.png", b"1.png"]


def test_hidden_files_in_an_archive_are_no_frames(tmp_path):
    write_zip(tmp_path / "v.zip", {"v/c/._0.png": b"", "v/c/0.png": b"0", "v/c/1.png": b"1"})
    assert read_video_frames(resolve_media(tmp_path, "v/c", "r"), 2) == [b"0", b"1"]


def test_an_archive_is_read_again_when_it_has_changed(tmp_path):
    write_zip(tmp_path / "short.zip", {"a.png": b"first"})
    assert resolve_media(tmp_path, "short/a.png", "r").read_bytes() == b"first"
    write_zip(tmp_path / "short.zip", {"a.png": b"second one"})
    assert resolve_media(tmp_path, "short/a.png", "r").read_bytes() == b"second one"


def test_frame_folders_in_archives_are_read_in_order(packed):
    clip = resolve_media(packed.parent, "video/clip", "r")
    assert read_video_frames(clip, 12) == [MEDIA[f"video/clip/{i}.png"] for i in range(12)]
    with pytest.raises(UserError, match="holds no images"):
        read_video_frames(resolve_media(packed.parent, "mcq/deep/../../video", "r"), 2)


def test_an_archive_of_frames_stands_for_their_folder(tmp_path):
    for inside in ("", "clip/"):
        write_zip(tmp_path / "video" / "clip.zip", {f"{inside}{i}.png": png(i) for i in range(11)})
        assert read_video_frames(resolve_media(tmp_path, "video/clip", "r"), 11) == [png(i) for i in range(11)]


def test_a_video_file_in_an_archive_is_decoded(tmp_path):
    import av
    import numpy as np

    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 60 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = read_video_frames(tmp_path / "clip.mp4", 4)
    write_zip(tmp_path / "video.zip", {"clip.mp4": (tmp_path / "clip.mp4").read_bytes()})
    assert read_video_frames(resolve_media(tmp_path, "video/clip.mp4", "r"), 4) == frames


def encrypted(path):
    write_zip(path, {"a.png": b"secret"})
    data = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flag, in both headers
        struct.pack_into("<H", data, data.index(signature) + place, 1)
    path.write_bytes(data)


def linked(path):
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")


def corrupt(path):
    write_zip(path, {"a.png": b"x" * 1000})
    data = bytearray(path.read_bytes())
    data[100:110] = b"y" * 10
    path.write_bytes(data)


def strangely_packed(path):
    write_zip(path, {"a.png": b"x"})
    data = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        struct.pack_into("<H", data, data.index(signature) + place, 9)  # Deflate64
    path.write_bytes(data)


WRONG = {
    encrypted: "encrypted",
    linked: "a link in the archive",
    corrupt: "damaged, or packed in an unusual way: Bad CRC",
    strangely_packed: "damaged, or packed in an unusual way",
    lambda path: path.write_bytes(b"no archive"): "not a complete zip archive",
    lambda path: path.write_bytes(write_zip(path, {"a.png": b"x" * 999}).read_bytes()[:500]): "not a complete zip archive",
    lambda path: write_zip(path, {"a.png": b"", "../../evil.png": b""}): "leads out of the archive",
    lambda path: write_zip(path, {"a.png": b"", "/etc/evil.png": b""}): "leads out of the archive",
    lambda path: write_zip(path, {"b.png": b""}): "short.zip; check path and media root",
}


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_is_wrong_with_an_archive_is_said_with_the_record(tmp_path, number):
    make, expected = list(WRONG.items())[number]
    make(tmp_path / "short.zip")
    rows = [{"id": "x", "prompt": "p", "responses": ["A"], "image": "short/a.png"}]
    with pytest.raises(UserError) as error:
        list(SourceExamples(write_rows(tmp_path / "rows.jsonl", rows)))
    assert expected in str(error.value) and "\n" not in str(error.value) and "record 'x'" in str(error.value)


@pytest.mark.parametrize("relative", ["../short/a.png", "short/../../short/a.png", "/short/a.png"])
def test_paths_do_not_leave_the_root_by_way_of_an_archive(tmp_path, relative):
    write_zip(tmp_path / "short.zip", {"a.png": b"secret"})
    (tmp_path / "root").mkdir()
    with pytest.raises(UserError, match=r"leaves the media root|must be relative"):
        resolve_media(tmp_path / "root", relative, "r")
    (tmp_path / "root" / "short.zip").symlink_to(tmp_path / "short.zip")
    with pytest.raises(UserError, match="is a link that leaves the media root"):
        resolve_media(tmp_path / "root", "short/a.png", "r")
    write_zip(tmp_path / "root.zip", {"b.png": b"secret"})  # stands for the root, which is there
    with pytest.raises(UserError, match="does not exist under"):
        resolve_media(tmp_path / "root", "b.png", "r")


def test_a_folder_is_no_picture(tmp_path):
    write_zip(tmp_path / "short.zip", {"sub/a.png": b"x"})
    with pytest.raises(UserError, match=r"short\.zip/sub cannot be read \(is a folder\)"):
        read_media(resolve_media(tmp_path, "short/sub", "r"), "r")
    with pytest.raises(UserError, match="the media root is not a folder, nor a zip archive"):
        SourceExamples(write_rows(tmp_path / "rows.jsonl", pairs()), tmp_path / "nowhere")


# Shards --------------------------------------------------------------------------------------------------------------


def own(name, **fields):
    return {"id": name, "prompt": "p", "responses": [{"text": "A", "rank": 1}, {"text": "B", "rank": 2}]} | fields


@pytest.fixture
def shards(tmp_path):
    for i in (0, 1, 2, 10):
        write_rows(tmp_path / "data" / f"part-{i}.jsonl", [own(f"{i}.{j}") for j in range(2)])
    return tmp_path / "data"


IN_ORDER = [f"{i}.{j}" for i in (0, 1, 2, 10) for j in range(2)]


def test_a_folder_and_a_pattern_of_shards_are_one_source_in_the_order_of_their_numbers(shards):
    for source in (shards, f"{shards}/part-*.jsonl", f"{shards}/*", f"{shards.parent}/*/part-*.jsonl", shards.parent):
        assert [record.id for record in read_records(source)] == IN_ORDER
        assert [record.id for record in open_examples(str(source)).records] == IN_ORDER
    assert [record.id for record in read_records(f"{shards}/part-[12].jsonl")] == IN_ORDER[2:6]
    assert [record.id for record in read_records(f"{shards}/part-?.jsonl")] == IN_ORDER[:6]


def test_shards_build_into_one_set(shards, tmp_path):
    write_rows(tmp_path / "all.jsonl", [own(name) for name in IN_ORDER])
    built = build(f"{shards}/part-*.jsonl", tmp_path / "out", jobs=1)
    assert built.fingerprint == SourceExamples(tmp_path / "all.jsonl").fingerprint
    assert build(shards, tmp_path / "out", jobs=1).fingerprint == built.fingerprint


def test_pairs_of_one_prompt_fold_across_shards(tmp_path):
    row = {"id": "x", "prompt": "p", "chosen": "A", "rejected": "B"}
    write_rows(tmp_path / "a-0.jsonl", [row])
    write_rows(tmp_path / "a-1.jsonl", [row | {"rejected": "C"}, row | {"chosen": "B", "rejected": "C"}])
    (record,) = read_records(tmp_path)
    assert [(r.text, r.rank) for r in record.responses] == [("A", 1), ("B", 2), ("C", 3)]


def test_images_inside_parquet_shards_are_found_in_their_own_shard(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    for number, (folder, count) in enumerate((("en", 2), ("en", 2), ("de", 1))):
        cells = [{"bytes": png(9 * number + i), "path": "x"} for i in range(3)]
        rows = [{"prompt": "p", "chosen": "A", "rejected": "B", "image": cell} for cell in cells]
        (tmp_path / folder).mkdir(exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / folder / f"train-{number % 2:05}-of-{count:05}.parquet")
    examples = SourceExamples(f"{tmp_path}/*/train-*.parquet")
    assert [example.images[0] for example in examples] == [png(i) for i in (18, 19, 20, 0, 1, 2, 9, 10, 11)]
    assert examples.records[0].images == ("de/train-00000-of-00001.parquet/0/image",)
    assert [example.images[0] for example in SourceExamples(tmp_path / "en")] == [png(i) for i in (0, 1, 2, 9, 10, 11)]


@pytest.mark.parametrize("name", ["a[1].jsonl", "b*.jsonl", "c?.jsonl", "{d,e}.jsonl"])
def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path, name):
    for decoy in ("a1.jsonl", "bb.jsonl", "cc.jsonl", "d.jsonl", "e.jsonl"):
        write_rows(tmp_path / "x[y]" / decoy, [own(decoy)])
    path = write_rows(tmp_path / "x[y]" / name, [own("right")])
    assert [record.id for record in open_examples(str(path)).records] == ["right"]
    assert {"bb.jsonl", "cc.jsonl"} <= {record.id for record in read_records(f"{path.parent}/[bc]?.jsonl")}


FOLDERS = {
    ("a.jsonl", "b.parquet"): "holds rows of several kinds, a.jsonl, b.parquet; name those that are meant",
    ("train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"): "holds the splits test, train; name those that are meant",
    ("train.jsonl", "test.jsonl"): "holds the splits test, train; name those that are meant",
    ("short_val.jsonl", "short-train.jsonl"): "holds the splits train, validation; name those that are meant",
    ("train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"): "2 of the 3 files of train, train-00001-of-00003.jsonl is",
    ("train-00001-of-00002-6f3b.jsonl",): "holds 1 of the 2 files of train, train-00000-of-00002-6f3b.jsonl is missing",
    ("README.md",): "holds no rows",
    (".rows.jsonl",): "holds no rows",
    ("data-00000-of-00001.arrow", "dataset_info.json", "state.json"): "Arrow files of `save_to_disk`",
}


def test_shards_that_a_pattern_leaves_out_are_not_missed(tmp_path):
    for number in (0, 1, 3):
        write_rows(tmp_path / f"train-{number:05}-of-00004.jsonl", [own(str(number))])
    write_rows(tmp_path / ".train-00002-of-00004.jsonl", [own("hidden")])
    assert [record.id for record in read_records(f"{tmp_path}/train-0000[01]-*.jsonl")] == ["0", "1"]
    for pattern in ("train-*.jsonl", "*", "train-0000[0-2]-of-00004.jsonl"):
        with pytest.raises(UserError, match=r"train-00002-of-00004\.jsonl is missing; fetch it, or name"):
            read_records(f"{tmp_path}/{pattern}")
    assert [record.id for record in read_records(f"{tmp_path}/.train-00002*")] == ["hidden"]


@pytest.mark.parametrize("names", FOLDERS)
def test_a_folder_that_is_not_one_source_is_refused_in_one_line(tmp_path, names):
    for name in names:
        write_rows(tmp_path / name, [own(name)])
    with pytest.raises(UserError) as error:
        open_examples(tmp_path)
    assert FOLDERS[names] in str(error.value) and "\n" not in str(error.value)


def test_what_else_is_wrong_with_shards(tmp_path):
    write_rows(tmp_path / "a-1.jsonl", [own("x")])
    write_rows(tmp_path / "a-2.jsonl", [{"prompt": "p", "chosen": "A", "rejected": "B"}])
    with pytest.raises(UserError, match=r"a-2\.jsonl: is in the form TRL .* but a-1\.jsonl is ranking groups"):
        read_records(f"{tmp_path}/a-*.jsonl")
    write_rows(tmp_path / "a-2.jsonl", [own("x")])
    with pytest.raises(UserError, match="id 'x' is used twice"):
        read_records(tmp_path)
    for pattern, expected in (("*.parquet", "no file is named like that"), ("**/a.jsonl", r"'\*\*' is not understood")):
        with pytest.raises(UserError, match=expected):
            read_records(f"{tmp_path}/{pattern}")


def test_a_hub_id_without_its_address_is_known_for_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file; a data set on the hub is named hf://datasets/openbmb/RLAIF-V-Dataset"):
        open_examples("openbmb/RLAIF-V-Dataset")
    with pytest.raises(UserError, match=r"^nowhere/rows\.jsonl: no such file$"):
        open_examples("nowhere/rows.jsonl")


# The hub -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(packed, monkeypatch):
    """The packed set as hf://datasets/made/up, through huggingface_hub's own file system."""
    from huggingface_hub import constants

    remembered = (backend.fsspec_backend._get_filesystem, archives._read_remote_directory, media._is_remote_folder)
    with serve(packed.parent) as (hub, address):
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        for cache in remembered:
            cache.cache_clear()
        yield hub
    for cache in remembered:
        cache.cache_clear()


def test_a_set_on_the_hub_builds_into_what_the_local_one_does(hub, unpacked, tmp_path):
    local = build(unpacked, tmp_path / "local", video_frames=5, jobs=1)
    for number, source in enumerate(("dpo_pairs.jsonl", "dpo_*.jsonl", "data")):
        root = "hf://datasets/made/up@v1" if source == "data" else None
        built = build(f"hf://datasets/made/up@v1/{source}", tmp_path / f"{number}", root, video_frames=5, jobs=1)
        assert built.fingerprint == local.fingerprint and list(built) == list(local)


def test_another_file_of_the_same_size_on_the_hub_is_another_shard(hub, packed, tmp_path):
    """A build that was cut off goes on only from what was made of the same content, and the hub tells no times."""
    rows = write_rows(tmp_path / "rows.jsonl", [own("x", image="plain/p.png")])

    def key():
        backend.fsspec_backend._get_filesystem.cache_clear()
        type(fsspec.filesystem("hf")).clear_instance_cache()
        examples = SourceExamples(rows, "hf://datasets/made/up")
        return plan_shards(examples, epath.Path(tmp_path), epath.Path(tmp_path))[0].key

    first = key()
    assert key() == first
    image = packed.parent / "plain" / "p.png"
    image.write_bytes(MEDIA["plain/p.png"][:-1] + b"!")
    try:
        assert key() != first
    finally:
        image.write_bytes(MEDIA["plain/p.png"])


def test_of_an_archive_on_the_hub_only_what_is_wanted_is_fetched(hub, packed):
    padding = {f"short/other{i}.bin": os.urandom(1 << 20) for i in range(8)}
    small = packed.parent / "short.zip"
    before = small.read_bytes()
    try:
        write_zip(small, {name: data for name, data in MEDIA.items() if name.startswith("short/")} | padding)
        examples = SourceExamples("hf://datasets/made/up/dpo_pairs.jsonl", video_frames=5)
        assert [examples[i].images[0] for i in range(6)] == [MEDIA[f"short/{i}.png"] for i in range(6)]
        assert 0 < hub.sent("short.zip") < 2 << 20 < small.stat().st_size
        assert hub.listings < 12  # and no question twice
    finally:
        small.write_bytes(before)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://datasets/no/such/a.jsonl", "no such repository on http"),
        ("hf://made/up/a.jsonl", "a data set's path is hf://datasets/OWNER/NAME/"),
        ("hf://datasets/made/up@v2/dpo_pairs.jsonl", "no such revision"),
        ("hf://datasets/made/gated/dpo_pairs.jsonl", "is gated; accept its conditions"),
        ("hf://datasets/made/up/nowhere.jsonl", "no such file"),
        ("hf://datasets/made/up/*.parquet", "no file is named like that"),
        ("hf://datasets/made/up/plain", "holds no rows"),
        ("hf://datasets/made", "not a path on the hub"),
        ("hf://x", "not a path on the hub"),
    ],
)
def test_what_is_wrong_on_the_hub_is_one_line(hub, source, expected):
    with pytest.raises(UserError) as error:
        open_examples(source)
    assert expected in str(error.value) and "\n" not in str(error.value) and source.split("*")[0] in str(error.value)


def test_a_media_root_on_the_hub_may_be_an_archive(hub, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [own("x", image="3.png")])
    for root in ("short.zip", "short"):
        (example,) = SourceExamples(rows, f"hf://datasets/made/up@v1/{root}")
        assert example.images == (MEDIA["short/3.png"],)


def test_media_that_are_missing_on_the_hub_are_named_with_their_record(hub, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [own("x", image="short/none.png")])
    with pytest.raises(UserError, match=r"record 'x': media file 'short/none\.png' does not exist under hf://datasets/made/up"):
        list(SourceExamples(rows, "hf://datasets/made/up"))
    with pytest.raises(UserError, match="no such repository"):
        SourceExamples(rows, "hf://datasets/no/such")


RUN = "from mmrlhf_jax.cli import main; main()"


def mmrlhf(*arguments, **environment):
    path = os.pathsep.join(filter(None, sys.path))
    variables = os.environ | {"PYTHONPATH": path, "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_from_hub_id_to_a_built_set_in_one_command_with_the_token_of_the_environment(packed, unpacked, tmp_path):
    with serve(packed.parent) as (hub, address):
        run = functools.partial(mmrlhf, "data", "build", "hf://datasets/made/gated/dpo_pairs.jsonl", HF_ENDPOINT=address)
        refused = run(tmp_path / "out", "--video-frames", "5", HF_TOKEN="hf_wrong")
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "is gated" in refused.stderr
        done = run(tmp_path / "out", "--video-frames", "5", HF_TOKEN="hf_right")
        assert done.returncode == 0, done.stderr
        assert "Bearer hf_right" in hub.tokens
    assert open_examples(tmp_path / "out").fingerprint == SourceExamples(unpacked, video_frames=5).fingerprint


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path):
    offline = mmrlhf("data", "validate", "hf://datasets/made/up/a.jsonl", HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and "HF_HUB_OFFLINE is set" in offline.stderr and offline.stderr.count("\n") == 1
    down = mmrlhf("data", "validate", "hf://datasets/made/up/a.jsonl", HF_ENDPOINT="http://127.0.0.1:9")
    assert down.returncode == 2 and "http://127.0.0.1:9 cannot be reached" in down.stderr and down.stderr.count("\n") == 1
