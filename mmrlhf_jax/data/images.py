"""Image files of users: their sizes, and their pixels upright in RGB. NumPy and Pillow only: data workers import this file."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image

from mmrlhf_jax.errors import UserError

Size = tuple[int, int]  # (height, width) in pixels

MAX_SIDE = 20_000  # pixels; a longer strip keeps nothing to see when it is fitted into any canvas
MAX_PIXELS = 178_956_970  # where Pillow, too, refuses by default

# Raster formats with a signature. Among Pillow's other readers are some that start programs (EPS) or take any bytes.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")

_UPRIGHT = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, where: str) -> Image.Image:
    """The picture in an image file, upright, mode RGB. `where` (file, record) opens every error message.

    EXIF orientation is applied. Transparency is laid over white, as a viewer shows it and as transformers does (the
    original code drops alpha, which uncovers whatever colour lies under transparent pixels). 16-bit grey keeps its high
    byte. Colour profiles are ignored. Of the several pictures in a phone's MPO file the first is the photograph.

    Raises UserError for what is not an image, is truncated or broken, is animated or has pages (no frame is chosen
    silently), has 32-bit pixels (no defined white), or is absurdly large (MAX_SIDE, MAX_PIXELS).
    """
    image = _open(data, where)
    try:
        image.load()
        orientation = _orientation(image, data)
        rgb = _to_rgb(image)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # whatever a decoder raises on bytes that somebody else wrote
        reason = _one_line(error)
        raise UserError(f"{where}: the image is truncated or broken ({reason}); restore or remove the file") from None
    rgb.info = {}  # orientation and transparency are used up; nobody shall apply them a second time
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def image_size(data: bytes, where: str) -> Size:
    """(height, width) of what `decode_image` returns, from the file's header.

    Raises UserError like `decode_image`, except for what only the pixels show.
    """
    image = _open(data, where)
    orientation = _orientation(image, data)
    if image.format == "TIFF" and orientation in _UPRIGHT:  # Pillow turns TIFFs itself, while loading
        return decode_image(data, where).size[::-1]
    width, height = image.size
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def _open(data: bytes, where: str) -> Image.Image:
    """Read the header and refuse what should not be decoded."""
    if not data:
        raise UserError(f"{where}: the image file is empty; restore or remove it")
    Image.init()
    try:
        image = Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
        width, height = image.size
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Image.UnidentifiedImageError:
        raise UserError(f"{where}: not an image that can be read; convert it to JPEG or PNG") from None
    except Image.DecompressionBombError:
        raise UserError(f"{where}: the image has more than {MAX_PIXELS:,} pixels; scale it down") from None
    except Exception as error:
        reason = _one_line(error)
        raise UserError(f"{where}: the image's header is broken ({reason}); restore or remove the file") from None
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        limit = f"{MAX_SIDE:,} pixels a side, {MAX_PIXELS:,} in all"
        raise UserError(f"{where}: the image is {width:,} x {height:,} pixels, more than {limit}; scale it down")
    if frames > 1:
        hint = "save the one you mean as a still image, or give the frames as a video"
        raise UserError(f"{where}: the {image.format} file holds {frames} frames or pages; {hint}")
    return image


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none, or where its block is broken (viewers do the same)."""
    # Pillow decodes a whole PNG to look for EXIF after the pixels; only a PNG with one of these can have any.
    markers = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
    if image.format == "PNG" and not any(marker in data for marker in markers):
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF parsers raise almost anything on foreign bytes
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):  # these two hold 16 bits in I
        raise UserError(f"pixels are 32-bit (mode {image.mode}), which has no defined white; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
