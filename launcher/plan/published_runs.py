"""The published measurements that `launcher.plan.published` compares with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from launcher.plan.habits import Habits
from launcher.plan.published import Run
from modeling.clip.config import CLIPConfig
from modeling.clip.presets import PRESETS as CLIP_PRESETS
from modeling.gpt.config import GPTConfig
from training.config import ParallelConfig

# What overlaps and what is fused is as the sources say. Megatron's shares (half the passes, 0.3 of the kernels, 0.4 and
# 0.8 of tensor-parallel traffic) are estimates made with its tables at hand: its runs are marked `by_hand`. FSDP's are
# 0 or 1, as the source has it, and OPT and BLOOM take the fused kernels as Megatron's tables have them.
_FUSED = Habits(fused_passes=0.5, fused_kernels=0.3)
"""Bias with GELU, bias with dropout and residual, and softmax, each in one kernel."""
_UNFUSED_ATTENTION = replace(_FUSED, flash_attention=False)
_MEGATRON_2021 = replace(  # fp16 gradients, no ZeRO
    _UNFUSED_ATTENTION, gradient_width=2.0, gradient_bytes=6.0, scatter_gather=True
)
_MEGATRON_2022 = replace(  # sums of gradients beside the weights' products
    _UNFUSED_ATTENTION, attention_only=True, tensor_overlap=0.4, scatter_gather=True
)
_MEGATRON_2024 = replace(  # "fine-grained overlapping"; gradients are scattered, which sends half of a sum
    _FUSED, gradient_width=2.0, data_overlap=1.0, tensor_overlap=0.8, pipeline_overlap=1.0
)
_FOUNDRY = Habits(data_overlap=1.0, gradient_width=2.0)  # FSDP, PyTorch eager with flash attention
_METASEQ = replace(_UNFUSED_ATTENTION, data_overlap=1.0, gradient_width=2.0)  # FSDP around Megatron's layers


def _gpt(layers: int, hidden: int, heads: int, vocabulary: int, length: int, biases: bool = True) -> GPTConfig:
    return GPTConfig(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        sequence_length=length,
        biases=biases,
    )


def _operations(model: GPTConfig, batch: int, forwards: int) -> float:
    """Of a step, as the sources count: with 4 forward passes' worth (recomputation) Narayanan et al. 2021, equation 3,
    with 3 Korthikanti et al. 2022, equation 7. The logits are never computed again.
    """
    tokens, h = batch * model.sequence_length, model.hidden_size
    layers = model.num_layers * (24.0 * h * h + 4.0 * h * model.sequence_length)
    return tokens * (forwards * layers + 6.0 * h * model.vocabulary)


# Heads, width, layers, tensor, pipeline, GPUs, batch, TFLOP/s a GPU.
_H100_TABLE = {
    "1.7B": (16, 2048, 24, 1, 1, 48, 192, 408.8),
    "7.1B": (32, 4096, 30, 2, 1, 96, 192, 465.9),
    "16B": (48, 6144, 32, 4, 1, 192, 192, 489.1),
    "32B": (56, 7168, 48, 8, 1, 384, 192, 459.6),
    "70B": (64, 8192, 84, 8, 2, 768, 384, 419.7),
    "119B": (80, 10240, 92, 8, 4, 1536, 768, 420.5),
    "177B": (96, 12288, 96, 8, 6, 2304, 1152, 432.8),
    "314B": (128, 16384, 96, 8, 8, 3072, 1536, 474.4),
    "462B": (144, 18432, 112, 8, 16, 6144, 3072, 459.9),
}


def _megatron_h100() -> Iterator[Run]:
    for name, (heads, width, layers, tensor, pipeline, gpus, batch, rate) in _H100_TABLE.items():
        model = _gpt(layers, width, heads, 131072, 4096)
        yield Run(
            name=f"Megatron-LM {name}",
            source="README of NVIDIA/Megatron-LM, images/model_table.png (Megatron-Core 0.8, sequence 4,096)",
            gpu="h100",
            gpus=gpus,
            model=model,
            parallel=ParallelConfig(tensor=tensor, pipeline=pipeline, sequence=tensor > 1, zero_stage=1),
            batch=batch,
            seconds=_operations(model, batch, 3) / (gpus * rate * 1e12),
            habits=_MEGATRON_2024,
            by_hand=True,
            free_chunks=True,
            calibrates=name in ("1.7B", "177B"),
        )


_A100_TABLE = {
    "1.7B": (24, 2304, 24, 1, 1, 32, 512, 137),
    "3.6B": (32, 3072, 30, 2, 1, 64, 512, 138),
    "7.5B": (32, 4096, 36, 4, 1, 128, 512, 142),
    "18B": (48, 6144, 40, 8, 1, 256, 1024, 135),
    "39B": (64, 8192, 48, 8, 2, 512, 1536, 138),
    "76B": (80, 10240, 60, 8, 4, 1024, 1792, 140),
    "145B": (96, 12288, 80, 8, 8, 1536, 2304, 148),
    "310B": (128, 16384, 96, 8, 16, 1920, 2160, 155),
    "530B": (128, 20480, 105, 8, 35, 2520, 2520, 163),
    "1T": (160, 25600, 128, 8, 64, 3072, 3072, 163),
}


def _narayanan() -> Iterator[Run]:
    for name, (heads, width, layers, tensor, pipeline, gpus, batch, rate) in _A100_TABLE.items():
        model = _gpt(layers, width, heads, 51200, 2048)
        yield Run(
            name=f"Narayanan {name}",
            source="Narayanan et al. 2021 (arXiv:2104.04473), table 1; A100 80 GB, sequence 2,048",
            gpu="a100-80gb",
            gpus=gpus,
            model=model,
            parallel=ParallelConfig(tensor=tensor, pipeline=pipeline, zero_stage=0),
            batch=batch,
            seconds=_operations(model, batch, 4) / (gpus * rate * 1e12),
            habits=_MEGATRON_2021,
            by_hand=True,
            recompute="full",
            free_chunks=True,
        )


# Heads, width, layers, pipeline, chunks, GPUs = batch (22B: 8 and 4), micro-batch, seconds with full and selective.
_KORTHIKANTI = {
    "22B": (64, 6144, 48, 1, 1, 8, 4, 4, 1.42, 1.10),
    "175B": (96, 12288, 96, 8, 3, 64, 64, 1, 18.13, 13.75),
    "530B": (128, 20480, 105, 35, 3, 280, 280, 1, 49.05, 37.83),
    "1T": (160, 25600, 128, 64, 1, 512, 512, 1, 94.42, 71.49),
}


def _korthikanti() -> Iterator[Run]:
    for name, (heads, width, layers, pipeline, chunks, gpus, batch, micro, full, selective) in _KORTHIKANTI.items():
        for recompute, seconds in (("full", full), ("selective", selective)):
            yield Run(
                name=f"Korthikanti {name} {recompute}",
                source="Korthikanti et al. 2022 (arXiv:2205.05198), tables 3, 5; selective: with sequence parallelism",
                gpu="a100-80gb",
                gpus=gpus,
                model=_gpt(layers, width, heads, 51200, 2048),
                parallel=ParallelConfig(
                    tensor=8,
                    pipeline=pipeline,
                    virtual_pipeline=chunks,
                    sequence=recompute == "selective",
                    zero_stage=0,
                ),
                batch=batch,
                seconds=seconds,
                habits=_MEGATRON_2022,
                by_hand=True,
                micro_batch=micro,
                recompute="full" if recompute == "full" else "selective",
                calibrates=True,
            )


# Width, heads, layers, GPUs = tensor, seconds with 8 samples on V100 and with 16 on A100.
_MEGATRON_2020 = {
    "1B": (1920, 15, 24, 1, 1.121, 1.076),
    "2B": (2304, 18, 30, 2, 1.093, 1.026),
    "4B": (3072, 24, 36, 4, 1.238, 1.162),
    "8B": (4096, 32, 42, 8, 1.407, 1.343),
}


def _megatron_2020() -> Iterator[Run]:
    for name, (width, heads, layers, tensor, on_v100, on_a100) in _MEGATRON_2020.items():
        for gpu, batch, seconds in (("v100-32gb", 8, on_v100), ("a100-40gb", 16, on_a100)):
            yield Run(
                name=f"Megatron-2020 {name} {gpu.partition('-')[0]}",
                source="README of NVIDIA/Megatron-LM at 5281919, images/tables.tex: DGX-2 and DGX A100, sequence 1,024",
                gpu=gpu,
                gpus=tensor,
                model=_gpt(layers, width, heads, 51200, 1024),
                parallel=ParallelConfig(tensor=tensor, zero_stage=0),
                batch=batch,
                seconds=seconds,
                habits=_MEGATRON_2021,
                by_hand=True,
                micro_batch=batch,
                recompute="full",
            )


_MPT = {
    "125m": (12, 768, 12),
    "350m": (24, 1024, 16),
    "760m": (24, 1536, 12),
    "1b": (24, 2048, 16),
    "3b": (32, 2560, 20),
    "7b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "30b": (48, 7168, 56),
    "70b": (80, 8192, 64),
}
# GPU, model, sequence, GPUs, micro-batch, batch, tokens a second, whether activations are computed again.
_FOUNDRY_TABLE = (
    ("h100", "760m", 2048, 8, 24, 384, 505177, False),
    ("h100", "1b", 2048, 8, 14, 112, 363645, False),
    ("h100", "3b", 2048, 16, 10, 480, 386285, False),
    ("h100", "3b", 2048, 64, 6, 1152, 1441663, False),
    ("h100", "3b", 4096, 8, 5, 240, 167712, False),
    ("h100", "7b", 2048, 8, 6, 48, 85144, False),
    ("h100", "13b", 2048, 8, 2, 16, 38336, False),
    ("h100", "13b", 2048, 64, 2, 128, 307209, False),
    ("h100", "30b", 2048, 32, 14, 1344, 73860, True),
    ("h100", "70b", 2048, 64, 8, 2048, 66523, True),
    ("a100-80gb", "125m", 2048, 8, 32, 512, 1133901, False),
    ("a100-80gb", "350m", 2048, 8, 32, 512, 470263, False),
    ("a100-80gb", "760m", 2048, 8, 24, 384, 259472, False),
    ("a100-80gb", "1b", 2048, 8, 14, 448, 164109, False),
    ("a100-80gb", "3b", 2048, 8, 10, 160, 86491, False),
    ("a100-80gb", "7b", 2048, 8, 6, 96, 37130, False),
    ("a100-80gb", "13b", 2048, 8, 2, 48, 18097, False),
    ("a100-80gb", "30b", 2048, 8, 3, 504, 7330, True),
    ("a100-80gb", "70b", 2048, 64, 8, 2048, 26274, True),
)


def _foundry() -> Iterator[Run]:
    for gpu, name, length, gpus, micro_batch, batch, rate, again in _FOUNDRY_TABLE:
        layers, width, heads = _MPT[name]
        yield Run(
            name=f"llm-foundry {name}, {gpus} {gpu.removesuffix('-80gb')}, sequence {length:,}",
            source="mosaicml/llm-foundry, scripts/train/benchmarking/README.md (FSDP, bf16)",
            gpu=gpu,
            gpus=gpus,
            model=_gpt(layers, width, heads, 50368, length, biases=False),
            parallel=ParallelConfig(zero_stage=3),
            batch=batch,
            seconds=batch * length / rate,
            habits=_FOUNDRY,
            micro_batch=micro_batch,
            recompute="full" if again else "none",
            calibrates=name in ("1b", "7b"),
        )


def _others() -> Iterator[Run]:
    opt = _gpt(96, 12288, 96, 50272, 2048)
    yield Run(
        name="OPT-175B",
        source="Zhang et al. 2022 (arXiv:2205.01068): 992 A100, FSDP x tensor 8, up to 147 TFLOP/s a GPU; that counts "
        "recomputation, since 33 days on 1,024 are 4.30e23 (metaseq, projects/OPT/chronicles/final_update.md)",
        gpu="a100-80gb",
        gpus=992,
        model=opt,
        parallel=ParallelConfig(tensor=8, zero_stage=3),
        batch=992,
        seconds=_operations(opt, 992, 4) / (992 * 147e12),
        habits=_METASEQ,
        micro_batch=8,
        recompute="full",
    )
    yield Run(
        name="BLOOM-176B",
        source="bigscience-workshop/bigscience, train/tr11-176B-ml: chronicles.md (105.22 s a step), "
        "tr11-176B-ml.slurm; 4 x 100 Gbit/s a node. 70 layers, embedding and head share 12 stages as 72 layers would",
        gpu="a100-80gb",
        gpus=384,
        model=_gpt(72, 14336, 112, 128, 2048),
        parallel=ParallelConfig(tensor=4, pipeline=12, zero_stage=1),
        batch=2048,
        seconds=105.22,
        habits=_UNFUSED_ATTENTION,  # BF16_Optimizer, as Trestle's
        micro_batch=2,
        recompute="full",
        network=6.25e9,
    )


# Model, micro-batch, compiled, samples a second.
_OWN_TABLE = (
    ("clip-vit-b-32", 1024, False, 2525),
    ("clip-vit-b-32", 1024, True, 3705),
    ("clip-vit-b-16", 512, False, 1060),
)


def _own() -> Iterator[Run]:
    for preset, micro_batch, compiled, rate in _OWN_TABLE:
        yield Run(
            name=f"Trestle {preset}{', compiled' if compiled else ''}",
            source="tests/benchmarks/README.md: one H100, batch 32,768, before two mends",
            gpu="h100",
            gpus=1,
            model=CLIPConfig(**CLIP_PRESETS[preset]),
            parallel=ParallelConfig(zero_stage=1),
            batch=32768,
            seconds=32768 / rate,
            habits=None,
            micro_batch=micro_batch,
            compiled=compiled,
        )


RUNS: tuple[Run, ...] = (
    *_megatron_h100(),
    *_megatron_2020(),
    *_narayanan(),
    *_korthikanti(),
    *_foundry(),
    *_others(),
    *_own(),
)
