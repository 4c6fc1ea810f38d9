"""What a plan comes to, as names and values for people: the same lines on a terminal and on the page."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.figures import Estimate
from launcher.plan.terms import digits, seconds
from launcher.tables import size
from modeling.registry import family


@dataclass(frozen=True)
class Fact:
    """One line."""

    name: str
    value: str


def facts(estimate: Estimate) -> list[Fact]:
    """Efficiency, operations, pace, the whole training, what it costs, checkpoints, data. What is not known says so."""
    training = estimate.training
    found = [
        Fact("MFU", f"{percent(estimate.mfu)} (attention whole), {percent(estimate.mfu_causal)} (causal)"),
        Fact("hardware", f"{percent(estimate.hfu)} of the peak is busy, recomputation counted"),
        Fact("FLOPs a step", _operations(estimate)),
        Fact("pace", _pace(estimate)),
        Fact("training", f"{_length(estimate)} in {training.steps:,} steps: {days(training.days)}"),
        Fact("compute", f"{digits(training.petaflop_s_days, 4)} petaflop/s-days, {training.gpu_hours:,.0f} GPU-hours"),
        Fact("energy", _energy(estimate)),
        Fact("cost", _cost(estimate)),
        Fact("checkpoint", _checkpoint(estimate)),
        Fact("data", _data(estimate)),
    ]
    return found


def percent(share: float) -> str:
    """A share with three digits."""
    return f"{100 * share:.1f} %"


def days(count: float) -> str:
    """Days with three digits, hours below one, minutes below one of those, then seconds."""
    if count * 1440 < 1:
        return seconds(86400 * count)
    for unit, name in ((1.0, "days"), (1 / 24, "hours"), (1 / 1440, "minutes")):
        if count >= unit or name == "minutes":
            return f"{count / unit:,.1f} {name}" if count / unit < 99.95 else f"{count / unit:,.0f} {name}"
    raise AssertionError("unreachable")


def large(count: float) -> str:
    """A count with three digits and a word: 1.5 billion."""
    for unit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= 0.9995 * unit:
            return f"{digits(count / unit)} {name}"
    return f"{count:,.0f}"


def operations(count: float) -> str:
    """Floating-point operations with three digits: 4.51 EFLOP."""
    for unit, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T")):
        if count >= 0.9995 * unit:
            return f"{digits(count / unit)} {letter}FLOP"
    return f"{digits(count / 1e9)} GFLOP"


def _operations(estimate: Estimate) -> str:
    flops = estimate.flops
    tokens = estimate.global_batch_size * estimate.sequence_length
    decoder = abs(flops.matmul - 6.0 * estimate.parameters * tokens) < 1e-6 * flops.matmul
    name = "6 N" if decoder else "products"
    return (
        f"{operations(flops.matmul + flops.attention)} = {name} {operations(flops.matmul)} + attention "
        f"{operations(flops.attention)} (causal: {operations(flops.attention_causal)}); "
        f"{operations(flops.hardware)} run"
    )


def pace(estimate: Estimate) -> str:
    """Tokens, or pairs, a second."""
    count, unit = rate(estimate)
    return f"{count:,.0f} {unit}"


def rate(estimate: Estimate) -> tuple[float, str]:
    """How many a second, and of what: tokens/s or pairs/s."""
    if family(estimate.family).reads == "pairs":
        return estimate.tokens_per_second / estimate.sequence_length, "pairs/s"
    return estimate.tokens_per_second, "tokens/s"


def _pace(estimate: Estimate) -> str:
    count, _ = rate(estimate)
    return f"{pace(estimate)} ({count / estimate.world_size:,.0f} a GPU), {large(86400 * count)} a day"


def _length(estimate: Estimate) -> str:
    if family(estimate.family).reads == "pairs":
        return f"{large(estimate.training.tokens / estimate.sequence_length)} pairs"
    return f"{large(estimate.training.tokens)} tokens"


def _energy(estimate: Estimate) -> str:
    prices, kwh = estimate.prices, estimate.training.energy_kwh
    pue = "" if prices.pue == 1 else f" x PUE {prices.pue:g}"
    if prices.watts_per_gpu is not None:
        return f"{energy_of(kwh)} at {digits(prices.watts_per_gpu)} W a GPU{pue}"
    boards = f"{energy_of(kwh)} at the boards' {estimate.accelerator.watts:,.0f} W{pue}"
    return f"{boards}, hosts left out: give --watts-per-gpu"


def energy_of(kwh: float) -> str:
    """Energy with four digits."""
    return f"{digits(kwh / 1000, 4)} MWh" if kwh >= 1000 else f"{digits(kwh, 4)} kWh"


def _cost(estimate: Estimate) -> str:
    if estimate.training.cost is None:
        return "unknown: give --price-per-gpu-hour, or --price-per-kwh with --watts-per-gpu and --pue"
    return f"{estimate.training.cost:,.0f}, in the currency of the prices given"


def _checkpoint(estimate: Estimate) -> str:
    made = estimate.checkpoint
    said = f"{size(made.bytes)} in {made.files:,} files, written {made.per_run:,} times"
    if made.write_seconds is None:
        return f"{said} (how fast: give --storage-bandwidth)"
    return f"{said}, in {seconds(made.write_seconds)} each"


def _data(estimate: Estimate) -> str:
    if estimate.epochs is None:
        return "epochs unknown: the shards are not at hand"
    return "epochs: " + ", ".join(f"{name} {count:.2f}" for name, count in estimate.epochs.items())
