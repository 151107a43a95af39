"""Parquet: whatever types its columns have, rows are read as their JSON would be, and images only when they are asked for."""

import base64
import datetime
import decimal
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mmrlhf_jax import faults
from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.sources import embedded, read_records
from mmrlhf_jax.data.sources import parquet as reader
from mmrlhf_jax.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PAIR = {"prompt": "Which?", "chosen": "A", "rejected": "B"}


def png(grey=100, size=(9, 7)) -> bytes:
    out = io.BytesIO()
    Image.new("L", size, grey).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def write(tmp_path):
    def write(rows=None, name="rows.parquet", schema=None, **options):
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema)
        pq.write_table(table, tmp_path / name, **options)
        return tmp_path / name

    return write


def with_column(name, array):
    """Two pairs and a column of two cells."""
    return pa.table({key: [value] * 2 for key, value in PAIR.items()} | {name: array})


def message(path) -> str:
    with pytest.raises(UserError) as error:
        list(open_examples(path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


NEEDLESS = {
    "timestamp of nanoseconds": (pa.array([1, 2], pa.timestamp("ns", "UTC")), "1970-01-01 00:00:00.000000001Z"),
    "timestamp beyond Python's years": (pa.array([2**49, 1], pa.timestamp("ms")), "19809-03-05 11:03:41.312"),
    "date": (pa.array([datetime.date(2024, 2, 29)] * 2), "2024-02-29"),
    "time": (pa.array([datetime.time(1, 2, 3)] * 2), "01:02:03.000000"),
    "duration": (pa.array([5, 6], pa.duration("ms")), 5),
    "decimal": (pa.array([decimal.Decimal("1.50")] * 2), "1.50"),
    "big decimal": (pa.array([decimal.Decimal("1.50")] * 2, pa.decimal256(50, 2)), "1.50"),
    "binary": (pa.array([b"\xff\x00", b""]), {"bytes": "rows.parquet/0/column"}),
    "fixed binary": (pa.array([b"abcd", b"efgh"], pa.binary(4)), {"bytes": "rows.parquet/0/column"}),
    "large binary": (pa.array([b"abcd", None], pa.large_binary()), {"bytes": "rows.parquet/0/column"}),
    "map": (pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())), [["k", 1]]),
    "times in a map": (
        pa.array([[("k", 1), ("l", None)], None], pa.map_(pa.string(), pa.timestamp("ns"))),
        [["k", "1970-01-01 00:00:00.000000001"], ["l", None]],
    ),
    "maps in a list": (
        pa.array([[[("k", 1)], None], []], pa.list_(pa.map_(pa.string(), pa.time64("ns")))),
        [[["k", "00:00:00.000000001"]], None],
    ),
    "a view of times": (pa.array([[1], None], pa.list_view(pa.time64("ns"))), ["00:00:00.000000001"]),
    "large text": (pa.array(["t", None], pa.large_string()), "t"),
    "large list": (pa.array([[1], []], pa.large_list(pa.int8())), [1]),
    "fixed list": (pa.array([[1, 2], None], pa.list_(pa.int8(), 2)), [1, 2]),
    "dictionary": (pa.array(["cat", "dog"]).dictionary_encode(), "cat"),
    "dictionary of bytes": (pa.array([b"cat", b"dog"]).dictionary_encode(), {"bytes": "rows.parquet/0/column"}),
    "not a number": (pa.array([float("nan"), float("inf")]), "nan"),
    "half": (pa.array(np.array([0.5, 1], np.float16)), 0.5),
    "unsigned": (pa.array([2**64 - 1, 0], pa.uint64()), 2**64 - 1),
    "null": (pa.nulls(2), None),
    "times in lists in objects": (
        pa.array(
            [{"t": [datetime.date(2024, 1, 1)], "u": None}, None], pa.struct({"t": pa.list_(pa.date32()), "u": pa.int8()})
        ),
        {"t": ["2024-01-01"]},
    ),
    "bytes in objects": (pa.array([{"a": {"b": b"x"}}, None]), {"a": {"b": {"bytes": "rows.parquet/0/column/a/b"}}}),
}


