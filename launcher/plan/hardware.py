"""Accelerators as their makers' data sheets describe them. Peaks are `training.metrics.mfu`'s: one source for both."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import UserError
from training.metrics.mfu import peak_flops

RESERVE = 0.05
"""Of the memory, kept back in a plan for what no formula counts (launcher.dry_run.ON_TOP): our choice, not measured."""


@dataclass(frozen=True)
class Accelerator:
    """One accelerator in its usual node. Bandwidths are bytes a second in one direction, of the data sheet."""

    name: str
    device: str
    """As torch names it."""
    generation: str
    """Architecture: which efficiency curve is nearest."""
    peak_flops: float
    """Dense bf16 products, operations a second; of a V100, which has none, fp16."""
    fp32_flops: float
    """fp32 without tensor cores."""
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    """To the other accelerators of its node, all links together."""
    network_bandwidth: float
    """To other nodes, in the node that `source` names: an assumption about yours."""
    host_bandwidth: float
    """To its host's memory: PCIe."""
    watts: float
    """Of the board, at most."""
    source: str

    @property
    def usable_bytes(self) -> float:
        """What a plan may fill."""
        return (1 - RESERVE) * self.memory_bytes


def _of(name: str, device: str, generation: str, **figures: float | str) -> Accelerator:
    peak = peak_flops(device)
    if peak is None:
        raise AssertionError(f"training.metrics.mfu does not know {device}")
    return Accelerator(name=name, device=device, generation=generation, peak_flops=peak, **figures)  # type: ignore[arg-type]


_GIGA = 1e9
_HOPPER = {"fp32_flops": 67e12, "link_bandwidth": 450 * _GIGA, "host_bandwidth": 64 * _GIGA, "watts": 700.0}
_AMPERE = {"fp32_flops": 19.5e12, "link_bandwidth": 300 * _GIGA, "host_bandwidth": 32 * _GIGA, "watts": 400.0}
_VOLTA = {
    "peak_flops": 125e12,
    "fp32_flops": 15.7e12,
    "memory_bandwidth": 900 * _GIGA,
    "link_bandwidth": 150 * _GIGA,
    "network_bandwidth": 6.25 * _GIGA,
    "host_bandwidth": 16 * _GIGA,
    "watts": 300.0,
    "source": "V100 data sheet (SXM2): 125 TFLOP/s fp16, 900 GB/s, NVLink 300 GB/s both ways; DGX-1: 4 x 100 Gbit/s",
}

_ALL = (
    Accelerator("v100-16gb", "Tesla V100-SXM2-16GB", "volta", memory_bytes=16 * _GIGA, **_VOLTA),  # type: ignore[arg-type]
    Accelerator("v100-32gb", "Tesla V100-SXM2-32GB", "volta", memory_bytes=32 * _GIGA, **_VOLTA),  # type: ignore[arg-type]
    _of(
        "a100-40gb",
        "NVIDIA A100-SXM4-40GB",
        "ampere",
        memory_bytes=40 * _GIGA,
        memory_bandwidth=1555 * _GIGA,
        network_bandwidth=25 * _GIGA,
        source="A100 data sheet: 1,555 GB/s, NVLink 600 GB/s both ways, 400 W; DGX A100: 8 x 200 Gbit/s",
        **_AMPERE,
    ),
    _of(
        "a100-80gb",
        "NVIDIA A100-SXM4-80GB",
        "ampere",
        memory_bytes=80 * _GIGA,
        memory_bandwidth=2039 * _GIGA,
        network_bandwidth=25 * _GIGA,
        source="A100 data sheet: 2,039 GB/s, NVLink 600 GB/s both ways, 400 W; DGX A100: 8 x 200 Gbit/s",
        **_AMPERE,
    ),
    _of(
        "a100-pcie",
        "NVIDIA A100-PCIE-80GB",
        "ampere",
        memory_bytes=80 * _GIGA,
        memory_bandwidth=1935 * _GIGA,
        network_bandwidth=12.5 * _GIGA,
        source="A100 data sheet (PCIe 80 GB): 1,935 GB/s, PCIe 4 64 GB/s both ways, 300 W; network: 100 Gbit/s assumed",
        **(_AMPERE | {"link_bandwidth": 32 * _GIGA, "watts": 300.0}),
    ),
    _of(
        "h100",
        "NVIDIA H100 80GB HBM3",
        "hopper",
        memory_bytes=80 * _GIGA,
        memory_bandwidth=3350 * _GIGA,
        network_bandwidth=50 * _GIGA,
        source="H100 SXM data sheet: 3.35 TB/s, NVLink 900 GB/s both ways, 700 W; DGX H100: 8 x 400 Gbit/s",
        **_HOPPER,
    ),
    _of(
        "h100-pcie",
        "NVIDIA H100 PCIe",
        "hopper",
        memory_bytes=80 * _GIGA,
        memory_bandwidth=2000 * _GIGA,
        network_bandwidth=25 * _GIGA,
        source="H100 PCIe data sheet: 2 TB/s, PCIe 5 128 GB/s both ways, 350 W; network: 200 Gbit/s assumed",
        **(_HOPPER | {"fp32_flops": 51e12, "link_bandwidth": 64 * _GIGA, "watts": 350.0}),
    ),
    _of(
        "h200",
        "NVIDIA H200",
        "hopper",
        memory_bytes=141 * _GIGA,
        memory_bandwidth=4800 * _GIGA,
        network_bandwidth=50 * _GIGA,
        source="H200 SXM data sheet: 4.8 TB/s, NVLink 900 GB/s both ways, 700 W; DGX H200: 8 x 400 Gbit/s",
        **_HOPPER,
    ),
    _of(
        "b200",
        "NVIDIA B200",
        "blackwell",
        fp32_flops=75e12,
        memory_bytes=180 * _GIGA,
        memory_bandwidth=8000 * _GIGA,
        link_bandwidth=900 * _GIGA,
        network_bandwidth=50 * _GIGA,
        host_bandwidth=64 * _GIGA,
        watts=1000.0,
        source="DGX B200 data sheet: 1,440 GB and 64 TB/s for 8, NVLink 14.4 TB/s for 8, both ways; 8 x 400 Gbit/s; "
        "1,000 W at most (DGX B200 user guide, power capping)",
    ),
)
ACCELERATORS: dict[str, Accelerator] = {one.name: one for one in _ALL}
_ALSO = {"a100": "a100-80gb", "v100": "v100-32gb", "h100-sxm": "h100", "h200-sxm": "h200"}


def of_device(name: str) -> Accelerator | None:
    """The accelerator that torch names so; None where it is not known."""
    return next((one for one in _ALL if one.device == name), None)


def check_precision(accelerator: Accelerator, precision: str) -> None:
    """Raises UserError where an accelerator has no units for it: what torch does in their place is far slower."""
    if accelerator.generation == "volta" and precision == "bf16":
        raise UserError(
            f"{accelerator.name} has no units for bf16: plan with --training.precision fp32, or for another --gpu"
        )


def accelerator(name: str) -> Accelerator:
    """Look one up, in any case; raises UserError naming those that are known."""
    key = name.lower().replace("_", "-")
    found = ACCELERATORS.get(_ALSO.get(key, key))
    if found is None:
        raise UserError(f"--gpu {name} is not known; there are {', '.join(ACCELERATORS)}")
    return found
