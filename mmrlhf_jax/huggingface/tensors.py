"""Reads and writes the safetensors of a model directory, one tensor at a time. No jax here.

Reading maps a file only while one tensor is taken from it, so that a 16 GB checkpoint never counts as resident memory.
The safetensors library writes a file from a dictionary of all its arrays; `write_tensors` writes the same format
(https://huggingface.co/docs/safetensors, "Format") from a plan, holding one tensor at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Fault, fault, retried
from mmrlhf_jax.huggingface.weight_files import INDEX, SINGLE, find_weight_files
from mmrlhf_jax.models.weight_names import piece_name, whole_name

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}


class StoredTensors:
    """What the safetensors of a directory hold. Opening reads the headers only.

    If there is an index, it decides which file a tensor is read from (`weight_files`). A tensor that concatenates the tensors
    of several parameters (`pieces` gives their number by its name) appears as its pieces (`models.weight_names.piece_name`).

    Attributes:
        shapes: name -> shape.
        dtypes: name -> NumPy dtype (bfloat16 from `ml_dtypes`).

    Raises UserError for a directory without safetensors, for files that are missing, truncated or no safetensors, and for
    an index that does not describe them.
    """

    def __init__(self, directory: str | os.PathLike[str], pieces: Callable[[str], int] = lambda name: 1):
        self.directory, self._pieces_of = Path(directory), pieces
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self._files: dict[str, Path] = {}
        found = find_weight_files(self.directory)
        for path in found.files:
            with _open(path) as file:
                for name in found.names(path, file.keys()):
                    self._add(name, path, file.get_slice(name))
        found.say_ignored()

    def _add(self, name: str, path: Path, tensor) -> None:
        if tensor.get_dtype() not in DTYPES:
            raise UserError(f"{path}: tensor {name} is {tensor.get_dtype()}; weights must be one of {', '.join(DTYPES)}")
        if name in self._files:
            raise UserError(f"{self.directory}: tensor {name} is in {self._files[name].name} and in {path.name}; remove one")
        shape, count = tuple(tensor.get_shape()), self._pieces_of(name)
        if count > 1 and (not shape or shape[0] % count):
            raise UserError(f"{path}: tensor {name} {shape} cannot be {count} equal ones, one after the other")
        self._files[name] = path
        for number in range(count):
            piece = name if count == 1 else piece_name(name, number, count)
            self.shapes[piece] = shape if count == 1 else (shape[0] // count, *shape[1:])
            self.dtypes[piece] = DTYPES[tensor.get_dtype()]

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """One tensor, or the part of it that `index` names, in its stored dtype."""
        whole, number, count = whole_name(name)
        with _open(self._files[whole]) as file:
            if count == 1:
                return file.get_slice(whole)[index or ...]
            length = self.shapes[name][0]
            rows, *others = index or (slice(None),)
            start, stop, _ = rows.indices(length)
            return file.get_slice(whole)[(slice(number * length + start, number * length + stop), *others)]


# dtype -> (unsigned integer of the same size, mask of the bits without the sign, smallest masked value that is not finite).
_BITS = {
    np.dtype(np.float64): (np.uint64, 2**63 - 1, 0x7FF << 52),
    np.dtype(np.float32): (np.uint32, 2**31 - 1, 0xFF << 23),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 2**15 - 1, 0xFF << 7),
    np.dtype(np.float16): (np.uint16, 2**15 - 1, 0x1F << 10),
}
_PIECE = 1 << 16  # values that fit a core's cache


def all_finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite, at about 5 GB/s: NumPy's own test takes 10 times as long for bfloat16."""
    kind, magnitude, infinity = _BITS[array.dtype]
    bits = np.ascontiguousarray(array).reshape(-1).view(kind)
    kept = np.empty(min(_PIECE, bits.size), kind)
    for start in range(0, bits.size, _PIECE):
        piece = bits[start : start + _PIECE]
        if np.bitwise_and(piece, kind(magnitude), out=kept[: piece.size]).max() >= infinity:
            return False
    return True


