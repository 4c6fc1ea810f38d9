"""Initial weights by name: element i of a parameter is a function of (seed, global name, i).

Nothing is drawn in an order, so a rank fills just its slice and every layout starts from the same bits. The generator
is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), whose i-th output needs
no others; two halves of an output give one normal variate (Box and Muller 1958).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch

_CHUNK = 1 << 20  # elements at a time: bounds the 64-bit temporaries to tens of MB


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift: torch's `>>` on int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def random_bits(key: int, index: torch.Tensor) -> torch.Tensor:
    """64 random bits for every element of `index` (int64, any shape), as int64."""
    x = (index + 1) * _GAMMA + _signed(key)
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def key_of(seed: int, name: str) -> int:
    """The 64-bit key of a parameter."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")


def standard_normal(key: int, index: torch.Tensor) -> torch.Tensor:
    """One standard normal variate (fp32) for every element of `index`."""
    bits = random_bits(key, index)
    first = (_shift_right(bits, 32).to(torch.float64) + 0.5) * 2.0**-32  # in (0, 1): the logarithm is finite
    second = (bits & 0xFFFFFFFF).to(torch.float64) * (2.0**-32 * 2.0 * math.pi)
    return (torch.sqrt(-2.0 * torch.log(first)) * torch.cos(second)).to(torch.float32)


def global_indices(
    global_shape: tuple[int, ...],
    offset: tuple[int, ...],
    shape: tuple[int, ...],
    start: int,
    stop: int,
    device: torch.device,
) -> torch.Tensor:
    """Row-major indices, in the global tensor, of elements [start, stop) of the flattened box at `offset`."""
    flat = torch.arange(start, stop, dtype=torch.int64, device=device)
    result = torch.zeros_like(flat)
    stride = 1
    for size, box, low in zip(reversed(global_shape), reversed(shape), reversed(offset), strict=True):
        result += (flat % box + low) * stride
        flat //= box
        stride *= size
    return result


def fill_normal(
    out: torch.Tensor,
    *,
    seed: int,
    name: str,
    std: float,
    global_shape: tuple[int, ...],
    offset: tuple[int, ...],
    shape: tuple[int, ...],
    start: int = 0,
) -> None:
    """Write N(0, std²) into the 1-D tensor `out`: elements [start, start + len) of the flattened box.

    Values are computed in fp32 and rounded once to `out`'s dtype.
    """
    key = key_of(seed, name)
    for low in range(0, out.numel(), _CHUNK):
        high = min(low + _CHUNK, out.numel())
        index = global_indices(global_shape, offset, shape, start + low, start + high, out.device)
        out[low:high] = standard_normal(key, index) * std


def numel(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
