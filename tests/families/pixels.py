"""The pixels of a video for transformers' models: from tiles that this project cuts, because transformers needs torchvision."""

from __future__ import annotations

from typing import Any

import numpy as np


def normalised_tiles(config: Any, frames: list):
    """float32[F, 3, H, W], as torch has them: the tiles of frames, each of which is one tile."""
    import torch

    vision, tiles = config.vision, config.geometry.cut_frames(frames)
    pixels = (tiles.astype(np.float32) * vision.rescale - np.float32(vision.image_mean)) / np.float32(vision.image_std)
    return torch.tensor(pixels.transpose(0, 3, 1, 2))
