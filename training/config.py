"""The recipe's sections that belong to training. Sizes are per model, not per rank; times are steps or tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modeling.layout import Layout
from training.errors import RecipeError


@dataclass
class RunConfig:
    """Which run this is."""

    name: str = "run"
    """Folder of the run inside `directory`."""
    directory: str = "runs"
    """Where runs are kept."""
    seed: int = 1234
    """Seeds initial weights, dropout and the order of the data."""

    def check(self) -> None:
        """Raise RecipeError for a name that would lead out of `directory`."""
        if not self.name or self.name in (".", "..") or "/" in self.name or "\0" in self.name:
            raise RecipeError(f"run.name is {self.name!r}; it must be the name of a folder inside run.directory")


@dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) and its schedule; the defaults are GPT-3's (Brown et al. 2020, appendix B)."""

    lr: float = 6.0e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the two moments."""
    eps: float = 1.0e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay, on matrices only: norms and biases are left alone."""
    clip_grad_norm: float = 1.0
    """Global gradient norm to clip at; 0 does not clip."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after warm-up."""
    warmup: int | str = 0
    """Linear warm-up, in steps or tokens (`20`, `375M tokens`)."""
    decay: int | str | None = None
    """When the schedule reaches its end, in steps or tokens, warm-up included; null: with the run."""
    min_lr_ratio: float = 0.1
    """Learning rate at the end of the schedule, as a fraction of `lr`."""

    def check(self) -> None:
        """Raise RecipeError for values that mean nothing."""
        if not self.lr > 0:
            raise RecipeError(f"optimizer.lr is {self.lr}; it must be above 0")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise RecipeError(f"optimizer.betas are {list(self.betas)}; each must be in [0, 1)")
        if not 0.0 <= self.min_lr_ratio <= 1.0:
            raise RecipeError(f"optimizer.min_lr_ratio is {self.min_lr_ratio}; it must be in [0, 1]")
        if self.weight_decay < 0 or self.clip_grad_norm < 0 or not self.eps > 0:
            raise RecipeError("optimizer.weight_decay and clip_grad_norm must not be negative, and eps must be above 0")


@dataclass
class ParallelConfig(Layout):
    """The model's layout over ranks, and how the optimizer's state is sharded over the data-parallel ones."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage (Rajbhandari et al. 2020); 0 is the plain fp32 reference without DeepSpeed."""
    offload_optimizer: bool = False
    """Keep the optimizer's state and its step on the CPU (ZeRO-Offload, Ren et al. 2021)."""

    def check_engine(self, precision: str) -> None:
        """Refuse what DeepSpeed and Megatron Core cannot do together, with the reason."""
        if self.zero_stage >= 2 and self.pipeline > 1:
            raise RecipeError(
                f"parallel.zero_stage {self.zero_stage} divides gradients after every micro-batch, which a pipeline "
                f"schedule keeps in flight (parallel.pipeline {self.pipeline}); use zero_stage 1, or pipeline 1"
            )
        if self.zero_stage == 0 and precision != "fp32":
            raise RecipeError(
                f"parallel.zero_stage 0 is the fp32 reference, but training.precision is {precision}; "
                "use zero_stage 1 for bf16 with fp32 master weights, or precision fp32"
            )
        if self.offload_optimizer and self.zero_stage in (0, 3):
            raise RecipeError(
                "parallel.offload_optimizer moves the shards of zero_stage 1 or 2 to the CPU, but zero_stage is "
                f"{self.zero_stage}; set one of the two differently"
            )
        if self.offload_optimizer and self.pipeline > 1:
            raise RecipeError(
                f"parallel.offload_optimizer accumulates gradients outside the pipeline schedule (parallel.pipeline "
                f"{self.pipeline}); use pipeline 1, or offload_optimizer false"
            )


