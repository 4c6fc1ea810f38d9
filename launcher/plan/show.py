"""A plan on a terminal: tables of at most 120 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from typing import Any

from launcher.dry_run import axes
from launcher.plan.facts import Fact, facts, rate
from launcher.plan.figures import Estimate, StageEstimate
from launcher.plan.hardware import RESERVE
from launcher.plan.mend import Mend
from launcher.plan.reasons import peak
from launcher.plan.search import Proposal, Search
from launcher.plan.terms import MEMORY, TERMS, seconds
from launcher.tables import UNITS, size, table

WIDTH = 120


def lines(estimate: Estimate, mends: Sequence[Mend] = ()) -> list[str]:
    """One layout, for the eyes. mends: changes that would make it fit, where it does not."""
    return [
        *headline(estimate),
        "",
        memory_table(estimate),
        *fit(estimate, mends),
        "",
        *beside(step_table(estimate), fact_table(facts(estimate))),
        "",
        *assumptions(estimate),
    ]


def headline(estimate: Estimate) -> list[str]:
    """What is planned: the hardware, the layout, the batch."""
    nodes, gpus = estimate.nodes, estimate.world_size
    where = f"{nodes:,} nodes x {estimate.gpus_per_node}" if nodes > 1 else f"1 node x {estimate.gpus_per_node}"
    layout = axes(estimate.parallel, estimate.replicas)
    tokens = estimate.global_batch_size * estimate.sequence_length
    return [
        f"{estimate.name}: {estimate.parameters:,} parameters on {gpus:,} {estimate.accelerator.name} ({where})",
        f"{layout}, ZeRO {estimate.parallel.zero_stage}, {estimate.precision}, recompute {estimate.recompute}",
        f"{estimate.global_batch_size:,} samples ({tokens:,} tokens) a step = {split(estimate)}",
    ]


def split(estimate: Estimate) -> str:
    """How a step's samples are divided."""
    replicas, count = estimate.replicas, estimate.micro_batches
    return (
        f"{replicas:,} replica{'s' if replicas > 1 else ''} x {count:,} micro-batch{'es' if count > 1 else ''} of "
        f"{estimate.micro_batch_size:,}"
    )


def alike(estimate: Estimate) -> Iterator[tuple[str, list[StageEstimate]]]:
    """Runs of stages that hold the same state, by name; what they hold of activations may differ."""
    stages = estimate.stages
    if len(stages) == 1:
        yield "every rank", list(stages)
        return
    for _, run in groupby(stages, key=lambda stage: (stage.parameters, shown([stage])[:3])):
        of = list(run)
        yield f"stage {of[0].stage}" if len(of) == 1 else f"stages {of[0].stage} - {of[-1].stage}", of


def shown(run: Sequence[StageEstimate]) -> list[str]:
    """The parts of a rank's memory as they are written; "4.1 - 5.3 GB" where the stages of a run differ."""
    return [_range([getattr(stage.memory, part) for stage in run]) for part in (*MEMORY, "peak")]


def of_limit(run: Sequence[StageEstimate], limit: float) -> str:
    """The peak as a share of what a GPU has, of the fullest stage."""
    return f"{100 * max(stage.memory.peak for stage in run) / limit:.0f} %"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), size(max(values))
    if size(low) == high:
        return high
    unit = 1000.0 ** UNITS.index(high.rpartition(" ")[2])
    return f"{low / unit:.1f} - {high}"


def memory_table(estimate: Estimate) -> str:
    """A row for each run of stages that are alike."""
    heads, rows = memory_rows(estimate)
    return table(["memory a rank", *heads], rows)


def memory_rows(estimate: Estimate) -> tuple[list[str], list[list[str]]]:
    """Heads without the first, and rows with the names of stages first; what is on the host where something is."""
    limit = estimate.accelerator.memory_bytes
    host = any(stage.memory.host for stage in estimate.stages)
    rows = []
    for name, run in alike(estimate):
        on_host = [_range([stage.memory.host for stage in run])] if host else []
        rows.append([name, f"{run[0].parameters:,}", *shown(run), of_limit(run, limit), *on_host])
    of = f"of {size(limit)}".replace(".0 ", " ")
    return ["parameters", *MEMORY, "peak", of, *(["on the host"] if host else [])], rows


