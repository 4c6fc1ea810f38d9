"""The model families. Adding one is a folder and a line here; nothing else asks which family it has."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from modeling.clip import config as clip_config
from modeling.clip import flops as clip_flops
from modeling.clip import footprint as clip_footprint
from modeling.clip import memory as clip_memory
from modeling.clip import presets as clip_presets
from modeling.clip import work as clip_work
from modeling.errors import ModelError
from modeling.footprint import Footprint
from modeling.gpt import config as gpt_config
from modeling.gpt import flops as gpt_flops
from modeling.gpt import footprint as gpt_footprint
from modeling.gpt import memory as gpt_memory
from modeling.gpt import presets as gpt_presets
from modeling.gpt import work as gpt_work
from modeling.layout import Layout
from modeling.memory import Activations, Run
from modeling.work import Work

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

    shared_parameters: tuple[str, ...]
    """Names of the scalar parameters that `Embedded.shared` are, in its order. Of families that couple a batch."""

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


class Conversion(Protocol):
    """What a module offers that converts a family's weights and config to and from a format of another library.

    Pure: reading and writing files is the launcher's.
    """

    MODELS: str
    """What it can read, for a message: "GPT-2 and Llama of transformers"."""
    CONFIG_FILE: str
    """The JSON file of the config in such a folder."""
    BESIDE: tuple[str, ...]
    """Other JSON files there that say something about the model; they need not be there."""
    WEIGHTS: str
    """Of the weights' file, without .safetensors."""
    FREE: tuple[str, ...]
    """Keys of `model` that imported weights do not decide."""

    def recognises(self, theirs: Mapping[str, Any]) -> bool:
        """Whether the contents of a CONFIG_FILE are of this kind."""

    def from_hf_config(self, theirs: Mapping[str, Any]) -> Any:
        """Our config from theirs, in which files of BESIDE are under their names; raises ModelError."""

    def to_hf_config(self, config: Any, *, eod_id: int | None = None) -> dict[str, Any]:
        """The contents of CONFIG_FILE; `eod_id` is the token that ends a text. Raises ModelError."""

    def other_files(self, config: Any) -> dict[str, dict[str, Any]]:
        """Contents of further JSON files to write, by name."""

    def export_tensors(self, config: Any, read: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Their state dict; `read` gives a global tensor by our name."""

    def import_tensors(self, config: Any, read_hf: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Our global tensors; `read_hf` gives theirs by name, or raises KeyError. Raises ModelError."""


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
    footprint: Callable[[Any, Layout, int, str], Footprint]
    """(config, layout, pipeline stage, recompute) → parameters that a rank holds and what it hands over, by formula."""
    work: Callable[[Any, Layout, int, int, str], Work]
    """(config, layout, pipeline stage, samples of a micro-batch, recompute) → what a rank computes, by formula."""
    activations: Callable[[Any, Layout, int, Run], Activations]
    """(config, layout, pipeline stage, run) → what autograd keeps there, by formula."""
    module: str
    """Where the implementation is; imported on first use, since it takes seconds and recipes can be read without it."""
    reads: Literal["text", "pairs"] = "text"
    """What its batches are made of: packed tokens, or pictures with captions."""
    conversions: Mapping[str, str] = field(default_factory=dict)
    """Formats of other libraries by the name that `trestle export --to` knows, and the module that converts each."""
    flops_formula: str = "6 N + 12 h x attended positions"
    """What `flops_per_token` counts, for people."""
    batch_loss_flops: Callable[[Any, int, int], float] | None = None
    """(config, global batch size, replicas) → operations of a rank for a loss over the whole batch."""
    couples_batch: bool = False
    """Whether a sample's loss depends on the other samples of the global batch: then the implementation has `embed` and
    `couple` in place of `forward_step`.
    """

    @property
    def implementation(self) -> Implementation:
        return importlib.import_module(self.module)  # type: ignore[return-value]

    def conversion(self, name: str) -> Conversion:
        """The conversion to and from a format; raises ModelError naming those that this family has."""
        if name not in self.conversions:
            raise ModelError(f"a {self.name} cannot be written as {name!r}; there is {', '.join(self.conversions)}")
        return importlib.import_module(self.conversions[name])  # type: ignore[return-value]


FAMILIES: dict[str, Family] = {
    "gpt": Family(
        name="gpt",
        config=gpt_config.GPTConfig,
        presets=gpt_presets.PRESETS,
        parameter_count=gpt_flops.parameter_count,
        flops_per_token=gpt_flops.flops_per_token,
        footprint=gpt_footprint.footprint,
        activations=gpt_memory.activations,
        work=gpt_work.work,
        module="modeling.gpt.network",
        conversions={"huggingface": "modeling.gpt.huggingface"},
    ),
    "clip": Family(
        name="clip",
        config=clip_config.CLIPConfig,
        presets=clip_presets.PRESETS,
        parameter_count=clip_flops.parameter_count,
        flops_per_token=clip_flops.flops_per_token,
        footprint=clip_footprint.footprint,
        activations=clip_memory.activations,
        work=clip_work.work,
        module="modeling.clip.network",
        conversions={"huggingface": "modeling.clip.huggingface", "openclip": "modeling.clip.openclip"},
        reads="pairs",
        flops_formula="products of both towers, forward and backward, of a pair / tokens of a caption",
        batch_loss_flops=clip_work.similarities,
        couples_batch=True,
    ),
}


def family(name: str) -> Family:
    """Look a family up; raises ModelError naming those that exist."""
    if name not in FAMILIES:
        raise ModelError(f"model.family {name!r} does not exist; there is {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def formats() -> list[str]:
    """Every format that some family converts to and from."""
    return sorted({name for candidate in FAMILIES.values() for name in candidate.conversions})


def family_of_preset(preset: str) -> Family:
    """The family that a preset belongs to; raises ModelError naming the presets that exist."""
    for candidate in FAMILIES.values():
        if preset in candidate.presets:
            return candidate
    known = ", ".join(sorted(p for f in FAMILIES.values() for p in f.presets))
    raise ModelError(f"model.preset {preset!r} does not exist; there are {known}")
