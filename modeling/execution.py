"""How a model is run rather than what it is: precision, recomputation, compilation, layout and seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from modeling.errors import ModelError
from modeling.layout import Layout


@dataclass
class Execution:
    """What every family's `build` needs besides its config."""

    layout: Layout = field(default_factory=Layout)
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations; masters and gradient accumulation are fp32 either way (the engine's business)."""
    recompute: Literal["none", "selective", "full"] = "none"
    compile: bool = False
    seed: int = 1234

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def check(self, dropout: float) -> None:
        """Refuse combinations that cannot run as asked."""
        if self.compile and dropout > 0:
            raise ModelError(
                "training.compile compiles a layer as one graph, which cannot hold the generators of model.dropout "
                f"{dropout}; set model.dropout to 0, or training.compile to false"
            )
        if self.compile and self.recompute == "selective":
            raise ModelError(
                "training.compile compiles a layer as one graph, which training.recompute selective would cut; "
                "use full or none with it"
            )


def allow_compiled_variants() -> None:
    """Before `torch.compile`: a function may be compiled for more shapes than torch's eight, the ninth of which would
    end the run where the whole function must be one graph.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
