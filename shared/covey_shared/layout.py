"""The layout: which tensors the flat float32 adapter holds, in which order, and how it starts.

Training, sparsifying, quantising, aggregating and personalising are all functions of a float32 vector and a layout.
The names are the keys of PEFT's state dict, so an adapter is published by slicing.

Kaiming-uniform with a = sqrt(5), PEFT's start for lora_A, is uniform in +-1/sqrt(fan_in) (He et al. 2015, eq. 14 with
gain 1/sqrt(3)).
"""

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey_shared.errors import LayoutError
from covey_shared.prng import uniform

Vector = NDArray[np.float32]

KINDS = ("lora_A", "lora_B", "head", "norm", "block")
INITS = ("kaiming_uniform", "zeros", "stored")
MAX_ENTRIES = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One trainable tensor.

    `init` is `kaiming_uniform` (bound 1/sqrt(fan_in), fan_in = product of all dimensions but the first), `zeros`, or
    `stored` (the value lies in the bundle's start file). `scale` is alpha/rank for LoRA and 1 otherwise; `rank` is 0
    for what is not LoRA.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    init: str
    module: str = ""
    rank: int = 0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise LayoutError(f"a tensor of the layout has no name, but {self.name!r}")
        if not self.shape or any(type(d) is not int or d < 1 for d in self.shape):
            raise LayoutError(
                f"tensor {self.name!r} has shape {self.shape}; every dimension must be a positive integer"
            )
        if self.kind not in KINDS:
            raise LayoutError(f"tensor {self.name!r} has kind {self.kind!r}; known kinds are {', '.join(KINDS)}")
        if self.init not in INITS:
            raise LayoutError(f"tensor {self.name!r} has init {self.init!r}; known are {', '.join(INITS)}")
        if type(self.rank) is not int or self.rank < 0 or not isinstance(self.module, str):
            raise LayoutError(f"tensor {self.name!r} has rank {self.rank!r} and module {self.module!r}")
        if type(self.scale) not in (int, float) or not abs(self.scale) <= sys.float_info.max:
            raise LayoutError(f"tensor {self.name!r} has scale {str(self.scale)[:40]!r}; it must be a finite number")
        object.__setattr__(self, "scale", float(self.scale))  # so that 2 and 2.0 are the same layout

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """The canonical JSON object."""
        return {
            "name": self.name, "shape": list(self.shape), "kind": self.kind, "init": self.init,
            "module": self.module, "rank": self.rank, "scale": self.scale,
        }  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The trainable tensors in order. `size` is n, the length of the adapter vector."""

    tensors: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.tensors:
            raise LayoutError("a layout needs at least one tensor")
        names = [t.name for t in self.tensors]
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise LayoutError(f"the layout names {twice!r} twice")
        if self.size > MAX_ENTRIES:
            raise LayoutError(f"the layout has {self.size:,} entries; the wire format holds at most {MAX_ENTRIES:,}")

    @cached_property
    def size(self) -> int:
        """Entries of the whole vector."""
        return sum(t.size for t in self.tensors)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Offset of each tensor in the vector, in entries."""
        ends = np.cumsum([0, *(t.size for t in self.tensors)])
        return tuple(int(x) for x in ends[:-1])

    @cached_property
    def canonical(self) -> bytes:
        """The bytes that the digest covers: compact JSON with sorted keys."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical form, 64 hex digits. Every message that carries a vector carries it."""
        return hashlib.sha256(self.canonical).hexdigest()

    @property
    def rank(self) -> int:
        """The largest LoRA rank in it; 0 where nothing is LoRA."""
        return max(t.rank for t in self.tensors)

    @property
    def short_id(self) -> int:
        """The first four bytes of the digest as a little-endian number: the packed format's layout id."""
        return int.from_bytes(bytes.fromhex(self.digest[:8]), "little")

    def slices(self) -> Iterator[tuple[Tensor, slice]]:
        """Each tensor with its slice of the vector."""
        for tensor, offset in zip(self.tensors, self.offsets, strict=True):
            yield tensor, slice(offset, offset + tensor.size)

    def split(self, vector: Vector) -> dict[str, NDArray[np.float32]]:
        """Views of the vector, by name, each in its tensor's shape."""
        self.check(vector)
        return {t.name: vector[where].reshape(t.shape) for t, where in self.slices()}

    def join(self, arrays: Mapping[str, NDArray[Any]]) -> Vector:
        """The inverse of `split`; refuses a missing, an extra and a wrongly shaped array."""
        missing = [t.name for t in self.tensors if t.name not in arrays]
        extra = sorted(set(arrays) - {t.name for t in self.tensors})
        if missing or extra:
            raise LayoutError(f"the adapter does not fit the layout: missing {missing[:3]}, unknown {extra[:3]}")
        out = np.empty(self.size, np.float32)
        for tensor, where in self.slices():
            array = arrays[tensor.name]
            if tuple(array.shape) != tensor.shape:
                raise LayoutError(f"{tensor.name!r} has shape {tuple(array.shape)}, the layout says {tensor.shape}")
            out[where] = np.asarray(array, np.float32).reshape(-1)
        return out

    def check(self, vector: Vector) -> None:
        """Refuses anything but a float32 vector of this layout's length."""
        if vector.dtype != np.float32 or vector.shape != (self.size,):
            raise LayoutError(f"expected float32 [{self.size}], got {vector.dtype} {list(vector.shape)}")

    def at_rank(self, rank: int) -> "Layout":
        """The layout of a lower rank: of each LoRA tensor the first `rank` rows (lora_A) or columns (lora_B).

        Tensors of that rank or less, and what is not LoRA, stay as they are, and so does every scale: a lower rank is
        the same model with the last factors missing, with alpha = scale * rank. Equal layouts are the same object.
        """
        if rank < 1:
            raise LayoutError(f"the rank is {rank}; it must be at least 1")
        if all(t.rank <= rank for t in self.tensors):
            return self
        return Layout(tuple(_cut(t, rank) for t in self.tensors))

    def positions(self, sub: "Layout") -> NDArray[np.int64]:
        """Where the entries of a sub-layout stand in this one: int64 [sub.size], by the names of the tensors.

        A tensor of `sub` may be smaller than ours; it is then its first entries along each dimension. So
        `vector[positions]` restricts a vector, and `full[positions] = vector` embeds one.
        """
        ours = {t.name: (t, where.start) for t, where in self.slices()}
        return np.concatenate([_inside(t, *ours.get(t.name, (None, 0))) for t in sub.tensors])

    @property
    def stored_size(self) -> int:
        """Entries of the tensors whose start lies in the bundle."""
        return sum(t.size for t in self.tensors if t.init == "stored")

    def start(self, seed: int, stored: Vector | None = None) -> Vector:
        """The adapter at version 0, float32 [n]: a function of the seed and of the bundle's stored values.

        One SplitMix64 stream runs through the `kaiming_uniform` tensors in layout order; an entry is
        (2u - 1) * float32(1/sqrt(fan_in)), each operation in float32. `stored` holds the stored tensors back to back.
        """
        stored = np.empty(0, np.float32) if stored is None else stored
        if stored.shape != (self.stored_size,):
            raise LayoutError(f"the start file has {stored.size} entries, the layout stores {self.stored_size}")
        out = np.zeros(self.size, np.float32)
        drawn = taken = 0
        for tensor, where in self.slices():
            if tensor.init == "kaiming_uniform":
                bound = np.float32(1.0 / math.sqrt(math.prod(tensor.shape[1:])))
                u = uniform(seed, drawn, tensor.size)
                out[where] = (u * np.float32(2) - np.float32(1)) * bound
                drawn += tensor.size
            elif tensor.init == "stored":
                out[where] = stored[taken : taken + tensor.size]
                taken += tensor.size
        return out

    def to_json(self) -> list[dict[str, Any]]:
        """A JSON list, one object a tensor."""
        return [t.to_json() for t in self.tensors]

    @classmethod
    def from_json(cls, data: Any) -> "Layout":
        """The inverse of `to_json`; refuses unknown and missing fields."""
        if not isinstance(data, list):
            raise LayoutError("a layout must be a JSON list of tensors")
        tensors = []
        for i, item in enumerate(data):
            if not isinstance(item, dict) or not isinstance(item.get("shape"), list):
                raise LayoutError(f"tensor {i} of the layout is not an object with a shape")
            try:
                tensors.append(Tensor(**{**item, "shape": tuple(item["shape"])}))
            except TypeError as error:
                raise LayoutError(f"tensor {i} of the layout: {error}") from None
        return cls(tuple(tensors))


def _cut(tensor: Tensor, rank: int) -> Tensor:
    """The first `rank` rows of a lora_A, columns of a lora_B."""
    if tensor.rank <= rank:
        return tensor
    along = 0 if tensor.kind == "lora_A" else 1
    if tensor.kind not in ("lora_A", "lora_B") or len(tensor.shape) < 2 or tensor.shape[along] != tensor.rank:
        raise LayoutError(f"tensor {tensor.name!r} of shape {tensor.shape} has no lower rank than {tensor.rank}")
    shape = (*tensor.shape[:along], rank, *tensor.shape[along + 1 :])
    return replace(tensor, shape=shape, rank=rank)


def _inside(part: Tensor, whole: Tensor | None, offset: int) -> NDArray[np.int64]:
    """Positions of the first entries of a tensor along each dimension, in the vector in which it starts at `offset`."""
    if whole is None:
        raise LayoutError(f"the layout has no tensor {part.name!r}")
    small = len(part.shape) == len(whole.shape) and all(p <= w for p, w in zip(part.shape, whole.shape, strict=True))
    if not small:
        raise LayoutError(f"{part.name!r} of shape {part.shape} is no part of the layout's, of shape {whole.shape}")
    index = np.arange(offset, offset + whole.size, dtype=np.int64).reshape(whole.shape)
    return index[tuple(slice(d) for d in part.shape)].reshape(-1)


def vector_digest(vector: Vector) -> str:
    """SHA-256 of the little-endian float32 bytes, 64 hex digits: the identity of an adapter version."""
    return hashlib.sha256(np.ascontiguousarray(vector, "<f4").tobytes()).hexdigest()