@pytest.mark.parametrize("kind", NEEDLESS)
def test_a_column_that_nobody_needs_is_kept_as_json_has_it(write, kind):
    array, expected = NEEDLESS[kind]
    first, second = read_records(write(with_column("column", array)))
    assert [r.text for r in first.responses] == [r.text for r in second.responses] == ["A", "B"]
    assert first.extra.get("column") == expected
    assert json.loads(json.dumps(first.extra, allow_nan=False)) == first.extra


def test_scores_that_are_no_numbers_and_text_that_is_bytes_are_refused_where_they_are_needed(write):
    scored = {
        "id": "a",
        "question": "q",
        "models_output": ["a", "b"],
        "final_ranking": None,
        "helpfulness": [1.0, float("nan")],
    }
    assert "a score of 'helpfulness' must be a finite number" in message(write([scored]))
    assert "field 'chosen' must be a string" in message(write([PAIR | {"chosen": b"A"}]))


CELLS = {
    "plain bytes": (lambda data: {"image": data}, "image"),
    "an object": (lambda data: {"image": {"bytes": data, "path": "no such file.png"}}, "image"),
    "an object that says more": (lambda data: {"image": {"bytes": data, "path": None, "format": "PNG", "width": 9}}, "image"),
    "a list of objects that say more": (lambda data: {"images": [{"bytes": data, "mime": "image/png"}]}, "images/0"),
    "an object without a path": (lambda data: {"image": {"bytes": data}}, "image"),
    "a list of objects": (lambda data: {"images": [{"bytes": data, "path": None}]}, "images/0"),
    "a list of bytes": (lambda data: {"images": [data]}, "images/0"),
}


@pytest.mark.parametrize("kind", CELLS)
def test_images_are_read_from_every_kind_of_cell(write, kind):
    cell, name = CELLS[kind]
    examples = SourceExamples(write([PAIR | cell(png(grey)) for grey in (10, 20, 30)], row_group_size=2))
    assert [record.images for record in examples.records] == [(f"rows.parquet/{i}/{name}",) for i in range(3)]
    assert [example.images for example in examples] == [(png(grey),) for grey in (10, 20, 30)]
    assert examples.layout(2).images == ((7, 9),)


def test_images_inside_the_parts_of_a_prompt_are_read(write):
    none = {"bytes": None, "path": None}
    parts = [{"type": "image", "text": None, "image": {"bytes": png(), "path": "x.png"}}]
    parts += [{"type": "text", "text": "Which?", "image": none}]
    row = {"prompt": [{"role": "user", "content": parts}], "chosen": "A", "rejected": "B"}
    (example,) = SourceExamples(write([row]))
    assert (example.record.prompt, example.images) == ("Which?", (png(),))


@pytest.mark.parametrize("empty", [b"", None])
def test_a_cell_without_bytes_is_its_path(write, tmp_path, empty):
    (tmp_path / "there.png").write_bytes(png(7))
    path = write(
        [
            PAIR | {"images": [{"bytes": empty, "path": "there.png"}, {"bytes": png(8), "path": "x.png"}]},
            PAIR | {"images": [{"bytes": empty, "path": None}] * 0},
        ]
    )
    first, second = SourceExamples(path)
    assert first.images == (png(7), png(8)) and second.images == ()
    (one,) = SourceExamples(write([PAIR | {"image": {"bytes": empty, "path": "there.png"}}], name="one.parquet"))
    assert one.images == (png(7),)
    (none,) = SourceExamples(write([PAIR | {"image": {"bytes": empty, "path": None}}], name="none.parquet"))
    assert none.images == ()


def test_a_null_among_images_or_answers_is_named_in_one_short_line(write):
    image = {"bytes": png(200, (400, 400)) * 500, "path": None}
    assert "field 'images' must hold paths, found None" in message(write([PAIR | {"images": [None, image]}]))
    assert "found {'url': 'a.png'}" in message(write([PAIR | {"images": [{"url": "a.png"}]}]))
    assert "found {'bytes': 'rows.parquet/0/chosen', 'kind': 'image'}" in message(write([PAIR | {"chosen": image["bytes"]}]))
    own = {"id": "a", "prompt": "p", "responses": [{"text": "A"}, None], "image": image}
    assert "expected a JSON object with 'text'" in message(write([own]))


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
@pytest.mark.parametrize("own", [False, True])
def test_base64_is_refused_by_that_name_and_not_shown(tmp_path, write, prefix, own):
    text = prefix + base64.b64encode(png(200, (300, 300)) * 5000).decode()
    row = {"id": "a", "prompt": "p", "responses": ["A"], "images": [text]} if own else PAIR | {"image": text}
    for path in (write([row]), tmp_path / "rows.jsonl"):
        if path.suffix == ".jsonl":
            path.write_text(json.dumps(row))
        assert "a picture as base64 text" in message(path)
    found = []
    assert read_records(tmp_path / "rows.jsonl", found.append) == [] and len(found) == 1


