"""Media paths stay inside their root, videos give evenly spaced frames, and damaged files are found."""

import io
import wave

import numpy as np
import pytest
from PIL import Image

from mmrlhf_jax.data.media import read_video_frames, resolve_media, video_files
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
