"""How much work a family's vision side is, counted per tile from its sizes. No jax here."""

from __future__ import annotations

from typing import NamedTuple


class TowerWork(NamedTuple):
    """Of the layers that run. A product is one multiply-add."""

    layers: int
    slots: int  # of a tile in a layer: its patches, and a class slot where there is one
    heads: int
    width: int  # of all heads together
    layer_products: int  # per slot and layer, without those of the attention's scores and sums
    embedding_products: int  # per tile

    def forward_flops(self) -> int:
        """Of one tile, a multiply-add counting 2."""
        layer = 2 * self.layer_products * self.slots + 4 * self.width * self.slots**2
        return self.layers * layer + 2 * self.embedding_products


class ProjectorWork(NamedTuple):
    """Of the matrices between tower and decoder, in products per token that leaves them."""

    tokens: int  # per tile
    first: int  # of the matrix that takes the tower's features
    rest: int  # of those behind it

    def forward_flops(self) -> int:
        """Of one tile, a multiply-add counting 2."""
        return 2 * self.tokens * (self.first + self.rest)
