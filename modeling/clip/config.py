"""The shape of a CLIP, how its towers are trained together, and what makes a shape or a layout of it impossible."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from modeling.errors import ModelError
from modeling.layout import Layout

RESNET50_BLOCKS = (3, 4, 6, 3)
"""Bottleneck blocks of each of a ResNet-50's four stages (He et al. 2016, table 1)."""


@dataclass
class CLIPConfig:
    """An image and a text tower (Radford et al. 2021, section 2.4 and table 20); the defaults are ViT-B/32's."""

    family: Literal["clip"] = "clip"
    """The model family, a folder in `modeling`."""
    embed_dim: int = 512
    """Width of the space that pictures and captions meet in."""
    image_size: int = 224
    """Height and width of a picture, in pixels."""
    vision: Literal["vit", "resnet50"] = "vit"
    """The image tower: a vision transformer (Dosovitskiy et al. 2020), or CLIP's ResNet-50, data-parallel only."""
    vision_layers: int = 12
    """Transformer layers of the image tower; a ResNet-50 has its own 16 blocks."""
    vision_width: int = 768
    """Width of the image tower's residual stream; of a ResNet-50, channels after its stem (64; 32 x in the end).
    """
    vision_heads: int = 12
    """Attention heads of the image tower; of a ResNet-50, those of its attention pooling."""
    patch_size: int = 32
    """Height and width of a patch, in pixels."""
    patch_dropout: float = 0.0
    """Share of each picture's patches that a training step leaves out (Li et al. 2023, FLIP)."""
    context_length: int = 77
    """Tokens of a caption, its start and end tokens included; longer ones are cut."""
    vocab_size: int | None = None
    """Tokens in the vocabulary, start and end included; null: as many as the shards' caption tokenizer has."""
    text_layers: int = 12
    """Transformer layers of the text tower."""
    text_width: int = 512
    """Width of the text tower's residual stream."""
    text_heads: int = 8
    """Attention heads of the text tower."""
    activation: Literal["quickgelu", "gelu"] = "quickgelu"
    """MLP nonlinearity: x sigmoid(1.702 x), as OpenAI's weights need it, or the exact GELU."""
    dropout: float = 0.0
    """Probability, on residual branches and attention weights of both transformers."""
    norm_epsilon: float = 1.0e-5
    """Added to the variance."""
    loss: Literal["clip", "sigmoid", "nt_xent"] = "clip"
    """Symmetric InfoNCE (CLIP), pairwise sigmoid (Zhai et al. 2023) or NT-Xent (Chen et al. 2020)."""
    initial_temperature: float = 0.07
    """Similarities are divided by it at the start; its logarithm is learned."""
    max_scale: float | None = 100.0
    """Similarities are never multiplied by more than this (Radford et al. 2021, section 2.5); null: no bound."""
    initial_bias: float = -10.0
    """Added to scaled similarities at the start, `loss: sigmoid` only (Zhai et al. 2023, section 3.2)."""
    loss_tile: int | None = None
    """Rows and columns of the similarity matrix that exist at a time; null: what suits the device."""
    lock_image: bool = False
    """Leave the image tower as it is (Zhai et al. 2022, LiT): no gradients, no dropout, no weight decay."""
    lock_text: bool = False
    """Leave the text tower as it is."""
    freeze_batch_norm: bool = False
    """ResNet-50: normalise by the running statistics, which then stay as they are."""
    interpolate_positions: bool = False
    """Let an imported position table of another image size be interpolated; otherwise it is refused."""
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of red, green and blue in [0, 1], subtracted from pictures."""
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Standard deviation of red, green and blue in [0, 1], which pictures are divided by."""

    @property
    def sequence_length(self) -> int:
        """What the rest of Trestle counts as the tokens of a sample."""
        return self.context_length

    @property
    def vocabulary(self) -> int:
        """Tokens in the vocabulary; raises ModelError while it is not known."""
        if self.vocab_size is None:
            raise ModelError("model.vocab_size is not known yet: name the shards in data.mix, or give a number")
        return self.vocab_size

    @property
    def grid(self) -> int:
        """Patches in a row, of a ViT; positions in a row of the last feature map, of a ResNet-50."""
        return self.image_size // (self.patch_size if self.vision == "vit" else 32)

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def kept_patches(self) -> int:
        """Patches of each picture that a training step sees: the same number for all, at least one."""
        return max(1, round(self.patches * (1.0 - self.patch_dropout)))

    @property
    def learns_statistics(self) -> bool:
        """Whether a training step changes the running statistics of batch norm."""
        return self.vision == "resnet50" and not (self.freeze_batch_norm or self.lock_image)

    @property
    def initial_log_scale(self) -> float:
        return -math.log(self.initial_temperature)

    @property
    def maximal_log_scale(self) -> float | None:
        return None if self.max_scale is None else math.log(self.max_scale)

    def check(self) -> None:
        """Raise ModelError for a shape that cannot be built."""
        sizes = ("embed_dim", "image_size", "vision_layers", "vision_width", "vision_heads", "patch_size")
        for name in (*sizes, "vocab_size", "text_layers", "text_width", "text_heads", "loss_tile"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ModelError(f"model.{name} is {size}; it must be at least 1")
        if self.context_length < 3:
            raise ModelError(f"model.context_length is {self.context_length}; start, one token and end need at least 3")
        for tower in ("vision", "text"):
            width = getattr(self, f"{tower}_width") * (32 if tower == "vision" and self.vision == "resnet50" else 1)
            heads = getattr(self, f"{tower}_heads")
            if width % heads:
                raise ModelError(
                    f"the {tower} tower's width {width} is not divisible by model.{tower}_heads {heads}; "
                    f"{_near(width, heads)} heads would fit"
                )
        self._check_pictures()
        self._check_training()

    def _check_pictures(self) -> None:
        if self.vision == "vit" and self.image_size % self.patch_size:
            raise ModelError(
                f"model.image_size {self.image_size} is not a multiple of model.patch_size {self.patch_size}; "
                f"{self.image_size // self.patch_size * self.patch_size or self.patch_size} would fit"
            )
        if self.vision == "resnet50" and self.image_size % 32:
            raise ModelError(
                f"model.image_size {self.image_size} is not a multiple of 32, by which a resnet50 shrinks pictures; "
                f"{max(1, self.image_size // 32) * 32} would fit"
            )
        if self.vision == "resnet50" and self.vision_width % 2:
            raise ModelError(
                f"model.vision_width is {self.vision_width}; a resnet50's first layers have half of it: make it even"
            )
        if self.vision == "resnet50" and self.patch_dropout > 0:
            raise ModelError(f"model.patch_dropout is {self.patch_dropout}, but a resnet50 has no patches; set it to 0")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ModelError(f"model.{name} needs three numbers, for red, green and blue")
        if min(self.image_std) <= 0:
            raise ModelError(
                f"model.image_std is {list(self.image_std)}; pictures are divided by it, so it must be > 0"
            )

    def _check_training(self) -> None:
        for name in ("dropout", "patch_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ModelError(f"model.{name} is {getattr(self, name)}; it must be in [0, 1)")
        if self.initial_temperature <= 0:
            raise ModelError(f"model.initial_temperature is {self.initial_temperature}; it must be above 0")
        if self.max_scale is not None and self.max_scale * self.initial_temperature < 1.0:
            raise ModelError(
                f"model.initial_temperature {self.initial_temperature} is a scale of "
                f"{1 / self.initial_temperature:.4g}, above model.max_scale {self.max_scale}; raise one of them"
            )
        if self.lock_image and self.lock_text:
            raise ModelError("model.lock_image and model.lock_text leave no tower to train; unlock one of them")

    def check_layout(self, layout: Layout) -> None:
        """Raise ModelError for a layout that this model cannot be divided by."""
        if layout.pipeline > 1:
            raise ModelError(
                f"parallel.pipeline is {layout.pipeline}, but CLIP's two towers are not divided into stages; set it to "
                "1, and parallel.tensor or parallel.zero_stage higher if the model does not fit"
            )
        if self.vision == "resnet50" and layout.tensor > 1:
            raise ModelError(
                f"parallel.tensor is {layout.tensor}, but a resnet50 runs data-parallel only; set parallel.tensor to 1"
            )
        # A recipe's `parallel` section is a layout that says more.
        if self.learns_statistics and getattr(layout, "zero_stage", 0) == 3:
            raise ModelError(
                "parallel.zero_stage 3 keeps weights in parts between passes, where what a resnet50's batch norm "
                "writes to its running statistics would be lost; use stage 2 or less, or model.freeze_batch_norm true"
            )
        for name in ("vision_heads", "text_heads"):
            size = getattr(self, name)
            if size % layout.tensor:
                raise ModelError(
                    f"model.{name} {size} is not divisible by parallel.tensor {layout.tensor}; "
                    f"{_near(size, layout.tensor)} would fit"
                )

    def check_fresh(self) -> None:
        """Raise ModelError for what makes sense with imported weights alone, where training begins with random ones."""
        for name in ("lock_image", "lock_text", "freeze_batch_norm"):
            if getattr(self, name):
                raise ModelError(
                    f"model.{name} keeps what is there as it is, and a new run begins with random weights; make the "
                    "run from a trained model with `trestle import`, or set it to false"
                )

    def check_micro_batches(self, count: int) -> None:
        """Raise ModelError where a rank's `count` micro-batches of a step would not be one batch to the model."""
        if self.learns_statistics and count > 1:
            raise ModelError(
                f"a resnet50's batch norm takes its statistics from the whole batch, but {count} micro-batches a rank "
                "are embedded one by one; set batch.micro_batch_size to a rank's share of batch.global_batch_size, or "
                "model.freeze_batch_norm to true, with imported weights"
            )


def _near(size: int, wanted: int) -> str:
    """The divisors of `size` next to `wanted`, for a message."""
    below = max((d for d in range(1, min(wanted, size) + 1) if size % d == 0), default=1)
    above = min((d for d in range(wanted, size + 1) if size % d == 0), default=below)
    return str(below) if above == below else f"{below} or {above}"