def sampled_bytes(path: os.PathLike[str], *, places: int = 4, size: int = 4096) -> Iterator[bytes]:
    """Yield a file's header, then of every tensor `size` bytes at `places` evenly spaced offsets, or all bytes of a small one.

    Raises UserError for a file that is truncated or no safetensors.
    """
    check_file(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        yield header
        for name, tensor in strict_json.loads(header).items():
            if name == "__metadata__":
                continue
            start, end = (8 + length + offset for offset in tensor["data_offsets"])
            if end - start <= places * size:
                file.seek(start)
                yield file.read(end - start)
                continue
            for place in range(places):
                file.seek(start + (end - start - size) * place // (places - 1))
                yield file.read(size)


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to be written; `read` returns its values and is called only when it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def joined_pieces(plans: Sequence[TensorPlan]) -> list[TensorPlan]:
    """The plans, with the pieces of each tensor joined into one plan at the first piece's position. ValueError if one is
    missing."""
    joined: list[TensorPlan] = []
    pieces: dict[str, dict[int, TensorPlan]] = {}
    for plan in plans:
        name, number, count = whole_name(plan.name)
        if count == 1:
            joined.append(plan)
            continue
        if name not in pieces:
            joined.append(plan)
        pieces.setdefault(name, {})[number] = plan
    return [plan if whole_name(plan.name)[2] == 1 else _joined(plan.name, pieces) for plan in joined]


def _joined(piece: str, pieces: Mapping[str, Mapping[int, TensorPlan]]) -> TensorPlan:
    name, _, count = whole_name(piece)
    parts = [pieces[name][number] for number in sorted(pieces[name])]
    if len(parts) != count or len({(part.shape, part.dtype) for part in parts}) > 1:
        raise ValueError(f"{name} needs {count} equal pieces, there are {[(part.name, part.shape) for part in parts]}")
    shape = (count * parts[0].shape[0], *parts[0].shape[1:])
    return TensorPlan(name, shape, parts[0].dtype, lambda: np.concatenate([part.read() for part in parts]))


def _writing_order(plans: Sequence[TensorPlan]) -> list[TensorPlan]:
    """The plans by descending item size, so that every tensor of a file begins at a multiple of its item size."""
    return sorted(plans, key=lambda plan: -plan.dtype.itemsize)


def write_tensors(directory: Path | epath.Path, plans: Sequence[TensorPlan], shard_bytes: int) -> None:
    """Write `model.safetensors`, or shards of at most `shard_bytes` (at least one tensor each) and their index."""
    plans = joined_pieces(plans)
    shards = _shards(_writing_order(plans), shard_bytes)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))] if len(shards) > 1 else [SINGLE]
    for filename, shard in zip(names, shards, strict=True):
        _write_file(directory / filename, shard)
    if len(shards) > 1:
        weight_map = {plan.name: filename for filename, shard in zip(names, shards, strict=True) for plan in shard}
        index = {"metadata": {"total_size": sum(plan.nbytes for plan in plans)}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX).write_text(strict_json.dumps(index, indent=2) + "\n")


def tensor_names(path: os.PathLike[str]) -> list[str]:
    """The names of all tensors in a file. UserError where it is truncated or no safetensors."""
    with _open(path) as file:
        return list(file.keys())


def check_file(path: os.PathLike[str]) -> None:
    """UserError for a file that is truncated or no safetensors."""
    with _open(path):
        pass


def _open(path: os.PathLike[str]):
    try:
        return retried(lambda: safe_open(path, framework="np"), f"{path}")
    except (SafetensorError, OSError) as error:
        if fault(error) not in (Fault.DAMAGED, Fault.OTHER):  # for example no memory or no rights: the file may be sound
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: truncated or not a safetensors file ({reason}); download or export it again") from None


def _shards(plans: Sequence[TensorPlan], shard_bytes: int) -> list[list[TensorPlan]]:
    shards: list[list[TensorPlan]] = [[]]
    size = 0
    for plan in plans:
        if shards[-1] and size + plan.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(plan)
        size += plan.nbytes
    return shards


def _write_file(path: Path | epath.Path, plans: Sequence[TensorPlan]) -> None:
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for plan in plans:
        offsets = [offset, offset + plan.nbytes]
        header[plan.name] = {"dtype": codes[plan.dtype], "shape": list(plan.shape), "data_offsets": offsets}
        offset = offsets[1]
    encoded = strict_json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for plan in plans:
            values = np.ascontiguousarray(plan.read())
            if values.shape != plan.shape or values.dtype != plan.dtype:
                raise ValueError(f"{plan.name}: planned {plan.dtype}{plan.shape}, made {values.dtype}{values.shape}")
            if not all_finite(values):
                raise UserError(f"{plan.name} holds NaN or infinity as {plan.dtype}: such a model is not written")
            file.write(values.reshape(-1).view(np.uint8).data)
