"""What an estimate consists of: plain numbers in SI units. The keys of `trestle plan --json` are these names."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.plan.hardware import Accelerator
from training.config import ParallelConfig
from training.memory import RankMemory


@dataclass(frozen=True)
class Prices:
    """What the user pays. Nothing is assumed but that what is not given of power is the boards' alone."""

    per_gpu_hour: float | None = None
    per_kwh: float | None = None
    pue: float = 1.0
    """Power usage effectiveness: energy of the whole site over that of its computers (ISO/IEC 30134-2), 1 or more."""
    watts_per_gpu: float | None = None
    """Of a GPU with its share of the host, the network and the storage; None: of the board alone, at most."""


@dataclass(frozen=True)
class Flops:
    """Operations of one step over all ranks."""

    matmul: float
    """6 N a token of a decoder (Brown et al. 2020, appendix D); of other families the products as they are."""
    products: float
    """Matrix products that run, forward and backward, without attention and recomputation."""
    not_products: float
    """`matmul` - `products`: what 6 N counts though it multiplies nothing (looked-up embeddings, norms, biases)."""
    attention: float
    """Every token attends to the whole sequence: the convention of PaLM and llm-foundry."""
    attention_causal: float
    """Only what the causal mask leaves."""
    hardware: float
    """What runs: `products`, attention's pairs that kernels compute (the causal half, or all under a mask of bands or
    documents), what recomputation adds to both, and a gradient cache's first pass.
    """
    per_token: float
    """`matmul` + `attention`, which MFU is about."""
    per_token_causal: float


@dataclass(frozen=True)
class StageEstimate:
    """A rank of one pipeline stage; seconds are of one micro-batch through all chunks of the stage."""

    stage: int
    parameters: int
    memory: RankMemory
    forward_seconds: float
    backward_seconds: float
    """Without recomputation."""
    recompute_seconds: float
    tensor_seconds: float
    """Tensor-parallel communication that waits, forward and backward."""
    tensor_forward_seconds: float
    """Of it, the forward pass's."""
    handover_seconds: float
    """Of one exchange with a neighbouring stage, as far as it waits."""

    @property
    def tensor_backward_seconds(self) -> float:
        return self.tensor_seconds - self.tensor_forward_seconds

    @property
    def seconds(self) -> float:
        return self.forward_seconds + self.backward_seconds + self.recompute_seconds + self.tensor_seconds


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the slowest stage. All but the overlapped ones add up to the total."""

    compute_seconds: float
    """Forward and backward."""
    recompute_seconds: float
    """Computed again, and the first of a gradient cache's two passes."""
    tensor_seconds: float
    pipeline_seconds: float
    """Handing over between stages."""
    bubble_seconds: float
    """Waiting for the pipeline to fill and to run empty."""
    batch_loss_seconds: float
    """A loss over the whole batch."""
    data_seconds: float
    """Reducing gradients and gathering weights, as far as it waits."""
    optimizer_seconds: float
    total_seconds: float
    data_overlapped_seconds: float = 0.0
    tensor_overlapped_seconds: float = 0.0


@dataclass(frozen=True)
class Training:
    """The whole run."""

    tokens: int
    steps: int
    days: float
    petaflop_s_days: float
    """Of `Flops.matmul`, as Brown et al. 2020 count: 8.64e19 operations each."""
    gpu_hours: float
    energy_kwh: float
    """At the power a GPU that is given, or else at the boards' full power, times the PUE given."""
    cost: float | None
    """None without prices."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: masters and two moments in fp32, 12 bytes a parameter; of what is not trained 4."""

    bytes: int
    files: int
    write_seconds: float | None
    """At the storage bandwidth given; None without one."""
    per_run: int
    """How many are written."""


@dataclass(frozen=True)
class Estimate:
    """Everything that a plan shows."""

    name: str
    family: str
    nodes: int
    gpus_per_node: int
    world_size: int
    accelerator: Accelerator
    parallel: ParallelConfig
    replicas: int
    sequence_length: int
    micro_batch_size: int
    micro_batches: int
    global_batch_size: int
    recompute: str
    precision: str
    compiled: bool
    couples_batch: bool
    parameters: int
    flops: Flops
    stages: tuple[StageEstimate, ...]
    step: StepTime
    mfu: float
    mfu_causal: float
    hfu: float
    tokens_per_second: float
    tokens_per_day: float
    training: Training
    checkpoint: Checkpoint
    fits: bool
    why_not: str
    """The stage that is larger than `Accelerator.usable_bytes`, and by how much; empty if all fit."""
    epochs: dict[str, float] | None = None
    """How often each corpus is read; None where no shards are at hand."""
    assumptions: tuple[str, ...] = field(default=())
    """A line each, with the source."""
    prices: Prices = field(default_factory=Prices)
    """What `training.cost` was computed with."""
