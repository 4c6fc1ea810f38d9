"""What a training system does besides the model's products, and what of it overlaps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Habits:
    """Shares are between 0 (all of it waits) and 1 (all of it hides, as far as there is something to hide behind)."""

    flash_attention: bool = True
    """Attention in one kernel that skips what a causal mask hides; else two products, and a softmax over memory."""
    fused_passes: float = 1.0
    """Elementwise passes over memory, relative to one kernel an operation."""
    fused_kernels: float = 1.0
    """Kernels started for them, relative to one an operation."""
    attention_only: bool = False
    """Selective recomputation is of attention's core alone (Korthikanti et al. 2022), not of the MLP as well."""
    gradient_width: float = 4.0
    """Bytes of a gradient on its way to the data-parallel peers."""
    compiled: bool = False
    """Whether torch.compile also makes one kernel of the cross-entropy."""
    data_overlap: float = 0.0
    """Of reducing gradients and gathering weights, behind forward and backward of the micro-batches that it follows."""
    tensor_overlap: float = 0.0
    """Of tensor-parallel collectives, behind the products around them."""
    pipeline_overlap: float = 0.0
    """Of handing activations to the next stage."""
    scatter_gather: bool = False
    """A tensor-parallel rank hands over its part alone, and the part is gathered again (Narayanan et al. 2021, 4.1)."""
    gradient_bytes: float = 10.0
    """Bytes a parameter and micro-batch for adding its gradient to the sum: read in bf16, read and written in fp32."""
    sweep_bytes: float = 16.0
    """Bytes a parameter and step that every rank moves over all its gradients: averaged (8), norm (4), weights
    copied (4)."""
    adam_bytes: float = 38.0
    """Bytes a parameter and step where its optimizer state is: clipped (8), gradient, master and moments read (16),
    written (12), rounded to bf16 (2)."""
    source: str = ""


def trestle(compiled: bool, sequence: bool) -> Habits:
    """What Trestle does: DeepSpeed's optimizers reduce at the end of a step (`overlap_comm` off), stages hand over one
    exchange at a time, and tensor-parallel sums wait, but for Megatron Core's backward under sequence parallelism:
    there the gather of a product's input and the scattering sum of its gradient run beside other products (two of five
    sums). That compiled layers move half as much in a third of the kernels is an estimate: between products there are
    two of them where there were four to six.
    """
    return Habits(
        fused_passes=0.5 if compiled else 1.0,
        fused_kernels=0.3 if compiled else 1.0,
        compiled=compiled,
        tensor_overlap=0.4 if sequence else 0.0,
        source="gradients are reduced after the last micro-batch, nothing of it overlaps; hand-overs wait"
        + ("; two of five tensor-parallel collectives run beside products" if sequence else "")
        + ("; compiled layers move half as much between products (an estimate)" if compiled else ""),
    )
