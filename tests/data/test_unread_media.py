"""Media that no reader reads are seen under any name and in any form; a second name of what was read must fit it."""

import base64
import io
import json

import pytest
from PIL import Image

from mmrlhf_jax.data.sources import read_records
from mmrlhf_jax.data.sources.embedded import media_kind
from mmrlhf_jax.places import WrongMedia

PAIR = {"prompt": "Which?", "chosen": "A", "rejected": "B"}
OWN = {"id": "r", "prompt": "Which?", "responses": [{"text": "A", "rank": 1}, {"text": "B", "rank": 2}]}
SWIFT = {"query": "Which?", "response": "A", "rejected_response": "B"}
ONE, TWO, CLIP = {"images": ["train/a.png"]}, {"images": ["a.png", "b.png"]}, {"video": "clips/v.mp4"}


def read(folder, row):
    (folder / "rows.jsonl").write_text(json.dumps(row))
    (record,) = read_records(folder / "rows.jsonl")
    return record


def picture(kind="PNG"):
    out = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("row", [PAIR, OWN, SWIFT])
@pytest.mark.parametrize(
    "field",
    [
        *(
            {name: "clips/7"}
            for name in ("video_dir", "frame_dir", "frames_dir", "video_folder", "clipDirectory", "videofolder")
        ),
        *({name: "a/b"} for name in ("image_dir", "image_folder", "img_root", "visual_path", "photo_directory", "imagedir")),
        *({name: "0001"} for name in ("image_name", "imageName", "picture_names", "video_name")),
        *({name: "x/y"} for name in ("jpg", "png", "webp", "mp4", "MKV", "gif", "mp3", "jpeg_path")),
        {"image_info": {"name": "a"}},
        {"image_metadata": {"width": 3, "file_name": "a"}},
        {"media": [{"type": "image", "value": "abc"}]},
        {"attachments": [{"type": "image", "url": "https://host/p.jpg?w=3#top"}]},
        {"url": "https://host/p.jpg?w=3"},
        {"links": ["https://host/page", "https://host/p.webp?size=big"]},
        {"scan": "7/a.dcm"},
        {"content": base64.b64encode(picture()).decode()},
        {"before": "data:image/png;base64,iVBORw0KGgo="},
    ],
)
def test_media_are_seen_under_names_of_places_types_and_parts(tmp_path, row, field):
    with pytest.raises(WrongMedia, match=r"rows\.jsonl:1.*seems to hold media"):
        read(tmp_path, row | field)


@pytest.mark.parametrize(
    "field",
    [
        {"name": "0001", "dir": "a/b", "root": "c", "folder": "d"},  # of what, nobody says
        {"movie_name": "Titanic", "voice_name": "alloy", "visual": "clear", "visual_faithfulness": "4"},
        {"image_count": 3, "video_length": 2.5, "image_info": {"width": 3}},
        {"url": "https://host/page?file=a.jpg", "data": "aGVsbG8gd29ybGQ=", "note": "data: see below"},
        {"caption": "How big is a.jpg? I do not know"},
    ],
)
def test_what_names_no_medium_is_kept(tmp_path, field):
    record = read(tmp_path, OWN | field)
    assert record.extra == field and not record.images


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("name", ["jpg", "content", "data", "note"])
def test_bytes_of_a_picture_in_parquet_are_seen_in_a_column_of_any_name(tmp_path, kind, name):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    content = picture(kind)
    for cell in (content, [content], {"bytes": content, "path": None}, {"deep": {"bytes": content, "size": 3}}):
        parquet.write_table(pa.Table.from_pylist([PAIR | {name: cell}]), tmp_path / "rows.parquet")
        with pytest.raises(WrongMedia, match=r"rows\.parquet\[0\].*seems to hold media"):
            read_records(tmp_path / "rows.parquet")
        parquet.write_table(pa.Table.from_pylist([PAIR | {"note": b"\1\2\3", "image": content}]), tmp_path / "rows.parquet")
        (record,) = read_records(tmp_path / "rows.parquet")
        assert record.images == ("rows.parquet/0/image",) and record.extra["note"] == {"bytes": "rows.parquet/0/note"}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x20ftypisom\0\0\2\0", "video"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "image"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81", "video"),
        (b"RIFF\1\2\3\4AVI LIST", "video"),
        (b"RIFF\1\2\3\4WAVEfmt ", "audio"),
        (b"RIFF\1\2\3\4WEBPVP8 ", "image"),
        (b"ID3\4\0\0\0\0", "audio"),
        (b"hello, world", None),
        (b"BM is a name", None),
        (b"", None),
    ],
)
def test_bytes_are_known_by_what_files_of_their_kind_begin_with(content, kind):
    assert media_kind(content) == kind


@pytest.mark.parametrize("row", [PAIR, OWN])
@pytest.mark.parametrize(
    "field",
    [
        *(
            ONE | {name: "b.png"}
            for name in ("source_image", "original_image", "image_file", "image_path", "image_name", "img_id")
        ),
        *(ONE | {name: "train/a.png"[6:]} for name in ("source_image", "original_image")),  # another folder's, for all we know
        ONE | {"image_list": ["b.png"]},
        ONE | {"image_info": {"file_name": "b.png"}},
        ONE | {"image_name": "b"},
        TWO | {"image_paths": ["c.png", "d.png"]},
        TWO | {"image_paths": ["b.png", "a.png"]},
        CLIP | {"video_path": "w.mp4"},
        CLIP | {"video_name": "w"},
    ],
)
def test_a_second_name_that_is_another_files_is_refused(tmp_path, row, field):
    with pytest.raises(WrongMedia, match="seems to hold media"):
        read(tmp_path, row | field)


@pytest.mark.parametrize(
    "field",
    [
        ONE | {"image_path": "coco/train2017/a.png", "image_name": "a", "image_file": "a.png", "image_id": "a.png"},
        ONE | {"image_url": "https://host/other.jpg", "image_abs_path": ["train/a.png"]},
        ONE | {"original_image_path": "/data/first.png", "source_image_url": "https://host/first.png"},
        ONE | {"image_info": {"file_name": "a.png", "width": 3}, "source_image": "train/a.png"},
        ONE | {"image_path": "C:\\pictures\\b.png"},
        TWO | {"image_paths": ["x/a.png", "y/b.png"], "image_urls": ["https://host/1", "https://host/2"]},
        CLIP | {"video_path": "v.mp4", "video_name": "v"},
    ],
)
def test_a_second_name_of_the_same_file_or_an_address_of_it_is_kept(tmp_path, field):
    record = read(tmp_path, OWN | field)
    assert record.extra == {name: value for name, value in field.items() if name not in ("images", "video")}


def test_a_picture_inside_parquet_may_have_any_second_name(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = PAIR | {"image": {"bytes": picture(), "path": "7.png"}, "image_path": "RLAIF-V/COCO_1.jpg", "image_name": "0001"}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    assert read_records(tmp_path / "rows.parquet")[0].images == ("rows.parquet/0/image",)
