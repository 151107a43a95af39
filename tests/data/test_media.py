"""Media paths stay inside their root, videos give evenly spaced frames, and damaged files are found."""

import io
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmrlhf_jax.data.media import read_video_frames, resolve_media, video_files
from mmrlhf_jax.data.names import in_order
from mmrlhf_jax.errors import UserError


def encoded(format="PNG", size=(40, 30), colour=(10, 200, 30)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 40, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise + np.uint8(colour)).save(out, format=format)
    return out.getvalue()


# Paths ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.png").write_bytes(b"a")
    (tmp_path / "outside.png").write_bytes(b"secret")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "a.png").write_bytes(b"secret")
    return root


@pytest.mark.parametrize("relative", ["sub/a.png", "./sub/../sub/a.png", "sub"])
def test_paths_inside_the_root_are_found(root, relative):
    assert resolve_media(root, relative, "r").resolve() == (root / relative).resolve()


def test_links_that_stay_inside_and_a_root_that_is_a_link_are_fine(root, tmp_path):
    (root / "link.png").symlink_to(root / "sub" / "a.png")
    (tmp_path / "alias").symlink_to(root)
    assert resolve_media(tmp_path / "alias", "link.png", "r").read_bytes() == b"a"


@pytest.mark.parametrize("relative", ["../outside.png", "sub/../../outside.png", "../root2/a.png", "out.png", "dir/a.png"])
def test_paths_that_leave_the_root_are_refused(root, relative):
    (root / "out.png").symlink_to(root.parent / "outside.png")
    (root / "dir").symlink_to(root.parent / "root2")
    with pytest.raises(UserError, match=r"^record 'x': media path .* leaves the media root"):
        resolve_media(root, relative, "record 'x'")


def test_links_of_a_download_into_its_own_cache_are_fine(tmp_path):
    """`huggingface_hub` stores every file once, under blobs, and links to it from the snapshots."""
    repository = tmp_path / "datasets--owner--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "f00").write_bytes(b"a")
    snapshot = repository / "snapshots" / "1234"
    (snapshot / "short").mkdir(parents=True)
    (snapshot / "short" / "a.png").symlink_to("../../../blobs/f00")
    assert resolve_media(snapshot, "short/a.png", "r").read_bytes() == b"a"
    assert resolve_media(snapshot / "short", "a.png", "r").read_bytes() == b"a"
    (tmp_path / "secret").write_bytes(b"secret")
    (snapshot / "b.png").symlink_to(tmp_path / "secret")
    (snapshot / "c.png").symlink_to("../../refs")
    for name in ("b.png", "c.png", "../../blobs/../../secret"):
        with pytest.raises(UserError, match="leaves the media root"):
            resolve_media(snapshot, name, "r")


def test_a_frame_that_is_a_link_out_of_the_root_is_refused(root):
    (root / "clip").mkdir()
    (root / "clip" / "0.png").symlink_to(root / "sub" / "a.png")
    assert read_video_frames(root / "clip", 1, root) == [b"a"]
    (root / "clip" / "1.png").symlink_to(root.parent / "outside.png")
    for read in (video_files, read_video_frames):
        with pytest.raises(UserError, match=r"frame '1\.png' is a link that leaves the media root"):
            read(root / "clip", 2, root)