CELLS_OF_TEXT = [lambda text: {"bytes": text, "path": None}, lambda text: [{"url": text}], lambda text: {"base64": text}]


@pytest.mark.parametrize("cell", CELLS_OF_TEXT)
def test_base64_inside_an_object_is_refused_by_that_name(tmp_path, cell):
    text = base64.b64encode(png(200, (300, 300))).decode()
    own = {"id": "a", "prompt": "p", "responses": ["A"]}
    for row in (PAIR, own):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"image": cell(text)}))
        assert "field 'image' holds a picture as base64 text ('iVBOR" in message(tmp_path / "rows.jsonl")


def test_a_video_inside_parquet_is_decoded(write, tmp_path):
    import av

    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for grey in (0, 120, 240):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "rows.jsonl").write_text(json.dumps(PAIR | {"video": "clip.mp4"}))
    inside = SourceExamples(write([PAIR | {"video": {"bytes": data, "path": "clip.mp4"}}]), video_frames=3)
    beside = SourceExamples(tmp_path / "rows.jsonl", video_frames=3)
    assert inside[0].frames == beside[0].frames and len(inside[0].frames) == 3
    assert inside.media_files(0)[0].read_bytes() == data and inside.digest(0) != beside.digest(0)


@pytest.mark.parametrize("path", ["data/a.png", "iVBORw0KGgo.png", "9j/a", "R0lGODlh"])
def test_paths_are_not_taken_for_base64(tmp_path, path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(PAIR | {"image": path}))
    (record,) = read_records(tmp_path / "rows.jsonl")
    assert record.images == (path,)


@pytest.mark.parametrize("name", ["blob/main", "0", "a.b", "ünder 100%"])
def test_column_names_may_hold_slashes_digits_and_dots(write, name):
    table = with_column(name, [b"x", b"y"]).append_column("image", [[png(1), png(2)]])
    examples = SourceExamples(write(table))
    assert [example.images[0] for example in examples] == [png(1), png(2)]
    assert set(examples.records[0].extra) == {name}
    from mmrlhf_jax.data.sources.embedded import find_embedded

    named = examples.records[1].extra[name]["bytes"]
    assert find_embedded(examples.path, "rows.parquet", named, "here").read_bytes() == b"y"


def test_objects_lose_the_nulls_that_arrow_gives_them(write):
    rows = [
        {
            "id": "a",
            "prompt": "p",
            "responses": [{"text": "A", "rank": 1, "scores": {"ethics": 5.0}}, {"text": "B", "rank": 2}],
        },
        {"id": "b", "prompt": "p", "responses": [{"text": "A", "critique": "good"}, {"text": "B"}]},
    ]
    path = write(rows)
    jsonl = path.with_suffix(".jsonl")
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_records(path) == read_records(jsonl)


