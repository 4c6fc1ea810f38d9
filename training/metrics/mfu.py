"""Model FLOPs utilisation: what the model needs against what the devices could do."""

from __future__ import annotations

import re

# Dense bf16 matrix products with fp32 accumulation, FLOP/s of one device as torch names it, from the makers' data
# sheets. Figures printed "with sparsity" are halved. The first pattern that matches counts.
_PEAKS: list[tuple[str, float]] = [
    (r"H100 PCIe", 756e12),  # H100 PCIe data sheet: 1,513 TFLOPS with sparsity
    (r"H100 NVL|H200 NVL", 835e12),  # H100 NVL and H200 NVL data sheets: 1,671 with sparsity
    (r"H100 80GB HBM3|H100 SXM|H800( SXM.*)?$", 989e12),  # H100 SXM data sheet: 1,979 with sparsity
    (r"H200( SXM.*)?$|GH200", 989e12),  # H200 SXM and GH200 data sheets: 1,979 with sparsity
    (r"A100[- ]|A800[- ]", 312e12),  # A100 data sheet: 312 dense, PCIe and SXM alike
    (r"\bB200$", 2250e12),  # HGX B200 data sheet: 36 PFLOPS with sparsity for 8
    (r"L40S$", 362e12),  # L40S data sheet: 733 with sparsity, 362.05 dense
    (r"\bL4$", 121e12),  # L4 data sheet: 242 with sparsity
    (r"A40$", 149.7e12),  # A40 data sheet: 149.7 dense
    (r"A30$", 165e12),  # A30 data sheet: 165 dense
    (r"A10$", 125e12),  # A10 data sheet: 125 dense
    (r"MI300X", 1307.4e12),  # AMD Instinct MI300X data sheet: 1,307.4 dense
]


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device as `torch.cuda.get_device_name()` names it; None where it is not known.

    A CPU and a MIG slice are never known: their peak depends on what the name does not say.
    """
    if "MIG" in device_name:
        return None
    for pattern, peak in _PEAKS:
        if re.search(pattern, device_name):
            return peak
    return None


def mfu(flops_per_token: float, tokens_per_second: float, device_name: str, world_size: int) -> float | None:
    """flops_per_token · tokens_per_second / (world_size · peak), as in Chowdhery et al. 2022 (PaLM), appendix B.

    `flops_per_token` are the model's for forward and backward, recomputation not counted; `tokens_per_second` are those
    of the whole run. None where the device's peak is not known: never guessed.
    """
    peak = peak_flops(device_name)
    return None if peak is None else flops_per_token * tokens_per_second / (world_size * peak)
