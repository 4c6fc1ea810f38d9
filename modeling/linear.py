"""Megatron Core's parallel linear layers, with a forward that torch.compile can take as one graph.

Megatron Core's own autograd function warns and looks groups up from inside forward, which breaks a graph; over torch's
`linear` and the group's copy and reduce regions the arithmetic is the same. Under sequence parallelism Megatron Core's
function is kept: it gathers its input again in backward instead of storing it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel


class ColumnParallelLinear(tensor_parallel.ColumnParallelLinear):
    """Y = X A^T with A divided by rows: `[s, b, h]` → `[s, b, out / tensor]`."""

    def forward(
        self, input_: torch.Tensor, weight: torch.Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.sequence_parallel or weight is not None or self.gather_output or runtime_gather_output:
            return super().forward(input_, weight, runtime_gather_output)
        x = tensor_parallel.copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
        # Also where the bias is to be returned for a kernel that would add it: no such kernel is used, and the product
        # adds it on its way.
        return F.linear(x, self.weight, self.bias), None


class RowParallelLinear(tensor_parallel.RowParallelLinear):
    """Y = X A^T with A divided by columns: `[s, b, in / tensor]` → `[s, b, h]`, summed over the group."""

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, Any]:
        if self.sequence_parallel or not self.input_is_parallel or not self.skip_bias_add:
            y, bias = super().forward(input_)
        else:
            y = F.linear(input_, self.weight)
            y, bias = tensor_parallel.reduce_from_tensor_model_parallel_region(y, group=self.tp_group), self.bias
        if bias is not None and self.config.recompute_granularity == "selective":
            # The bias leaves a recomputed region here. An autograd function that returns a parameter becomes that
            # parameter's history: backward would recompute without end.
            bias = bias.view_as(bias)
        return y, bias
