"""Images are decoded as a careful user expects and cut exactly as transformers cuts them."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin, features

from mmrlhf_jax.data.images import decode_image, image_size
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llava_onevision import images, vision_plan
from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry
from mmrlhf_jax.models.media import NEWLINE, join

REAL = VisionGeometry(384, 14, tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7)), max_patches=9)
TINY = VisionGeometry(48, 12, ((48, 48), (48, 96), (96, 48)), max_patches=9)

# (height, width)
SIZES = [
    (14, 2000), (2000, 14), (1, 1), (1, 700), (47, 48), (100, 200), (333, 217), (384, 384), (385, 384), (480, 640),
    (600, 1000), (768, 768), (799, 801), (1080, 1920), (1500, 2000),
]  # fmt: skip
MULTI_IMAGE_SIZES = [(14, 2000), (2000, 14), (1, 1), (384, 384), (333, 217), (217, 334), (1500, 1201)]
FORMATS = ["JPEG", "PNG", "WEBP", "TIFF"] + (["AVIF"] if features.check("avif") else [])


def picture(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth colours with noise and hard edges: resampling errors show."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    channels = [127 + 80 * np.sin(x / 17 + c) + 47 * np.cos(y / (11 + c)) for c in range(3)]
    pixels = np.stack(channels, -1) + rng.integers(-60, 60, (height, width, 1)) + 90 * ((x // 8 + y // 8) % 2)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def hf_processor(geometry: VisionGeometry, **options):
    """transformers' Pillow image processor, stopping before rescaling and normalising."""
    pytest.importorskip("transformers")
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    return LlavaOnevisionImageProcessorPil(
        size={"height": geometry.image_size, "width": geometry.image_size},
        image_grid_pinpoints=[list(p) for p in geometry.pinpoints],
        **{"do_rescale": False, "do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3} | options,
    )


def channels_last(tiles) -> np.ndarray:
    return np.moveaxis(np.asarray(tiles), 1, -1)


class TestTiles:
    @pytest.mark.parametrize("geometry", [REAL, TINY], ids=["real", "tiny"])
    @pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
    def test_a_lone_image_has_the_pixels_of_transformers(self, geometry, size):
        """Every pixel of every tile is equal, and there are as many tiles as planned."""
        image = picture(*size)
        expected = channels_last(hf_processor(geometry)(image)["pixel_values"][0])
        tiles = images.cut_tiles(image, geometry, anyres=True)
        assert tiles.dtype == np.uint8
        np.testing.assert_array_equal(tiles, expected)
        assert len(tiles) == vision_plan.plan_image(*size, geometry).tiles

    @pytest.mark.parametrize("geometry", [REAL, TINY], ids=["real", "tiny"])
    @pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.48, 0.1, 0.9)], ids=["grey", "coloured"])
    def test_each_of_several_images_has_the_pixels_of_transformers(self, geometry, mean):
        """Padded to a square of the mean colour; band-wise resizing changes no pixel."""
        color = tuple(int(255 * m) for m in mean)
        geometry = VisionGeometry(geometry.image_size, geometry.patch_size, geometry.pinpoints, 9, pad_color=color)
        several = [picture(*size, seed=i) for i, size in enumerate(MULTI_IMAGE_SIZES)]
        expected = hf_processor(geometry, image_mean=list(mean))([several])["pixel_values"]
        for image, want in zip(several, expected, strict=True):
            np.testing.assert_array_equal(images.cut_tiles(image, geometry, anyres=False), channels_last(want))

    def test_a_model_without_anyres_gets_one_tile(self):
        geometry = VisionGeometry(48, 12, (), None, anyres=False)
        image = picture(60, 100)
        np.testing.assert_array_equal(
            images.cut_tiles(image, geometry, anyres=True), images.cut_tiles(image, TINY, anyres=False)
        )

    def test_without_anyres_it_is_squeezed_where_the_geometry_says_square(self):
        """The original code's default branch: its image processor alone, aspect ignored."""
        geometry = VisionGeometry(48, 12, (), None, anyres=False, plain="square")
        image = picture(60, 100)
        expected = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC))[None]
        np.testing.assert_array_equal(images.cut_tiles(image, geometry, anyres=True), expected)

    def test_padding_a_long_strip_needs_no_square(self, monkeypatch):
        """Among several images a strip is never put on its whole square (2.7 GB for a side of 30 000 pixels)."""
        areas = []
        new = Image.new
        monkeypatch.setattr(Image, "new", lambda mode, size, *color: areas.append(size[0] * size[1]) or new(mode, size, *color))
        for height, width in [(20, 5000), (5000, 20)]:
            assert images.cut_tiles(picture(height, width), TINY, anyres=False).shape == (1, 48, 48, 3)
        assert max(areas) <= 5000 * 1024

    def test_frames_are_squeezed_like_the_base_tile(self):
        """Bicubic, aspect ignored; frames of one video may differ in size."""
        frames = [picture(60, 100), picture(200, 31, seed=1)]
        tiles = images.cut_frames(frames, REAL)
        assert tiles.shape == (2, 384, 384, 3)
        for tile, frame in zip(tiles, frames, strict=True):
            np.testing.assert_array_equal(tile, images.cut_tiles(frame, REAL, anyres=True)[0])

    def test_only_rgb_is_cut(self):
        with pytest.raises(ValueError, match="RGB"):
            images.cut_tiles(Image.new("L", (9, 9)), TINY, anyres=True)

    @pytest.mark.parametrize("sizes", [[(60, 100)], [(30, 30)], [(60, 100), (90, 20)]], ids=str)
    def test_tiles_and_plan_together_are_the_models_image_features(self, sizes):
        """End to end on a tiny random model: processor + get_image_features = cut_tiles + tower + projector + plan."""
        torch = pytest.importorskip("torch")
        model = tiny_hf_model()
        several = [picture(*size, seed=i) for i, size in enumerate(sizes)]
        inputs = hf_processor(TINY, do_rescale=True, do_normalize=True)([several], return_tensors="pt")
        with torch.no_grad():
            expected = torch.cat(model.get_image_features(**inputs, vision_aspect_ratio="anyres_max_9").pooler_output)
            tiles = np.concatenate([images.cut_tiles(image, TINY, anyres=len(several) == 1) for image in several])
            pixels = torch.from_numpy(np.moveaxis(tiles, -1, 1).astype(np.float32) / 255 * 2 - 1)
            hidden = model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
            projected = model.multi_modal_projector(hidden).reshape(-1, 8)
        plan = join(vision_plan.plan_images(sizes, TINY))
        table = np.concatenate([projected.numpy(), model.image_newline.detach().numpy()[None]])
        taps = np.where(plan.taps == NEWLINE, len(table) - 1, plan.taps)
        visual = np.einsum("vk,vkd->vd", plan.weights, table[taps])
        np.testing.assert_allclose(visual, expected.numpy(), rtol=0, atol=1e-6)


