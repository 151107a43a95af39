"""Tiles of a head: [slots, D], in pieces whose widths are powers of two, as Triton's tensors must be.

A head of 80 is a piece of 64 and one of 16, one of 72 the same with 8 masked columns; padding either to 128 would add up to
three quarters of the work. Products over a tile are sums over its pieces, of which there are at most two: more would need more
registers than a wider piece.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from mmrlhf_jax.models.attention.products import NN, NT, dot

NARROWEST = 16  # a matrix unit's smallest tile

Tile = tuple[Float[Array, "slots width"], ...]


def pieces(dim: int) -> list[tuple[int, int]]:
    """(first column, width) of the one or two pieces of a head, widest first. The last may reach beyond `dim`."""
    units, start, found = -(-dim // NARROWEST), 0, []
    while units.bit_count() > 2:
        units += units & -units
    for bit in reversed(range(units.bit_length())):
        if units >> bit & 1:
            found.append((start, NARROWEST << bit))
            start += NARROWEST << bit
    return found


def padded(dim: int) -> int:
    """The width of all pieces together."""
    return sum(width for _, width in pieces(dim))


def load(ref, slots, head, length: int, dim: int) -> Tile:
    """Slots `slots` (a `pl.ds`) of a head of `ref` [slots, heads, D], or of `ref` [slots, D] if `head` is None; 0 outside of
    `length` slots and `dim` columns."""
    return tuple(
        plgpu.load(_at(ref, slots, head, start, width), mask=mask, other=None if mask is None else 0.0)
        for start, width, mask in _masks(slots, ref, length, dim)
    )


def store(ref, slots, tile: Tile, length: int, dim: int) -> None:
    """Write a tile to slots `slots` of `ref` [slots, D], inside of `length` slots and `dim` columns."""
    for (start, width, mask), piece in zip(_masks(slots, ref, length, dim), tile, strict=True):
        plgpu.store(_at(ref, slots, None, start, width), piece.astype(ref.dtype), mask=mask)


def _at(ref, slots, head, start: int, width: int):
    columns = slice(start, start + width)
    return ref.at[slots, columns] if head is None else ref.at[slots, head, columns]


def _masks(slots, ref, length: int, dim: int):
    """(first column, width, mask or None where all of it is inside) of every piece."""
    for start, width in pieces(dim):
        mask = None
        if length < ref.shape[0]:
            mask = jnp.broadcast_to((slots.start + jnp.arange(slots.size) < length)[:, None], (slots.size, width))
        if start + width > dim:
            inside = jnp.broadcast_to((start + jnp.arange(width) < dim)[None, :], (slots.size, width))
            mask = inside if mask is None else mask & inside
        yield start, width, mask


def zeros(slots: int, dim: int) -> Tile:
    return tuple(jnp.zeros((slots, width), jnp.float32) for _, width in pieces(dim))


def scores(a: Tile, b: Tile) -> Float[Array, "m n"]:
    """The products of all rows of `a` with all rows of `b`."""
    total = dot(a[0], b[0], NT)
    for x, y in zip(a[1:], b[1:], strict=True):
        total += dot(x, y, NT)
    return total


def add_product(sums: Tile, weights: Float[Array, "m n"], b: Tile) -> Tile:
    """`sums` + `weights` [m, n] times `b` [n, D]. The weights are rounded to b's type."""
    return tuple(total + dot(weights.astype(piece.dtype), piece, NN) for total, piece in zip(sums, b, strict=True))


def scaled(tile: Tile, factor) -> Tile:
    """`tile` times a scalar or a column [slots, 1]."""
    return tuple(piece * factor for piece in tile)