def fit(estimate: Estimate, mends: Sequence[Mend] = ()) -> list[str]:
    """Whether it fits, and what would make it."""
    limit, usable = estimate.accelerator.memory_bytes, estimate.accelerator.usable_bytes
    staged = len(estimate.stages) > 1
    fullest = max(estimate.stages, key=lambda stage: stage.memory.peak)
    most, moment = fullest.memory.peak, fullest.memory.moment
    if estimate.fits:
        where = f"stage {fullest.stage}, in {moment}" if staged else f"in {moment}"
        return [
            f"fits: {size(usable - most)} are free at the peak ({where}) beside the {size(limit - usable)} kept back"
        ]
    who = f"a rank of stage {fullest.stage}" if staged else "a rank"
    found = [
        f"DOES NOT FIT: {who} needs {size(most)} in {moment}, and of {estimate.accelerator.name}'s {size(limit)} a "
        f"plan may fill {size(usable)}"
    ]
    if mends:
        found += [
            "would fit:",
            *(f"  {mend.overrides}  ({then(mend)})" for mend in mends),
        ]
    else:
        found.append("no single change of the layout makes it fit; --search tries them all")
    return found


def then(mend: Mend) -> str:
    """What a change leads to."""
    host = f", {size(mend.host_bytes)} on the host" if mend.host_bytes else ""
    return f"{size(mend.peak_bytes)}{host}, {seconds(mend.step_seconds)} a step"


def step_table(estimate: Estimate) -> str:
    """The step's time by part."""
    step, rows = estimate.step, []
    for term in TERMS:
        value = getattr(step, term.field)
        if value:
            rows.append((term.name, seconds(value), f"{100 * value / step.total_seconds:.1f} %"))
    rows.append(("together", seconds(step.total_seconds), ""))
    return table(("time of a step", "", "share"), rows)


def fact_table(found: Sequence[Fact]) -> str:
    """Names and values, both to the left."""
    width = max(len(fact.name) for fact in found)
    return "\n".join(f"{fact.name:{width}}  {fact.value}" for fact in found)


def beside(left: str, right: str, gap: int = 4) -> list[str]:
    """Two blocks next to each other, the right one wrapped to what is left of the width."""
    left_lines = left.splitlines()
    width = max(map(len, left_lines))
    room = max(WIDTH - width - gap, 40)  # enough for a word, however wide a number is
    right_lines = [part for line in right.splitlines() for part in _hanging(line, room)]
    both = zip_longest(left_lines, right_lines, fillvalue="")
    return [f"{one:{width + gap}}{other}".rstrip() for one, other in both]


def wrapped(text: str, room: int = WIDTH, **options: Any) -> list[str]:
    """Lines of at most `room` columns; an option such as --gpus-per-node stays in one piece."""
    return textwrap.wrap(text, room, break_on_hyphens=False, **options)


def _hanging(line: str, room: int) -> list[str]:
    name = len(line) - len(line.partition("  ")[2].lstrip()) if "  " in line else 2
    return wrapped(line, room, subsequent_indent=" " * name, drop_whitespace=True) or [""]


def assumptions(estimate: Estimate) -> list[str]:
    """Where the figures come from."""
    found = ["from:"]
    for said in estimate.assumptions:
        found += wrapped(said, initial_indent="  ", subsequent_indent="    ")
    return [*found, "  checked: against runs that others have published, see trestle plan --published"]


