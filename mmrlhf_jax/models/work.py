"""The FLOPs of a family's vision tower and projector, counted per tile from their sizes. This module imports no jax."""

from __future__ import annotations

from typing import NamedTuple


class TowerWork(NamedTuple):
    """Work of a vision tower's layers that run. A product is one multiply-add."""

    layers: int
    slots: int  # per tile: its patches, and the class token if there is one
    heads: int
    width: int  # width of all heads together
    layer_products: int  # products per slot and layer, without those of attention scores and weighted sums
    embedding_products: int  # products per tile of the patch embedding

    def forward_flops(self) -> int:
        """FLOPs of the forward pass of one tile; a multiply-add counts 2."""
        layer = 2 * self.layer_products * self.slots + 4 * self.width * self.slots**2
        return self.layers * layer + 2 * self.embedding_products


class ProjectorWork(NamedTuple):
    """Work of the projector's matrices, in products per output token."""

    tokens: int  # output tokens per tile
    first: int  # products of the first matrix, whose input are the tower's features
    rest: int  # products of the other matrices

    def forward_flops(self) -> int:
        """FLOPs of the forward pass of one tile; a multiply-add counts 2."""
        return 2 * self.tokens * (self.first + self.rest)