def tiny_hf_model():
    from transformers import LlavaOnevisionConfig, LlavaOnevisionModel, Qwen2Config, SiglipVisionConfig

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**small, image_size=48, patch_size=12, vision_use_head=False),
        text_config=Qwen2Config(**small, num_key_value_heads=2, vocab_size=8),
        image_grid_pinpoints=[list(p) for p in TINY.pinpoints],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_token_id=1,
        video_token_id=2,
    )
    return LlavaOnevisionModel(config).eval()


class TestDecoding:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("format", FORMATS)
    def test_exif_orientation_makes_the_picture_upright(self, format, orientation):
        """Equal to Pillow's exif_transpose, and the header alone tells the upright size."""
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        data = encode(picture(20, 30), format, exif=exif)
        stored = Image.open(io.BytesIO(data))
        stored.load()
        expected = ImageOps.exif_transpose(stored).convert("RGB")
        decoded = decode_image(data, "x")
        assert image_size(data, "x") == (decoded.height, decoded.width)
        assert ImageOps.exif_transpose(decoded).size == decoded.size  # nothing is left that would turn it again
        assert (decoded.height, decoded.width) == ((20, 30) if orientation < 5 else (30, 20))
        np.testing.assert_array_equal(decoded, expected)

    def test_png_orientation_may_stand_after_the_pixels(self):
        """PNG allows metadata there and some editors write it so."""
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
        data = encode(picture(20, 30), pnginfo=text)
        chunks = png_chunks(data)
        metadata = [c for c in chunks if c[4:8] == b"iTXt"]
        late = data[:8] + b"".join([c for c in chunks[:-1] if c not in metadata] + metadata + chunks[-1:])
        for file in (data, late):
            assert image_size(file, "x") == (30, 20) == decode_image(file, "x").size[::-1]

    @pytest.mark.parametrize("format", FORMATS)
    def test_size_needs_only_the_header(self, format):
        """The index reads sizes of a whole data set; a file whose pixels are cut off still has one."""
        data = encode(picture(300, 200), format, **({"tiffinfo": {}} if format == "TIFF" else {}))
        keep = len(data) if format in ("TIFF", "AVIF", "WEBP") else len(data) // 2  # these keep their index at the end
        assert image_size(data[:keep], "x") == (300, 200)

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    def test_a_broken_exif_block_does_not_lose_the_picture(self):
        data = encode(picture(20, 30), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
        assert decode_image(data, "x").size == (30, 20)
        assert image_size(data, "x") == (20, 30)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
    def test_every_mode_becomes_the_rgb_of_transformers(self, mode):
        """Oracle: transformers' convert_to_rgb (which lays transparency over white)."""
        transforms = pytest.importorskip("transformers.image_transforms")
        image = picture(40, 50, mode if mode not in ("LA", "RGBA") else "RGB")
        if mode in ("LA", "RGBA"):
            image.putalpha(picture(40, 50, "L", seed=1))
            image = image.convert(mode)
        data = encode(image)
        expected = transforms.convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True)
        decoded = decode_image(data, "x")
        assert decoded.mode == "RGB"
        np.testing.assert_array_equal(decoded, expected)

    def test_transparent_pixels_are_white(self):
        """Whatever colour hides under them, by alpha channel, palette entry or colour key."""
        red = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
        palette = Image.new("P", (2, 1), 0)
        palette.putpalette([255, 0, 0])
        files = [
            encode(red),
            encode(red, "WEBP", lossless=True, exact=True),
            encode(palette, transparency=0),
            encode(palette, "GIF", transparency=0),
            encode(Image.new("RGB", (2, 1), (255, 0, 0)), transparency=(255, 0, 0)),
        ]
        for data in files:
            np.testing.assert_array_equal(decode_image(data, "x"), np.full((1, 2, 3), 255))

    def test_cmyk_jpeg_has_its_colours(self):
        """Print files: Pillow inverts Adobe's convention; no ink is white."""
        data = encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
        assert np.asarray(decode_image(data, "x")).min() > 250

    @pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
    def test_sixteen_bit_grey_is_scaled_not_clipped(self, format):
        grey = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
        image = Image.fromarray(grey)
        decoded = np.asarray(decode_image(encode(image, format), "x"))
        np.testing.assert_array_equal(decoded, np.repeat((grey >> 8)[..., None], 3, -1))

    def test_a_colour_profile_is_ignored(self):
        image = picture(20, 30)
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        np.testing.assert_array_equal(decode_image(encode(image, icc_profile=profile), "x"), image)

    def test_a_phones_second_picture_is_not_an_animation(self):
        """MPO: a JPEG with a preview or depth map behind it; the first picture is the photograph."""
        photograph = picture(20, 30)
        data = encode(photograph, "MPO", save_all=True, append_images=[Image.new("RGB", (5, 5))], quality=95)
        np.testing.assert_array_equal(decode_image(data, "x"), Image.open(io.BytesIO(data)).convert("RGB"))
        assert image_size(data, "x") == (20, 30)

    @pytest.mark.parametrize("format", ["GIF", "BMP", "JPEG2000"])
    def test_other_still_formats_are_read(self, format):
        decoded = decode_image(encode(picture(20, 30), format), "x")
        assert (decoded.mode, decoded.size) == ("RGB", (30, 20))