def test_two_columns_of_one_name_and_damaged_files_end_in_one_line(write, tmp_path):
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["chosen", "chosen"])
    assert "two columns are named 'chosen'" in message(write(twice))
    whole = write([PAIR] * 1000).read_bytes()
    for start in range(4, len(whole) - 300, len(whole) // 5):
        damaged = whole[:start] + b"\xff" * 200 + whole[start + 200 :]
        (tmp_path / "damaged.parquet").write_bytes(damaged)
        try:
            read_records(tmp_path / "damaged.parquet")
        except UserError as error:
            assert "damaged.parquet" in str(error) and "\n" not in str(error)


def test_rows_are_listed_without_reading_their_images(write, monkeypatch):
    """The leaves that are read do not hold the bytes of images, where no row lacks its image."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, 100_000, np.uint8).tobytes() for _ in range(20)]
    read = []
    iter_batches = pq.ParquetFile.iter_batches

    def spied(self, *args, **options):
        for batch in iter_batches(self, *args, **options):
            read.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spied)
    for name, cell in {
        "image": lambda data: {"bytes": data, "path": None},
        "images": lambda data: [{"bytes": data, "path": "x"}],
    }.items():
        read.clear()
        examples = SourceExamples(write([PAIR | {name: cell(data)} for data in images], name=f"{name}.parquet"))
        assert sum(read) < 10_000
        assert [examples[i].images[0] for i in (0, 19)] == [images[0], images[19]]


def test_an_empty_image_among_full_ones_is_named(write):
    image = {"bytes": np.random.default_rng(0).integers(0, 256, 10_000, np.uint8).tobytes(), "path": "a.png"}
    path = write([PAIR | {"image": image}, PAIR | {"image": {"bytes": b"", "path": "b.png"}}])
    assert "the image is empty here, only its path 'b.png'" in message(path)


def test_rows_that_lack_images_are_read_in_small_batches(write, monkeypatch):
    monkeypatch.setattr(reader, "BATCH_BYTES", 300_000)
    image = {"bytes": np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes(), "path": None}
    sizes = []
    iter_batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda self, size, **options: sizes.append(size) or iter_batches(self, size, **options)
    )
    path = write([PAIR | {"images": [image] * (i % 2)} for i in range(20)], row_group_size=10, use_dictionary=False)
    assert [len(record.images) for record in read_records(path)] == [0, 1] * 10
    assert sizes and max(sizes) < 10


def test_images_of_one_large_row_group_are_read_in_any_order_from_a_window_of_it(write, monkeypatch):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, 10_000, np.uint8).tobytes() for _ in range(60)]
    path = write([PAIR | {"image": {"bytes": data, "path": "x"}} for data in images])
    monkeypatch.setattr(embedded, "WINDOW_BYTES", 100_000)
    embedded._column.cache_clear()
    examples = SourceExamples(path)
    order = [*range(60), 3, 59, 0, *rng.integers(0, 60, 20).tolist()]
    assert [examples[i].images[0] for i in order] == [images[i] for i in order]
    column = embedded._column(examples.path, 0, "image")
    assert sum(array.nbytes for _, array in column._kept) < 150_000
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: examples[i].images[0], order)) == [images[i] for i in order]
    embedded._column.cache_clear()


def test_a_damaged_image_column_is_named_with_its_record_when_it_is_read(write):
    """The listing leaves the images out, so that it does not see the damage."""
    image = {"bytes": np.random.default_rng(0).integers(0, 256, 50_000, np.uint8).tobytes(), "path": "x"}
    path = write(pa.table({"image": [image] * 3} | {name: [text] * 3 for name, text in PAIR.items()}), compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:5_000] = bytes(4_996)  # the first page, of the first column
    path.write_bytes(data)
    examples = SourceExamples(path)
    with pytest.raises(
        UserError, match=r"record 'row-1': media file .*rows\.parquet/0/image cannot be read \(the parquet"
    ) as error:
        examples[0]
    assert "\n" not in str(error.value)


def test_a_passing_error_of_the_storage_costs_no_image(write, monkeypatch):
    images = [png(i) * 40 for i in range(6)]
    examples = SourceExamples(write([PAIR | {"image": {"bytes": data, "path": "x"}} for data in images], row_group_size=3))
    monkeypatch.setattr(faults, "FIRST_DELAY", 0)
    embedded._column.cache_clear()
    iter_batches, failures = pq.ParquetFile.iter_batches, iter([OSError(5, "Input/output error"), OSError(503, "unavailable")])

    def failing(self, *args, **options):
        if error := next(failures, None):
            raise error
        yield from iter_batches(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", failing)
    assert [example.images[0] for example in examples] == images
    assert next(failures, None) is None


TWICE = pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], names=["a", "a"])


@pytest.mark.parametrize(
    "column",
    [
        TWICE,
        pa.StructArray.from_arrays([TWICE], names=["inner"]),
        pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), TWICE),
        pa.StructArray.from_arrays([pa.array([datetime.date(2024, 2, 29)] * 2), pa.array([3, 4])], names=["a", "a"]),
    ],
    ids=["object", "object in an object", "list of objects", "object with a date"],
)
def test_objects_with_two_fields_of_one_name_are_refused_by_column_and_name(write, column):
    """JSON with a key twice is refused, too."""
    assert "rows.parquet: column 'note' has two fields named 'a'" in message(write(with_column("note", column)))
