"""A plan as a page in one file: nothing runs in it, nothing is loaded, and it has a light and a dark face."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.report.document import document, header
from data_pipeline.report.markup import Html, element
from data_pipeline.report.sections import section
from data_pipeline.report.tables import number, row, table
from launcher.dry_run import axes
from launcher.plan.bars import memory_bars
from launcher.plan.colours import STYLE
from launcher.plan.facts import days, energy_of, facts, large, pace, percent
from launcher.plan.figures import Estimate
from launcher.plan.layouts import layouts
from launcher.plan.mend import Mend
from launcher.plan.reasons import peak
from launcher.plan.search import Search
from launcher.plan.show import fit, least_gpus, memory_rows, own_place, split, then, tried
from launcher.plan.terms import TERMS, seconds
from launcher.plan.timeline import time_line
from launcher.tables import size

_FOOTER = "Made by trestle plan, by formula: nothing was run."


def render(
    estimate: Estimate | None, mends: Sequence[Mend], found: Search | None, command: str, notes: Sequence[str]
) -> str:
    """The page of a plan, of a search, or of both; with a search the pictures are of the fastest layout.

    command: `trestle train RECIPE` as the user would call it.
    """
    best = found.proposals[0].estimate if found and found.proposals else None
    nearest = found.nearest.estimate if found and found.nearest else None
    shown_ = best or nearest or estimate
    if shown_ is None:
        raise AssertionError("there is nothing to show")
    over = "Trestle plan" if found is None else "Trestle plan: the fastest of all layouts"
    if nearest is not None:
        over = "Trestle plan: nothing fits, and this is the nearest"
    return document(
        f"{shown_.name}: plan",
        header(over, shown_.name, _facts(shown_), _tiles(shown_)),
        _warning(shown_, mends),
        _search(found, command),
        section("Memory", memory_bars(shown_), _memory_table(shown_), lead=_memory_lead(shown_)),
        section("One step", time_line(shown_), lead=_line_lead(shown_)),
        section("Where the step's time goes", _step_table(shown_)),
        section("What it comes to", _fact_table(shown_)),
        section("Where this comes from", _sources(shown_, notes)),
        footer=_FOOTER,
        more_style=STYLE,
    )


def _facts(estimate: Estimate) -> Html:
    nodes = f"{estimate.nodes:,} nodes x " if estimate.nodes > 1 else ""
    found = [
        ("Model", f"{large(estimate.parameters)} parameters"),
        ("Hardware", f"{nodes}{estimate.gpus_per_node} {estimate.accelerator.name}"),
        ("Layout", axes(estimate.parallel, estimate.replicas)),
        ("ZeRO", f"stage {estimate.parallel.zero_stage}"),
        ("Precision", estimate.precision),
        ("Recompute", estimate.recompute),
        (
            "Batch",
            f"{estimate.global_batch_size:,} samples of {estimate.sequence_length:,} tokens = {split(estimate)}",
        ),
    ]
    return element("dl", *(element("div", element("dt", k), element("dd", v)) for k, v in found), class_="facts")


def _tiles(estimate: Estimate) -> list[tuple[str, str, str]]:
    training, limit = estimate.training, estimate.accelerator.memory_bytes
    energy = energy_of(training.energy_kwh)
    cost = ("GPU-hours", f"{training.gpu_hours:,.0f}", energy)
    if training.cost is not None:
        cost = ("Cost", f"{training.cost:,.0f}", f"{training.gpu_hours:,.0f} GPU-hours, {energy}")
    return [
        ("A step", seconds(estimate.step.total_seconds), pace(estimate)),
        ("MFU", percent(estimate.mfu), f"{percent(estimate.mfu_causal)} with causal attention"),
        ("Memory at the peak", size(peak(estimate)), f"{100 * peak(estimate) / limit:.0f} % of {size(limit)}"),
        ("Training", days(training.days), f"{training.steps:,} steps"),
        cost,
        ("Checkpoint", size(estimate.checkpoint.bytes), f"{estimate.checkpoint.per_run:,} in the run"),
    ]


def _warning(estimate: Estimate, mends: Sequence[Mend]) -> Html | None:
    if estimate.fits:
        return None
    said = [element("p", element("strong", "It does not fit. "), fit(estimate, mends)[0].partition(": ")[2])]
    said += [
        element(
            "p",
            "Would fit: ",
            element("code", mend.overrides),
            f" ({then(mend)})",
        )
        for mend in mends
    ]
    return element("div", *said, class_="warning", role="note")


def _search(found: Search | None, command: str) -> Html | None:
    if found is None or not found.proposals:
        return None if found is None else _nothing(found, command)
    own = element("p", f"{own_place(found)}.", class_="note") if found.own else None
    lead = element("p", f"{tried(found)} Take one with its overrides behind ", element("code", command), ".")
    return element("section", element("h2", "The fastest layouts"), lead, layouts(found), own)


def _nothing(found: Search, command: str) -> Html | None:
    """What is said where no layout fits."""
    if found.nearest is None:
        return None
    words = element("p", "The nearest: ", element("code", f"{command} {found.nearest.overrides}"))
    bound = element("p", least_gpus(found.nearest.estimate))
    return element("section", element("h2", "Nothing fits"), element("p", tried(found)), bound, words)


def _memory_lead(estimate: Estimate) -> str:
    of, said = "of each pipeline stage" if len(estimate.stages) > 1 else "of the model", fit(estimate)[0]
    return f"What a rank {of} holds when it holds most, against what a GPU has. {said[0].upper()}{said[1:]}."


def _memory_table(estimate: Estimate) -> Html:
    heads, rows = memory_rows(estimate)
    head = [("A rank of", ""), *((name, "number") for name in heads)]
    return table("Memory of a rank by stage", head, [row(name, *map(number, others)) for name, *others in rows])


def _line_lead(estimate: Estimate) -> str:
    if len(estimate.stages) == 1:
        passes = (
            "each forward first, then forward and backward again" if estimate.couples_batch else "one after another"
        )
        return f"{estimate.micro_batches:,} micro-batches, {passes}; then gradients are summed and the optimizer steps."
    schedule = "interleaved schedule" if estimate.parallel.virtual_pipeline > 1 else "1F1B schedule"
    return (
        f"{estimate.micro_batches:,} micro-batches through {len(estimate.stages)} stages by the {schedule} that runs; "
        "then gradients are summed and the optimizer steps."
    )


def _step_table(estimate: Estimate) -> Html:
    """A bar of each part, with its meaning."""
    total = estimate.step.total_seconds
    rows = []
    for term in TERMS:
        value = getattr(estimate.step, term.field)
        if not value:
            continue
        picture = element(
            "svg",
            element("rect", width=100, height=10, class_="track"),
            element("rect", width=max(100 * value / total, 0.4), height=10, class_=term.colour),
            viewBox="0 0 100 10",
            preserveAspectRatio="none",
            class_="bar",
            aria_hidden="true",
        )
        name = element(
            "th", element("span", class_=f"swatch {term.colour}", aria_hidden="true"), term.name, scope="row"
        )
        cells = (element("td", picture, class_="wide"), number(seconds(value)), number(percent(value / total)))
        rows.append(element("tr", name, *cells, element("td", term.meaning, class_="none meaning")))
    foot = element(
        "tr", element("th", "together", scope="row"), element("td"), number(seconds(total)), element("td", colspan=2)
    )
    head = [("Part", ""), ("", "wide"), ("time", "number"), ("share", "number"), ("what it is", "meaning")]
    return table("Time of a step by part", head, rows, foot)


def _fact_table(estimate: Estimate) -> Html:
    rows = [element("tr", element("th", fact.name, scope="row"), element("td", fact.value)) for fact in facts(estimate)]
    whole = element("table", element("caption", "Figures of the plan"), element("tbody", *rows), class_="said-of")
    return element("div", whole, class_="scroll")


def _sources(estimate: Estimate, notes: Sequence[str]) -> Html:
    said = [element("li", one) for one in (*estimate.assumptions, *notes)]
    return element("ul", *said, class_="sources")
