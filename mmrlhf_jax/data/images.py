"""Decodes users' image files: sizes, and upright RGB pixels. Imports only NumPy and Pillow, because data workers use it."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.geometry import Size

MAX_SIDE = 20_000  # pixels; of a longer strip nothing remains visible after scaling to a canvas
MAX_PIXELS = 178_956_970  # Pillow's own default limit (DecompressionBombError)

# Raster formats with a signature. Some of Pillow's other readers start external programs (EPS) or accept any bytes.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")

_UPRIGHT = {  # EXIF orientation -> transposition that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, where: str) -> Image.Image:
    """The upright image in mode RGB. `where` (file, record) is the beginning of every error message.

    EXIF orientation is applied. Transparent pixels are blended with white, as in viewers and in transformers' image processors
    (its `load_image` and the original code drop alpha, which shows the arbitrary colour of transparent pixels). 16-bit grey
    keeps its high byte. Colour profiles are ignored. Of a phone's MPO file the first image is used, which is the photograph.

    Raises UserError for data that is no image, is truncated or broken, is animated or has several pages (no frame is chosen
    silently), has 32-bit pixels (no defined white), or is larger than MAX_SIDE or MAX_PIXELS.
    """
    image = _open(data, where)
    try:
        image.load()
        orientation = _orientation(image, data)
        rgb = _to_rgb(image)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # decoders raise various types on invalid data
        reason = _one_line(error)
        raise UserError(f"{where}: the image is truncated or broken ({reason}); restore or remove the file") from None
    rgb.info = {}  # orientation and transparency are applied; no later code must apply them again
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def image_size(data: bytes, where: str) -> Size:
    """(height, width) of the image that `decode_image` returns, from the file's header.

    Raises UserError like `decode_image`, except for errors that only decoding the pixels shows.
    """
    image = _open(data, where)
    orientation = _orientation(image, data)
    if image.format == "TIFF" and orientation in _UPRIGHT:  # Pillow applies the orientation of TIFFs itself on loading
        return decode_image(data, where).size[::-1]
    width, height = image.size
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def _open(data: bytes, where: str) -> Image.Image:
    """Open the image and read its header. UserError for files that should not be decoded."""
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
    """EXIF orientation, 1 to 8; 1 if there is none or the EXIF block is broken (as in viewers)."""
    # Pillow decodes a whole PNG to find EXIF after the pixels. Only a PNG that contains one of these markers can have EXIF.
    markers = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
    if image.format == "PNG" and not any(marker in data for marker in markers):
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF parsers raise various types on invalid data
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):  # these two use mode I for 16 bits
        raise UserError(f"pixels are 32-bit (mode {image.mode}), which has no defined white; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
