"""The model families. Adding one is a folder and a line here; nothing else asks which family it has."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from modeling.clip import config as clip_config
from modeling.clip import flops as clip_flops
from modeling.clip import presets as clip_presets
from modeling.errors import ModelError
from modeling.gpt import config as gpt_config
from modeling.gpt import flops as gpt_flops
from modeling.gpt import presets as gpt_presets

if TYPE_CHECKING:  # torch takes seconds to import, and recipes are read without it
    import torch

    from modeling.coupling import Coupling, Embedded
    from modeling.execution import Execution
    from modeling.sharding import Shard


class Implementation(Protocol):
    """What a family's network module offers."""

    def build(self, config: Any, execution: Execution) -> list[Any]:
        """This rank's chunks with their initial weights; the process groups must have been started."""

    def describe(self, chunk: Any) -> dict[str, Shard]:
        """The global place of each of a chunk's parameters."""

    def forward_step(self, batch: dict[str, torch.Tensor], model: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
        """One micro-batch through one chunk: its output, and the function from it to (loss, figures).

        Of families whose loss is a mean over samples.
        """

    def embed(self, batch: dict[str, torch.Tensor], model: Any) -> Embedded:
        """One micro-batch through the model. Of families that couple a batch."""

    def couple(
        self, embedded: Sequence[Embedded], config: Any, group: torch.distributed.ProcessGroup | None
    ) -> Coupling:
        """The loss over the micro-batches of all ranks of `group`, and its gradients. Of families that couple a batch.

        Collective; `embedded` are this rank's, without a graph.
        """

    def held_out_loss(
        self,
        first: torch.Tensor,
        second: torch.Tensor,
        shared: Sequence[torch.Tensor],
        config: Any,
        group: torch.distributed.ProcessGroup | None,
    ) -> torch.Tensor:
        """The loss alone, a scalar, of features that are known already. Of families that couple a batch."""


@dataclass(frozen=True)
class Family:
    """What the rest of Trestle asks of a model family."""

    name: str
    config: type
    """The typed dataclass of the recipe's `model:` section."""
    presets: dict[str, dict[str, Any]]
    parameter_count: Callable[[Any], int]
    flops_per_token: Callable[[Any], float]
    """Training FLOPs a token, in the convention of the family's `flops.py`."""
    module: str
    """Where the implementation is; imported on first use, since it takes seconds and recipes can be read without it."""
    reads: Literal["text", "pairs"] = "text"
    """What its batches are made of: packed tokens, or pictures with captions."""
    couples_batch: bool = False
    """Whether a sample's loss depends on the other samples of the global batch: then the implementation has `embed` and
    `couple` in place of `forward_step`.
    """

    @property
    def implementation(self) -> Implementation:
        return importlib.import_module(self.module)  # type: ignore[return-value]


FAMILIES: dict[str, Family] = {
    "gpt": Family(
        name="gpt",
        config=gpt_config.GPTConfig,
        presets=gpt_presets.PRESETS,
        parameter_count=gpt_flops.parameter_count,
        flops_per_token=gpt_flops.flops_per_token,
        module="modeling.gpt.network",
    ),
    "clip": Family(
        name="clip",
        config=clip_config.CLIPConfig,
        presets=clip_presets.PRESETS,
        parameter_count=clip_flops.parameter_count,
        flops_per_token=clip_flops.flops_per_token,
        module="modeling.clip.network",
        reads="pairs",
        couples_batch=True,
    ),
}


def family(name: str) -> Family:
    """Look a family up; raises ModelError naming those that exist."""
    if name not in FAMILIES:
        raise ModelError(f"model.family {name!r} does not exist; there is {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def family_of_preset(preset: str) -> Family:
    """The family that a preset belongs to; raises ModelError naming the presets that exist."""
    for candidate in FAMILIES.values():
        if preset in candidate.presets:
            return candidate
    known = ", ".join(sorted(p for f in FAMILIES.values() for p in f.presets))
    raise ModelError(f"model.preset {preset!r} does not exist; there are {known}")