class TestBadImages:
    """One line that names the file and says what to do, from the decoder and from the header reader alike."""

    def refused(self, data: bytes, message: str, read=(decode_image, image_size)) -> None:
        for function in read:
            with pytest.raises(UserError, match=message) as caught:
                function(data, "train.jsonl:7: a.jpg")
            text = str(caught.value)
            assert text.startswith("train.jsonl:7: a.jpg: ") and "\n" not in text

    def test_empty(self):
        self.refused(b"", "empty")

    @pytest.mark.parametrize("data", [b"<html>404</html>", b"\0" * 4096, b"%!PS-Adobe-3.0 EPSF-3.0\n"], ids=str)
    def test_not_an_image(self, data):
        self.refused(data[:40] * 10, "not an image")

    @pytest.mark.parametrize("format", [*FORMATS, "GIF", "BMP", "JPEG2000"])
    @pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
    def test_truncated(self, format, share):
        data = encode(picture(120, 90), format)
        self.refused(data[: int(len(data) * share)], "broken|not an image", read=[decode_image])

    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    @pytest.mark.parametrize("format", FORMATS)
    def test_damaged_bytes_never_escape_as_another_error(self, format):
        """Any single damage decodes or is refused by UserError, never by a decoder's own exception."""
        data = bytearray(encode(picture(24, 24), format))
        rng = np.random.default_rng(0)
        for _ in range(150):
            damaged = bytearray(data)
            for position in rng.integers(0, len(data), 3):
                damaged[position] = rng.integers(256)
            for function in (decode_image, image_size):
                try:
                    function(bytes(damaged), "x")
                except UserError as error:
                    assert "\n" not in str(error)

    @pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_animated_or_paged(self, format):
        """No frame is chosen silently."""
        data = encode(picture(20, 30), format, save_all=True, append_images=[picture(20, 30, seed=i) for i in (1, 2)])
        self.refused(data, f"{format} file holds 3 frames.*as a video")

    @pytest.mark.parametrize("mode", ["I", "F"])
    def test_pixels_without_a_defined_white(self, mode):
        self.refused(encode(Image.new(mode, (4, 4)), "TIFF"), f"32-bit.*mode {mode}", read=[decode_image])

    @pytest.mark.parametrize("width, height", [(30_000, 14), (1, 20_001), (13_500, 13_500), (2**31 - 1, 2**31 - 1)])
    def test_absurd_sizes(self, width, height):
        """Refused from the header: a few bytes that claim a huge picture are never decoded."""
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        self.refused(data, "pixels.*scale it down")

    def test_the_largest_side_is_allowed(self):
        data = encode(Image.new("RGB", (20_000, 1)))
        assert image_size(data, "x") == (1, 20_000)
        assert decode_image(data, "x").size == (20_000, 1)


def test_importing_the_host_pipeline_loads_no_framework():
    """Data workers are spawned processes: they must not pay for, or lock, an accelerator."""
    code = (
        "import sys, mmrlhf_jax.models.llava_onevision.images, mmrlhf_jax.data.images\n"
        "assert not {'jax', 'flax', 'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_chunks(data: bytes) -> list[bytes]:
    chunks, start = [], 8
    while start < len(data):
        end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
        chunks.append(data[start:end])
        start = end
    return chunks
