"""InternVL's images are cut exactly as transformers cuts them. Oracle: `GotOcr2ImageProcessorPil`."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmrlhf_jax.models.internvl.images import best_grid, cut_tiles, grids

# (height, width)
SIZES = [
    (14, 2000), (2000, 14), (1, 1), (1, 700), (447, 448), (448, 448), (449, 448), (448, 900), (100, 200), (333, 217),
    (480, 640), (500, 336), (600, 1000), (768, 768), (799, 801), (1080, 1920), (1500, 2000), (3000, 4000), (4000, 3000),
]  # fmt: skip
# Square, 2:1, 3:2, ... at areas around the one from which the larger canvas of the same aspect wins.
TIES = [(h, w) for h, w in [(316, 317), (317, 317), (633, 633), (634, 634), (950, 950), (316, 633), (448, 896), (634, 317),
        (549, 366), (548, 366), (896, 448), (447, 894), (950, 475), (64, 96), (776, 1164)]]  # fmt: skip


def picture(height: int, width: int) -> Image.Image:
    """Smooth colours with noise and hard edges: resampling errors show."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [127 + 80 * np.sin(x / 17 + c) + 47 * np.cos(y / (11 + c)) for c in range(3)]
    noise = np.random.default_rng(0).integers(-60, 60, (height, width, 1))
    pixels = np.stack(channels, -1) + noise + 90 * ((x // 8 + y // 8) % 2)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def processor(side: int, **options):
    """transformers' Pillow image processor, stopping before rescaling and normalising."""
    pytest.importorskip("transformers")
    from transformers import GotOcr2ImageProcessorPil

    plain = {"crop_to_patches": True, "do_rescale": False, "do_normalize": False}
    return GotOcr2ImageProcessorPil(size={"height": side, "width": side}, **plain | options)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.long
def test_every_pixel_of_every_tile_is_transformers(size):
    image = picture(*size)
    expected = np.moveaxis(np.stack(processor(448)(image)["pixel_values"]), 1, -1)
    tiles = cut_tiles(image, 448, best_grid(*size, 448, 1, 12), thumbnail=True)
    assert tiles.dtype == np.uint8
    np.testing.assert_array_equal(tiles, expected)


@pytest.mark.parametrize(("least", "most"), [(1, 6), (3, 9), (6, 6), (1, 1), (1, 40)])
@pytest.mark.parametrize("size", [(50, 100), (97, 33), (40, 41)], ids=str)
def test_so_it_is_for_other_numbers_of_tiles(size, least, most):
    image = picture(*size)
    expected = np.moveaxis(np.stack(processor(28, min_patches=least, max_patches=most)(image)["pixel_values"]), 1, -1)
    np.testing.assert_array_equal(cut_tiles(image, 28, best_grid(*size, 28, least, most), thumbnail=True), expected)


@pytest.mark.parametrize("most", [1, 2, 6, 12, 40])
@pytest.mark.parametrize("least", [1, 4])
def test_the_grid_is_transformers_for_every_aspect_and_area(least, most):
    """Sizes with ties of the aspect among them, and thousands more."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    rng = np.random.default_rng(most)
    drawn = np.exp(rng.uniform(0, np.log(5000), (3000, 2))).astype(int).tolist()
    for height, width in [*SIZES, *TIES, *drawn]:
        assert best_grid(height, width, 448, least, most) == get_optimal_tiled_canvas((height, width), (448, 448), least, most)


def test_a_larger_limit_never_gives_fewer_tiles():
    """So the largest limit that fits a budget is found by trying them from above."""
    rng = np.random.default_rng(0)
    for height, width in [*SIZES, *TIES, *np.exp(rng.uniform(0, np.log(5000), (300, 2))).astype(int).tolist()]:
        counts = [np.prod(best_grid(height, width, 448, 1, most)) for most in range(1, 41)]
        assert counts == sorted(counts)


def test_grids_are_all_those_within_the_limits():
    assert grids(1, 4) == ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1))
    assert grids(3, 3) == ((1, 3), (3, 1))


def test_without_a_thumbnail_there_are_the_tiles_alone():
    image = picture(40, 80)
    whole = cut_tiles(image, 28, (2, 1), thumbnail=True)
    assert len(whole) == 3
    np.testing.assert_array_equal(cut_tiles(image, 28, (2, 1), thumbnail=False), whole[:2])
    assert len(cut_tiles(image, 28, (1, 1), thumbnail=True)) == 1


def test_only_rgb_is_cut():
    with pytest.raises(ValueError, match="RGB"):
        cut_tiles(Image.new("L", (9, 9)), 28, (1, 1), thumbnail=True)


def test_importing_it_loads_no_framework():
    """Data workers are spawned processes: they must not pay for, or lock, an accelerator."""
    code = (
        "import sys, mmrlhf_jax.models.internvl.images\n"
        "assert not {'jax', 'flax', 'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
