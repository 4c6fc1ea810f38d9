"""How fast CLIP trains with the true global batch: `python -m tests.benchmarks.clip`.

One rank's optimizer steps through the engine (ZeRO 1, gradient cache, one exact loss over the whole batch) on random
pictures and captions that are on the device already, so that what is timed is the model, the loss and the optimizer. On
a GPU the presets run at their batch of 32,768; elsewhere, or with --quick, toys at toy size show that the path runs.
Prints samples/s, model FLOP utilisation over the data sheet's peak (recomputed forward passes not counted), the loss's
share, and peak memory; `--json FILE` writes them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from modeling import groups
from modeling.execution import Execution
from modeling.layout import Layout
from modeling.registry import family
from tests.benchmarks.common import machine, print_table
from training.config import OptimizerConfig, ParallelConfig
from training.engine import start_engine
from training.figures import device_name
from training.metrics.mfu import peak_flops
from training.process import RankEnvironment, start_process_group

TOY: dict[str, Any] = {
    "embed_dim": 64,
    "image_size": 32,
    "patch_size": 8,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_heads": 2,
    "context_length": 16,
    "vocab_size": 500,
    "text_layers": 2,
    "text_width": 64,
    "text_heads": 2,
}


def options_from(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line (or `words`) says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="*", default=["clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14"])
    parser.add_argument("--batch", type=int, default=32_768)
    parser.add_argument("--micro", type=int, nargs="*", default=[4096, 2048, 1024], help="one a preset")
    parser.add_argument("--steps", type=int, default=2, help="timed, after one that is not")
    parser.add_argument("--recompute", default="none", choices=["none", "selective", "full"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a toy, whatever the device")
    parser.add_argument("--json", type=Path, help="write the rows there")
    return parser.parse_args(words)


def main() -> None:
    given = options_from()
    toy = given.quick or not torch.cuda.is_available()
    start_process_group(RankEnvironment(), timeout_seconds=600)
    chosen = family("clip")
    rows = []
    for number, preset in enumerate(["toy"] if toy else given.preset):
        shape = TOY if toy else chosen.presets[preset]
        batch, micro = (48, 20) if toy else (given.batch, given.micro[min(number, len(given.micro) - 1)])
        rows.append({"model": preset, **measure(shape, batch, micro, given.steps, given.recompute, given.compile)})
    dist.destroy_process_group()
    print(f"{device_name()}; {machine('torch', 'megatron-core', 'deepspeed')}\n")
    head = list(rows[0])
    print_table(head, [[cell(row[key]) for key in head] for row in rows])
    if given.json:
        given.json.write_text(json.dumps({"device": device_name(), "torch": torch.__version__, "rows": rows}, indent=1))


def measure(
    shape: dict[str, Any], batch: int, micro: int, steps: int, recompute: str, compiled: bool
) -> dict[str, float | int | str | None]:
    """Figures of `steps` optimizer steps on one rank, after one that is not counted."""
    groups.start_groups(Layout())
    device = groups.device()
    chosen = family("clip")
    config = chosen.config(**shape)
    execution = Execution(precision="bf16", recompute=recompute, compile=compiled)  # type: ignore[arg-type]
    optimizer = OptimizerConfig(lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    engine = start_engine(chosen, config, optimizer, ParallelConfig(), execution, micro)
    images = torch.randint(0, 256, (batch, 3, config.image_size, config.image_size), dtype=torch.uint8, device=device)
    tokens = torch.randint(1, config.vocabulary - 2, (batch, config.context_length), device=device)
    tokens[:, -1] = config.vocabulary - 1
    pairs = zip(images.split(micro), tokens.split(micro), strict=True)
    micro_batches = [{"images": image, "tokens": text} for image, text in pairs]
    on_gpu = device.type == "cuda"
    times, losses, norms = [], [], []
    for step in range(steps + 1):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        begun = time.perf_counter()
        figures = engine.forward_backward(micro_batches)
        norms.append(engine.step(5e-4).grad_norm)
        losses.append(float(torch.cat([f["sample_losses"] for f in figures]).mean()))
        if on_gpu:
            torch.cuda.synchronize()
        if step:
            times.append(time.perf_counter() - begun)
    assert all(0.0 < loss < 100.0 for loss in losses) and all(0.0 < norm < float("inf") for norm in norms)
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None  # of the last step, and of nothing after it
    seconds = statistics.median(times)
    flops = chosen.flops_per_token(config) * config.context_length * batch
    peak = peak_flops(device_name())
    implementation = chosen.implementation
    features = [torch.nn.functional.normalize(torch.randn(batch, config.embed_dim, device=device)) for _ in range(2)]
    scale = torch.tensor(2.66, device=device)
    for _ in range(2):  # the first call chooses kernels, and is not timed
        if on_gpu:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        float(implementation.held_out_loss(*features, [scale], config, None))
        loss_seconds = time.perf_counter() - begun
    engine.close()
    groups.stop_groups()
    return {
        "batch": batch,
        "micro": micro,
        "recompute": recompute,
        "seconds": seconds,
        "samples/s": batch / seconds,
        "mfu": None if peak is None else flops / seconds / peak,
        "loss seconds": loss_seconds,
        "memory GiB": memory,
        "loss": losses[-1],
    }


def cell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