@dataclass
class TrainingConfig:
    """How long, how exactly, and how often to look."""

    steps: int | str = 300
    """Length of the run, in steps or tokens."""
    stop_after: int | None = None
    """End early after this many steps, the schedule unchanged; null: never; 0: never, too."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 keeps fp32 master weights and accumulates gradients in fp32."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations to compute again in backward: none, the attention core and the MLP, or whole layers."""
    compile: bool = False
    """Compile each layer with torch.compile; needs a C++ compiler."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl and TensorBoard."""
    validate_every: int = 0
    """Steps between validations; 0: only at the end."""
    validation_samples: int = 512
    """Held-out samples a validation of text looks at, from the start of each set in turn; 0: all. Of pictures and texts
    evaluation.samples says it.
    """
    early_stopping: int | None = None
    """Stop after this many validations without a better loss; null: never."""
    max_skipped_steps: int = 10
    """Stop when this many steps in a row had a gradient that is not finite; each is skipped on every rank alike."""
    spike_factor: float | None = None
    """A loss above this many times its running mean is a spike: go back and skip the data; null: never."""
    spike_checkpoints: int = 1
    """How many checkpoints to go back after a spike."""
    max_spikes: int = 3
    """Stop after this many spikes."""
    deterministic: bool = False
    """On a GPU, use deterministic kernels only; a CPU always does."""
    straggler_factor: float | None = 1.5
    """Name a rank that works this many times as long as the median of its peers (ranks of the same place in other
    replicas); null: compare nothing."""
    straggler_seconds: float = 60.0
    """For how long it must have been that slow, in every logging interval, three at least."""
    check_replicas_every: int | None = None
    """Steps between checks that data-parallel replicas hold equal weights, also made before each checkpoint that
    checkpoint.every asks for; null: never."""
    check_recompute_every: int | None = None
    """Steps between checks that a step computed twice gives the same bits, which costs that step again; null: never."""
    sample_prompt: str | None = None
    """Continue this text at each validation and show it in TensorBoard; null: nothing."""

    def check(self) -> None:
        """Raise RecipeError for values that mean nothing."""
        for name, least in (("validate_every", 0), ("validation_samples", 0), ("stop_after", 0), ("early_stopping", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"training.{name} is {value}; it must be at least {least}")
        if self.spike_checkpoints < 1 or self.max_spikes < 0:
            raise RecipeError(
                f"training.spike_checkpoints is {self.spike_checkpoints} and max_spikes {self.max_spikes}; "
                "the first must be at least 1, the second not negative"
            )
        for name in ("check_replicas_every", "check_recompute_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"training.{name} is {value}; it must be at least 1, or null")
        if (self.straggler_factor is not None and self.straggler_factor <= 1) or self.straggler_seconds < 0:
            raise RecipeError(
                f"training.straggler_factor is {self.straggler_factor} and straggler_seconds {self.straggler_seconds}; "
                "the first must be above 1, or null, the second not negative"
            )
        if self.log_every < 1:
            raise RecipeError(f"training.log_every is {self.log_every}; it must be at least 1")
        if self.max_skipped_steps < 1:
            raise RecipeError(f"training.max_skipped_steps is {self.max_skipped_steps}; it must be at least 1")
        if self.spike_factor is not None and self.spike_factor <= 1:
            raise RecipeError(
                f"training.spike_factor is {self.spike_factor}; a spike is above the mean, so it must exceed 1"
            )


@dataclass
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every: int = 500
    """Steps between checkpoints; the last step always writes one. 0: only the last."""
    keep: int = 3
    """How many of the newest to keep."""
    keep_every: int | None = None
    """Keep every checkpoint whose step is a multiple of this, too."""
    keep_best: bool = True
    """Keep the one with the lowest validation loss, too."""
    asynchronous: bool = True
    """Train on while a checkpoint is written."""
    remote: str | None = None
    """Where else checkpoints are kept, in `remote`/`run.name`: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, or a folder that
    is there, as on an NFS mount; uploaded beside the training, each rank its own files. A run without checkpoints in
    its folder goes on from there. Keys and endpoint come from where you keep them (AWS_* variables, ~/.aws, fsspec's
    configuration).
    """
    remote_wait_seconds: float = 600.0
    """How long a run that has finished waits for its last checkpoint to arrive there."""
    busy_seconds: float = 60.0
    """How long a save waits for the one before if storage holds that up; then it is left out, and training goes on."""

    def check(self) -> None:
        """Raise RecipeError for values that mean nothing."""
        if self.keep_every is not None and self.keep_every < 1:
            raise RecipeError(f"checkpoint.keep_every is {self.keep_every}; it must be at least 1, or null")
        if self.every < 0 or self.keep < 1:
            raise RecipeError(
                f"checkpoint.every is {self.every} and keep is {self.keep}; every must be 0 or more, keep 1 or more"
            )
        if self.remote is not None:
            from training.checkpoint.remote.store import check_location

            check_location(self.remote)
        for name in ("remote_wait_seconds", "busy_seconds"):
            if not getattr(self, name) >= 0:
                raise RecipeError(f"checkpoint.{name} is {getattr(self, name)}; it must be 0 or more")
