"""Both towers in one module, their initial weights, and where each parameter belongs globally."""

from __future__ import annotations

from contextlib import nullcontext

from modeling import megatron_bridge  # isort: skip  (the bridge first: it keeps Megatron Core's imports quiet)

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from torch import Tensor

from modeling import transformer
from modeling.clip.blocks import empty
from modeling.clip.config import CLIPConfig
from modeling.clip.initial import initial
from modeling.clip.objective import couple, embed, held_out_loss
from modeling.clip.resnet import ResNet
from modeling.clip.text import TextTransformer
from modeling.clip.vision import VisionTransformer
from modeling.errors import ModelError
from modeling.execution import Execution, allow_compiled_variants
from modeling.sharding import Shard, fill

__all__ = ["CLIP", "build", "couple", "describe", "embed", "held_out_loss", "shared_parameters"]

shared_parameters = ("log_scale", "logit_bias")
"""The scalars behind `Embedded.shared`; the second exists where the loss has a bias."""


class CLIP(torch.nn.Module):
    """The two towers and the learned temperature.

    Called with images `[b, 3, H, W]` (uint8, or floating and then taken as normalised already) and tokens
    `[b, context]` int64 it returns (image features, text features, log scale, bias): features `[b, embed_dim]` of
    length one, in fp32 (fp64 of an fp64 model), None for what was not given; log scale and bias as scalars, the bias
    None unless the loss has one.
    """

    def __init__(self, clip: CLIPConfig, execution: Execution) -> None:
        super().__init__()
        self.clip = clip
        self.execution = execution
        self.vision = VisionTransformer(clip, execution) if clip.vision == "vit" else ResNet(clip, execution)
        self.text = TextTransformer(clip, execution)
        self.log_scale = empty(execution, 1)
        self.logit_bias = empty(execution, 1) if clip.loss == "sigmoid" else None
        # What Megatron Core's schedules ask of a model; there are no stages to hand activations between.
        self.config = self.text.transformer.config
        self.model_type = ModelType.encoder_or_decoder

    def set_input_tensor(self, tensor: object) -> None:
        """Nothing comes from an earlier stage."""

    def train(self, mode: bool = True) -> CLIP:
        """A locked tower stays in evaluation mode: it is a fixed function, without dropout."""
        super().train(mode)
        self.vision.train(mode and not self.clip.lock_image)
        self.text.train(mode and not self.clip.lock_text)
        return self

    def forward(
        self, images: Tensor | None = None, tokens: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
        image = text = None
        if images is not None:
            with torch.no_grad() if self.clip.lock_image else nullcontext():
                image = _features(self.vision(self._normalised(images)))
        if tokens is not None:
            with torch.no_grad() if self.clip.lock_text else nullcontext():
                text = _features(self.text(tokens))
        # Results of an operation: ZeRO 3 takes a parameter's own memory back after forward.
        bias = None if self.logit_bias is None else _at_least_fp32(self.logit_bias).sum()
        return image, text, _at_least_fp32(self.log_scale).sum(), bias

    def _normalised(self, images: Tensor) -> Tensor:
        dtype = self.log_scale.dtype
        if images.dtype != torch.uint8:
            return images.to(dtype)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        mean, std = (
            torch.tensor(values, dtype=exact, device=images.device)[:, None, None] * 255.0
            for values in (self.clip.image_mean, self.clip.image_std)
        )
        return ((images.to(exact) - mean) / std).to(dtype)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _features(x: Tensor) -> Tensor:
    return F.normalize(_at_least_fp32(x), dim=-1)


def build(clip: CLIPConfig, execution: Execution) -> list[CLIP]:
    """This rank's model with its initial weights, one chunk; the process groups must have been started."""
    clip.check()
    clip.check_layout(execution.layout)
    execution.check(clip.dropout)
    _check_precision(clip, execution)
    megatron_bridge.prepare()
    chunk = CLIP(clip, execution)
    chunk.to(device=torch.cuda.current_device(), dtype=execution.dtype)
    shards = describe(chunk)
    for name, parameter in chunk.named_parameters():
        if parameter.device.type != "meta":
            fill(parameter, shards[name], execution.seed)
    for tower, locked in ((chunk.vision, clip.lock_image), (chunk.text, clip.lock_text)):
        if locked:
            for parameter in tower.requires_grad_(False).parameters():
                parameter.sequence_parallel = False  # type: ignore[attr-defined]  # no gradient, nothing to sum
    chunk.train()
    if execution.compile:
        # One function for all layers, of both towers; a variant for each of grad or not and each shape.
        allow_compiled_variants()
        for tower in (chunk.vision, chunk.text):
            for layer in () if isinstance(tower, ResNet) else tower.transformer.layers:
                layer.forward = torch.compile(layer.forward, fullgraph=True, dynamic=False)
    return [chunk]


def _check_precision(clip: CLIPConfig, execution: Execution) -> None:
    if clip.learns_statistics and execution.precision == "bf16":
        raise ModelError(
            "training.precision bf16 would round every small update of a resnet50's running statistics away; use fp32, "
            "or model.freeze_batch_norm true"
        )


def describe(chunk: CLIP) -> dict[str, Shard]:
    """The global place of each local parameter, and the tensor-parallel marks that its gradient's norm depends on.

    Keys are the names of `chunk.named_parameters()`, which are the global ones too.
    """
    return {name: _describe(chunk, name, parameter) for name, parameter in chunk.named_parameters()}


def _describe(chunk: CLIP, name: str, parameter: torch.nn.Parameter) -> Shard:
    tensor = chunk.execution.layout.tensor
    rank = parallel_state.get_tensor_model_parallel_rank()
    axis = next((axis for ending, axis in transformer.SPLIT.items() if name.endswith(ending)), None)
    transformer.mark_tensor_parallel(parameter, axis)
    shape = tuple(parameter.shape)
    global_shape, offset = list(shape), [0] * len(shape)
    if axis is not None:
        global_shape[axis] *= tensor
        offset[axis] = rank * shape[axis]
    value, normal = initial(chunk.clip, name, tuple(global_shape))
    return Shard(
        name=name,
        global_shape=tuple(global_shape),
        offset=tuple(offset),
        shape=shape,
        local_numel=parameter.numel(),
        initial=value,
        normal=normal,
        # As open_clip: tables of positions are matrices, too; gains, biases, the class token and the scale are not.
        decay=parameter.ndim > 1,
        replicas=1 if axis is not None else tensor,
        replica=0 if axis is not None else rank,
        maximum=chunk.clip.maximal_log_scale if name == "log_scale" else None,
    )