def test_a_frame_that_cannot_be_read_is_named(root):
    (root / "clip" / "0.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"0\.png cannot be read \(Is a directory\)"):
        read_video_frames(root / "clip", 1, root)


@pytest.mark.parametrize(
    "relative", ["/etc/passwd", "C:\\a.png", "\\\\host\\a.png", "https://host/a.png", "gs://bucket/a.png", "a\0.png"]
)
def test_absolute_paths_and_addresses_are_refused(root, relative):
    with pytest.raises(UserError, match=r"^record 'x': media path .* must be relative to the media root"):
        resolve_media(root, relative, "record 'x'")


@pytest.mark.parametrize("relative", ["sub/b.png", "b" * 5000])
def test_a_missing_file_is_named_with_its_record(root, relative):
    with pytest.raises(UserError, match=rf"^record 'x': media file '{relative}' does not exist under"):
        resolve_media(root, relative, "record 'x'")


# Videos --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "count"), [(50, 10), (10, 10), (3, 10), (1, 4), (7, 1)])
def test_frame_folders_are_sampled_by_linspace_and_keep_their_bytes(tmp_path, images, count):
    """MM-RLHF's rule: sorted by name, linspace(0, n - 1, count) cut to integers."""
    files = [b"image %d" % i for i in range(images)]
    for i in reversed(range(images)):
        (tmp_path / f"frame_{i:04}.jpg").write_bytes(files[i])
    (tmp_path / "frame_0000.txt").write_text("not an image")
    expected = [files[i] for i in np.linspace(0, images - 1, count, dtype=int)]
    assert read_video_frames(tmp_path, count) == expected


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """40 grey frames; frame i has grey value 6 * i."""
    import av

    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 6 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("count", [1, 4, 13, 40])
def test_video_files_give_evenly_spaced_frames_as_jpeg(video, count):
    frames = [Image.open(io.BytesIO(data)) for data in read_video_frames(video, count)]
    assert {(frame.format, frame.size) for frame in frames} == {("JPEG", (64, 48))}
    greys = [np.asarray(frame).mean() for frame in frames]
    np.testing.assert_allclose(greys, 6 * np.linspace(0, 39, count, dtype=int), atol=3)


def test_a_cut_video_gives_all_its_frames_or_an_error(video, tmp_path):
    """The header of this container stands at the end, so that nothing can be read from the first half."""
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cut\.mp4: the video cannot be decoded"):
        read_video_frames(tmp_path / "cut.mp4", 4)


def test_files_without_pictures_are_refused(tmp_path):
    (tmp_path / "text.mp4").write_text("no video " * 100)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(b"\0\0" * 8000)
    (tmp_path / "empty").mkdir()
    for name in ("text.mp4", "sound.wav", "empty"):
        with pytest.raises(UserError, match=name):
            read_video_frames(tmp_path / name, 4)


def with_streams(path, *streams):
    """A file with several video streams: (codec, grey value of its frames, number of frames, disposition or None)."""
    import av

    with av.open(str(path), "w") as container:
        made = []
        for codec, _, _, disposition in streams:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if disposition is not None:
                stream.disposition = disposition
            made.append(stream)
        for stream, (_, grey, count, _) in zip(made, streams, strict=True):
            for _ in range(count):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def boxes(data: bytes) -> dict[bytes, bytes]:
    """The boxes of an MP4 file, or of one of its boxes."""
    found, start = {}, 0
    while start < len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        found[data[start + 4 : start + 8]] = data[start : start + size]
        start += size
    return found


def with_its_cover_first(path):
    """The MP4 file with what says more about it, and holds the cover, in front of the tracks; places of frames stay right."""
    outer = boxes(path.read_bytes())
    inner = boxes(outer[b"moov"][8:])
    tracks = {b"mvhd": inner.pop(b"mvhd"), b"udta": inner.pop(b"udta")} | inner
    outer[b"moov"] = outer[b"moov"][:8] + b"".join(tracks.values())
    path.write_bytes(b"".join(outer.values()))
    return path


@pytest.mark.parametrize("cover_first", [True, False])
def test_a_cover_picture_is_no_video_wherever_it_stands(tmp_path, cover_first):
    import av
    from av.stream import Disposition

    cover = ("mjpeg", 240, 1, Disposition.attached_pic)
    path = with_streams(tmp_path / "clip.mp4", ("mpeg4", 60, 8, None), cover)
    if cover_first:
        with_its_cover_first(path)
    with av.open(str(path)) as container:
        assert [stream.codec_context.name for stream in container.streams.video].index("mjpeg") == (0 if cover_first else 1)
    greys = [np.asarray(Image.open(io.BytesIO(data))).mean() for data in read_video_frames(path, 4)]
    np.testing.assert_allclose(greys, 60, atol=3)


def test_a_file_of_several_videos_is_refused_with_their_sizes(tmp_path):
    path = with_streams(tmp_path / "two.mkv", ("mpeg4", 240, 3, None), ("mpeg4", 60, 8, None))
    with pytest.raises(UserError, match=r"two\.mkv: holds 2 videos, 64x48 \(mpeg4\), 64x48 \(mpeg4\); write a file with"):
        read_video_frames(path, 4)


@pytest.mark.parametrize("hidden", ["._0.png", ".0.jpg", "._frame.png"])
def test_hidden_files_are_no_frames(tmp_path, hidden):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"%d" % number)
    (tmp_path / hidden).write_bytes(b"\0\5\x16\7")
    assert read_video_frames(tmp_path, 4) == [b"0", b"0", b"1", b"2"]
    for number in range(3):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(UserError, match="holds no images"):
        read_video_frames(tmp_path, 4)


# How a camera was held -----------------------------------------------------------------------------------------------

CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)  # red green / blue white


