"""The FLOPs of a family's vision tower and projector, counted per tile from their sizes. This module imports no jax."""

from __future__ import annotations

from math import lcm
from typing import NamedTuple

from mmrlhf_jax.models.tower_config import TileTower


class TowerWork(NamedTuple):
    """Work of a vision tower's layers that run. A product is one multiply-add."""

    layers: int
    slots: int  # per tile: its patches, and the class token if there is one
    heads: int
    width: int  # width of all heads together
    layer_products: int  # products per slot and layer, without those of attention scores and weighted sums
    embedding_products: int  # products per tile of the patch embedding
    windowed: int = 0  # layers whose slots see those of their window only; in the others they see all of their frame
    window: int = 0  # most slots of a window

    @classmethod
    def of(cls, tower: TileTower, *, class_tokens: int = 0) -> TowerWork:
        """The work of a tower of transformer layers with two-matrix MLPs, and `class_tokens` beside the patches of a tile."""
        return cls(
            layers=tower.feature_layers,
            slots=class_tokens + tower.patches,
            heads=tower.heads,
            width=tower.hidden_size,
            layer_products=4 * tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size,
            embedding_products=3 * tower.patch_size**2 * tower.hidden_size * tower.patches,
        )

    def computed_tiles(self, tiles: int, context: int) -> int:
        """The tiles that are computed of a row of so many, whose slots `context` devices share: with blocks of patches in the
        place of tiles, `computed_blocks`."""
        return computed_blocks(tiles, self.window // self.slots, context) if self.window else tiles

    def forward_flops(self, tiles: float = 1, pairs: float = 1) -> float:
        """FLOPs of the forward pass of so many tiles, of which so many `pairs` are of the same frame; a multiply-add counts 2.
        Windows count as whole ones."""
        seen = (self.layers - self.windowed) * self.slots**2 * pairs + self.windowed * self.slots * self.window * tiles
        products = (self.layers * self.layer_products * self.slots + self.embedding_products) * tiles
        return 2 * products + 4 * self.width * seen


def computed_blocks(blocks: int, band: int, context: int) -> int:
    """The blocks of patches that are computed of a row of so many: whole bands of `band` blocks, and as many on each of
    `context` devices, because an axis that does not divide an array does not shard it."""
    return blocks + -blocks % lcm(band, context)


class ProjectorWork(NamedTuple):
    """Work of the projector's matrices, in products per output token."""

    tokens: int  # output tokens per tile
    first: int  # products of the first matrix, whose input are the tower's features
    rest: int  # products of the other matrices

    def forward_flops(self) -> int:
        """FLOPs of the forward pass of one tile; a multiply-add counts 2."""
        return 2 * self.tokens * (self.first + self.rest)
