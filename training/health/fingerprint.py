"""An exact hash of a tensor's bits, on its device, without copying it to the host."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch

_CHUNK = 1 << 20
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as Knuth's multiplicative hashing takes it (TAOCP 3, 6.4)
_BETWEEN = 6364136223846793005  # odd: Knuth's MMIX generator


def fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """A whole number, int64 `[]`: the sum over elements of (bits x odd weight of the position), modulo 2^64.

    Any change of a single element changes it for certain (an odd number has an inverse modulo 2^64), others with a
    probability of about 1 - 2^-64. Reads the tensor once, with 16 MiB of room.
    """
    bits = tensor.detach().contiguous().view(-1).view(_INTEGERS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for chunk in bits.split(_CHUNK):
        total = total * _BETWEEN + (chunk.to(torch.int64) * _weights(tensor.device)[: len(chunk)]).sum()
    return total


def fingerprint_of_all(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Of several tensors in their order, int64 `[]`."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    for tensor in tensors:
        total = total * _BETWEEN + fingerprint(tensor).to(device)
    return total


@lru_cache(maxsize=4)
def _weights(device: torch.device) -> torch.Tensor:
    return torch.arange(_CHUNK, dtype=torch.int64, device=device) * (2 * _GOLDEN % (1 << 63)) + 1