def held(path, a, b, c, d):
    """A 64 x 48 video of four coloured quarters, with this display matrix in its track header, as a phone writes it."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(CORNERS.repeat(24, axis=0).repeat(32, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # of nine 32-bit numbers: a b 0 / c d 0 / offset of x, offset of y, 1
    for place, value in ((0, a), (4, b), (12, c), (16, d)):
        data[matrix + place : matrix + place + 4] = int(value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


def shown_corners(data) -> tuple[tuple[int, int], np.ndarray]:
    """(size, the colours in the middles of the four quarters) of an encoded picture."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    pixels = np.asarray(image.convert("RGB"))[[height // 4, height * 3 // 4]][:, [width // 4, width * 3 // 4]]
    return image.size, (pixels > 128).astype(np.uint8) * 255


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)], ids=["0", "90", "180", "270"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_frames_of_a_video_are_stored_as_it_is_to_be_shown(tmp_path, matrix, mirrored):
    a, b, c, d = matrix
    if mirrored:
        a, c = -a, -c
    expected = np.zeros_like(CORNERS)
    for y in (0, 1):
        for x in (0, 1):
            u, v = 2 * x - 1, 2 * y - 1  # from the middle of the picture
            expected[(b * u + d * v + 1) // 2, (a * u + c * v + 1) // 2] = CORNERS[y, x]
    frames = read_video_frames(held(tmp_path / "held.mp4", a, b, c, d), 2)
    assert len(frames) == 2
    for data in frames:
        size, corners = shown_corners(data)
        assert size == ((64, 48) if a else (48, 64))
        np.testing.assert_array_equal(corners, expected)


def test_a_video_that_pyav_writes_turned_is_stored_upright(tmp_path):
    import av

    with av.open(str(tmp_path / "turned.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        stream.set_display_rotation(90)  # counter-clockwise
        frame = av.VideoFrame.from_ndarray(CORNERS.repeat(24, axis=0).repeat(32, axis=1), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    size, corners = shown_corners(read_video_frames(tmp_path / "turned.mp4", 1)[0])
    assert size == (48, 64)
    np.testing.assert_array_equal(corners, np.rot90(CORNERS))


def test_a_video_turned_by_no_quarter_turn_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"held\.mp4: the video is to be shown turned by no quarter turn"):
        read_video_frames(held(tmp_path / "held.mp4", 0.5, 0.5, -0.5, 0.5), 1)


# The order of frames -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.png" for i in range(12)],
        [f"frame_{i}.jpg" for i in (2, 10, 100)],
        [f"clip3_frame{i}.jpeg" for i in range(8, 12)],
        [f"{i:04}.png" for i in (9998, 9999, 10000)],
        [f"{second}.{part}.jpg" for second in (9, 10) for part in (1, 2)],
        ["1.png", "2.PNG", "10.png"],
        ["01.png", "1.png", "2.png"],  # the same number twice: as text
        ["0000.png", "0001.png", "0010.png"],
        ["a.png", "b1.png", "b10.png"],
        ["0.25.png", "0.5.png", "0.75.png", "1.0.png"],
        ["frame_1.25.jpg", "frame_1.5.jpg", "frame_10.0.jpg"],
        ["0.jpg", "33.33.jpg", "66.7.jpg", "100.0.jpg"],
        ["0.png", "0.5.png", "1.png"],
        ["t0.50s_v2.png", "t9.75s_v2.png", "t10.00s_v2.png"],
        [f"clip.{i}.png" for i in (2, 10)],
        ["1.2.9.png", "1.2.10.png", "1.10.1.png"],  # no decimal numbers
        ["1.9.png", "1.10.png", "1.11.png"],
        ["0.05.png", "0.1.png", "0.125.png"],
    ],
)
def test_frames_are_read_in_the_order_of_their_numbers(tmp_path, names):
    for name in reversed(names):
        (tmp_path / name).write_bytes(name.encode())
    assert read_video_frames(tmp_path, len(names)) == [name.encode() for name in names]


@given(st.lists(st.text("ab_-.0129", min_size=1, max_size=6), unique=True, min_size=2), st.randoms(use_true_random=False))
def test_the_order_of_frames_does_not_depend_on_the_order_of_the_folder(names, rng):
    shuffled = list(names)
    rng.shuffle(shuffled)
    assert in_order(shuffled) == in_order(names)
    assert sorted(in_order(names)) == sorted(names)


@given(st.lists(st.integers(0, 9999), unique=True, min_size=2), st.sampled_from(["", "frame_", "a1b", "x-"]))
def test_zero_padded_names_are_sorted_as_mm_rlhf_sorts_them_and_others_by_their_numbers(numbers, prefix):
    padded = [f"{prefix}{number:04}.jpg" for number in numbers]
    assert in_order(padded) == sorted(padded)
    assert in_order([f"{prefix}{number}.jpg" for number in numbers]) == [f"{prefix}{n}.jpg" for n in sorted(numbers)]