def search_lines(found: Search, asked: str) -> list[str]:
    """The best layouts, why each loses, and what to paste. asked: `trestle train RECIPE` with the user's overrides."""
    said = [*wrapped(tried(found)), ""]
    if found.nearest is not None:
        return [*said, *nearest(found.nearest, asked)]
    heads = search_heads(found.proposals[0].estimate)
    said += [table(heads, [search_row(place, one.estimate) for place, one in enumerate(found.proposals, 1)])]
    if found.own is not None:
        said += ["", *wrapped(own_place(found))]
    said += ["", "each loses to the one before by"]
    for place, one in enumerate(found.proposals[1:], 2):
        said += wrapped(one.loses_by, initial_indent=f"{place:>4}  ", subsequent_indent=" " * 6)
    said += ["", f"to take one: {asked}"]
    said += [f"{place:>4}  {one.overrides or '(as it is)'}" for place, one in enumerate(found.proposals, 1)]
    return said


def search_heads(estimate: Estimate) -> list[str]:
    """Of the columns of `search_row`."""
    layout = ["", "TP", "PP", "VPP", "DP", "micro-batch", "recompute", "ZeRO", "SP"]
    return [*layout, "memory a rank", "bubble", "MFU", rate(estimate)[1], "a step"]


def search_row(place: int, estimate: Estimate) -> list[object]:
    layout, step = estimate.parallel, estimate.step
    return [
        str(place),
        layout.tensor,
        layout.pipeline,
        layout.virtual_pipeline,
        estimate.replicas,
        estimate.micro_batch_size,
        estimate.recompute,
        layout.zero_stage,
        layout.sequence,
        size(peak(estimate)),
        f"{100 * step.bubble_seconds / step.total_seconds:.1f} %",
        f"{100 * estimate.mfu:.1f} %",
        round(rate(estimate)[0]),
        seconds(step.total_seconds),
    ]


def own_place(found: Search) -> str:
    """How the recipe's own layout does; empty where it cannot start."""
    own = found.own
    if own is None:
        return ""
    place = next((n for n, one in enumerate(found.proposals, 1) if one.overrides == own.overrides), None)
    if place is not None:
        return f"The recipe as it is stands in place {place}"
    unless = "" if own.estimate.fits else " and does not fit"
    step = seconds(own.estimate.step.total_seconds)
    return f"The recipe as it is takes {step} a step{unless}; against the first: {own.loses_by}"


def nearest(one: Proposal, asked: str) -> list[str]:
    """What is said where nothing fits."""
    found, usable = one.estimate, one.estimate.accelerator.usable_bytes
    return [
        f"NOTHING FITS. The nearest is short of {size(peak(found) - usable)} a rank:",
        *headline(found)[1:],
        "",
        memory_table(found),
        "",
        *wrapped(least_gpus(found)),
        f"to see it: {asked} {one.overrides}".rstrip(),
    ]


def least_gpus(estimate: Estimate) -> str:
    """A bound that no layout of the search gets around: one copy of weights, gradients and optimizer's state must lie
    somewhere.
    """
    gpu, layout = estimate.accelerator, estimate.parallel
    kept = sum(s.memory.weights + s.memory.gradients for s in estimate.stages) * layout.tensor
    kept += sum(s.memory.optimizer for s in estimate.stages) * layout.tensor * estimate.replicas
    gpus = math.ceil(kept / gpu.usable_bytes)
    away = layout.offload_optimizer
    state = "and gradients" if away else "and gradients with the optimizer's state"
    instead = "" if away else ", or the hosts' with --parallel.offload_optimizer true (it takes no pipeline)"
    return (
        f"One copy of its weights {state} is {size(kept)}: {gpus:,} GPUs at least, of {size(gpu.memory_bytes)} with "
        f"{size(gpu.memory_bytes - gpu.usable_bytes)} kept back, and activations come on top. Take more --nodes, or a "
        f"--gpu with more memory{instead}."
    )


def tried(found: Search) -> str:
    """How many layouts there were, and what a start would refuse, in a sentence or two."""
    do_not, kept = found.legal - found.fitting, f"{100 * RESERVE:.0f} % of memory kept back"
    said = f"{found.legal:,} legal layouts: {found.fitting:,} fit, {do_not:,} do not ({kept})."
    ordered = sorted(found.refused.items(), key=lambda one: -one[1])
    refused = ", ".join(f"{number:,} ({why})" for why, number in ordered)
    return f"{said} Refused: {refused}." if refused else said
