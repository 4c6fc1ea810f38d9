"""What the GPU table's rows run: the command of each try, what fits by the planner, and the figures of its result."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

import launcher
import launcher.job
from cluster.config import ClusterConfig
from launcher.plan.estimate import estimate
from launcher.plan.hardware import RESERVE, of_device
from modeling.gpt.flops import flops_per_token
from tests.benchmarks.gpu_search import OK, Setting, Tried, next_setting
from tests.benchmarks.gpu_table import CLIP_ROWS, LOSS_ROWS
from training.memory import rank_memory
from training.metrics import peak_flops
from training.recipe import Recipe, load_recipe, parse_recipe

# The row that the goal speaks of first; the largest, which takes longest, last.
GPT_ORDER = ("gpt3-1.3b", "gpt3-125m", "gpt3-2.7b", "gpt3-350m", "gpt3-760m", "gpt3-6.7b")
RANKS = {"gpt3-125m": 8, "gpt3-350m": 8, "gpt3-760m": 8, "gpt3-1.3b": 16, "gpt3-2.7b": 32, "gpt3-6.7b": 64}
"""GPUs that the shipped recipes are for."""
CLIP_LARGEST = 4096
"""Pairs in a micro-batch to begin with: more only takes memory."""
TOY_SEQUENCE = 64
TOY_SHAPE = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "sequence_length": TOY_SEQUENCE,
    "vocab_size": 512,
}
GPT_STEP = [sys.executable, "-m", "tests.benchmarks.gpu_step"]


def shipped(name: str) -> Recipe:
    return load_recipe(Path(launcher.__file__).parent / "recipes" / f"{name}.yaml")


def with_setting(recipe: Recipe, setting: Setting) -> Recipe:
    """The recipe run as the setting says; nothing is parsed again, since a search asks for many."""
    recompute: Any = setting.recompute
    return replace(
        recipe,
        batch=replace(recipe.batch, micro_batch_size=setting.micro_batch_size),
        training=replace(recipe.training, recompute=recompute, compile=setting.compile),
        parallel=replace(recipe.parallel, offload_optimizer=setting.offload),
    )


def has_room(planned_bytes: int, memory_bytes: int | None) -> bool:
    """Whether a device (None: one without limits) has them beside what a plan keeps back of it."""
    return memory_bytes is None or planned_bytes <= (1 - RESERVE) * memory_bytes


class Job(ABC):
    """One row: a model, or a size of the contrastive loss."""

    kind: str
    name: str

    @abstractmethod
    def next_setting(self, tries: Sequence[Tried]) -> Setting | None:
        """What to try after `tries`."""

    @abstractmethod
    def command(self, setting: Setting, result: Path) -> list[str]:
        """Measures the setting and writes `result`."""

    def figures(self, setting: Setting, result: dict[str, Any]) -> dict[str, Any]:
        """What the table keeps of a result."""
        return result

    def short(self, tried: Tried) -> str:
        """The figure that counts, for the console."""
        return ""


@dataclass
class GptJob(Job):
    """A decoder's training step by the product's worker."""

    name: str
    work: Path
    model: dict[str, Any]
    samples: int
    """In a step."""
    memory_bytes: int | None
    """Of the device; None: everything fits."""
    steps: tuple[str, ...] = ()
    """Options of gpu_step."""
    compiled: bool = True
    kind: str = "gpt"

    def document(self, setting: Setting) -> dict[str, Any]:
        """The recipe of a try."""
        return {
            "run": {"name": "run", "directory": str(self.work / "runs")},
            "model": self.model,
            "data": {"mix": [{"shards": str(self.work / "shards" / "text")}]},
            "batch": {"global_batch_size": self.samples, "micro_batch_size": setting.micro_batch_size},
            "optimizer": {"lr": 1.0e-4, "warmup": 100},
            "parallel": {"zero_stage": 1, "offload_optimizer": setting.offload},
            "training": {
                "steps": 1_000_000,
                "precision": "bf16",
                "recompute": setting.recompute,
                "compile": setting.compile,
                "log_every": 10,
            },
            "checkpoint": {"every": 0},
        }

    @cached_property
    def _recipe(self) -> Recipe:
        return parse_recipe(self.document(Setting(1)))

    def recipe(self, setting: Setting) -> Recipe:
        """The typed one, for the planner."""
        return with_setting(self._recipe, setting)

    def planned_bytes(self, setting: Setting) -> int:
        """The device's peak, by the planner."""
        return rank_memory(self.recipe(setting), 1, 0).peak

    def planned_speed(self, setting: Setting, device: str) -> float | None:
        """Tokens a second by the planner; None on a device that it does not know."""
        chip = of_device(device)
        if chip is None:
            return None
        return estimate(launcher.job.Job(self.recipe(setting), ClusterConfig()), chip).tokens_per_second

    def next_setting(self, tries: Sequence[Tried]) -> Setting | None:
        if not self.compiled:  # a toy: one try
            return None if tries else Setting(self.samples // 2, compile=False)
        return next_setting(tries, self._fits, self.samples)

    def _fits(self, setting: Setting) -> bool:
        return has_room(self.planned_bytes(setting), self.memory_bytes)

    def command(self, setting: Setting, result: Path) -> list[str]:
        recipe = self.work / f"{self.name}.yaml"
        recipe.write_text(yaml.safe_dump(self.document(setting)))
        # A run of its own each: another one's folder would be resumed.
        number = len(list((self.work / "runs").glob("*"))) if (self.work / "runs").exists() else 0
        return [*GPT_STEP, str(recipe), str(result), *self.steps, "--run.name", f"{self.name}-{number}"]

    def figures(self, setting: Setting, result: dict[str, Any]) -> dict[str, Any]:
        if result["status"] != OK:
            return result
        model = self.recipe(setting).model
        tokens = self.samples * model.sequence_length / result["seconds_per_step"]
        peak = peak_flops(result["device"])
        found = {**result, "samples": self.samples, "tokens_per_second": tokens}
        found["planned_bytes"] = self.planned_bytes(setting)
        found["planned_tokens_per_second"] = self.planned_speed(setting, result["device"])
        for key, causal in (("mfu", False), ("mfu_causal", True)):
            found[key] = None if peak is None else flops_per_token(model, causal=causal) * tokens / peak
        return found

    def short(self, tried: Tried) -> str:
        if tried["status"] != OK:
            return str(tried.get("message", ""))
        mfu = "" if tried["mfu"] is None else f", MFU {tried['mfu']:.3f}"
        return f"{tried['tokens_per_second']:,.0f} tokens/s{mfu}"


@dataclass
class ClipJob(Job):
    """Optimizer steps with the true batch: tests.benchmarks.clip."""

    name: str
    memory_bytes: int | None
    toy: bool = False
    kind: str = "clip"

    def next_setting(self, tries: Sequence[Tried]) -> Setting | None:
        if self.toy:
            return None if tries else Setting(20, compile=False)
        return next_setting(tries, self._fits, CLIP_LARGEST, enough=CLIP_LARGEST // 8)

    @cached_property
    def _recipe(self) -> Recipe:
        return shipped(self.name)

    def _fits(self, setting: Setting) -> bool:
        # The recipe's batch is the whole one, whose pictures the planner counts as there at every moment.
        planned = rank_memory(with_setting(self._recipe, setting), 1, 0).peak
        return not setting.offload and has_room(planned, self.memory_bytes)  # the benchmark does not offload

    def command(self, setting: Setting, result: Path) -> list[str]:
        command = [sys.executable, "-m", "tests.benchmarks.clip", "--json", str(result), "--steps", "1"]
        command += ["--preset", self.name, "--micro", str(setting.micro_batch_size), "--recompute", setting.recompute]
        return [*command, *(["--compile"] if setting.compile else []), *(["--quick"] if self.toy else [])]

    def figures(self, setting: Setting, result: dict[str, Any]) -> dict[str, Any]:
        (row,) = result["rows"]
        memory = row["memory GiB"]
        return {
            "status": OK,
            "device": result["device"],
            "batch": row["batch"],
            "seconds_per_step": row["seconds"],
            "samples_per_second": row["samples/s"],
            "mfu": row["mfu"],
            "loss_seconds": row["loss seconds"],
            "peak_bytes": None if memory is None else round(memory * 2**30),
        }

    def short(self, tried: Tried) -> str:
        return (
            f"{tried['samples_per_second']:,.0f} samples/s" if tried["status"] == OK else str(tried.get("message", ""))
        )


@dataclass
class LossJob(Job):
    """The contrastive loss alone: one try."""

    name: str
    pairs: int
    features: int = 512
    kind: str = "loss"

    def next_setting(self, tries: Sequence[Tried]) -> Setting | None:
        return None if tries else Setting(self.pairs, compile=False)

    def command(self, setting: Setting, result: Path) -> list[str]:
        command = [sys.executable, "-m", "tests.benchmarks.gpu_loss", "--result", str(result)]
        return [*command, "--pairs", str(self.pairs), "--features", str(self.features)]


def gpt_jobs(work: Path, memory_bytes: int | None) -> list[GptJob]:
    """The decoders, each with one GPU's share of its shipped recipe's batch as a step."""
    jobs = []
    for name in GPT_ORDER:
        recipe = shipped(name)
        replicas = recipe.parallel.data_parallel(RANKS[name])
        samples = recipe.batch.global_batch_size // replicas
        jobs.append(GptJob(name, work, {"preset": name}, samples, memory_bytes))
    return jobs


def clip_jobs(work: Path, memory_bytes: int | None) -> list[Job]:
    return [ClipJob(name, memory_bytes) for name in CLIP_ROWS]


def loss_jobs(work: Path) -> list[Job]:
    return [LossJob(str(pairs), pairs) for pairs in LOSS_ROWS]


def toy_jobs(work: Path) -> list[Job]:
    """The same path with next to no work."""
    few = ("--warmup", "1", "--steps", "3", "--seconds", "0")
    gpt = GptJob("toy", work, TOY_SHAPE, 4, None, steps=few, compiled=False)
    return [gpt, LossJob("64", 64, features=16), ClipJob("toy", None, toy=True)]
