"""The stored numbers that no loss depends on, which therefore cannot be compared between layouts."""

from __future__ import annotations

import torch


def depended_on(name: str, *, heads: int, groups: int, head_size: int) -> torch.Tensor | None:
    """Which entries of the parameter `name` a loss depends on, `[(heads + 2 groups) head_size]` bool; null: all do.

    Attention is a softmax over j of q_i · (W x_j + b) / sqrt(d). The keys' bias b adds q_i · b / sqrt(d) to every score
    of a row alike, which a softmax does not see: with learned positions its gradient is exactly zero. What a machine
    computes there is rounding (measured in fp32: 1e-12 to 1e-10, where all other gradients are above 1e-6), which Adam
    divides by its own size: the entries walk by up to the learning rate a step, along noise that every layout, thread
    count and kernel draws afresh. Not so with rotary positions, which turn b by j: there all entries count.

    A query group of `linear_qkv.bias` is [its heads' queries, its key, its value], `head_size` entries each.
    """
    if not name.endswith("linear_qkv.bias"):
        return None
    of_group = torch.ones(heads // groups + 2, head_size, dtype=torch.bool)
    of_group[-2] = False
    return of_group.flatten().repeat(groups)
