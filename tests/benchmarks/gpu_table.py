"""The GPU table's results as Markdown: when, on what, with which versions, and "not measured" where nothing was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks.gpu_search import MEMORY, OK, best

Results = Mapping[str, Any]

GPT_ROWS = ("gpt3-125m", "gpt3-350m", "gpt3-760m", "gpt3-1.3b", "gpt3-2.7b", "gpt3-6.7b")
CLIP_ROWS = ("clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14")
LOSS_ROWS = (8_192, 32_768)
MISSING = "not measured"

GPT_HEAD = (
    *("model", "samples a step", "micro-batch", "recomputed", "compiled", "tokens/s", "planned ÷ it"),
    *("MFU, 6N + 12Lhs", "MFU, causal", "peak memory", "planned ÷ it", "kernels", "optimizer", "data", "host"),
)
CLIP_HEAD = ("model", "batch", "micro-batch", "recomputed", "compiled", "samples/s", "MFU", "peak memory")
LOSS_HEAD = ("pairs", "side", "time", "memory beyond the features")


ABOUT = (
    "One rank: ZeRO 1, bf16 with fp32 masters and accumulation, sequence 2048, a GPU's share of the shipped recipe's "
    "batch as one step; shards, reading ahead and logging on. MFU over the data sheet's dense bf16 peak. The last four "
    "columns divide the clock: the device is busy with forward and backward (kernels) or with the optimizer, or idle "
    "while the host waits for data, or for any other reason."
)


def markdown(results: Results) -> str:
    """All of it; with no results the three tables without figures."""
    parts = [
        heading(results),
        ABOUT,
        table(GPT_HEAD, [row for name in names(results, "gpt", GPT_ROWS) for row in gpt_row(name, results)]),
        "CLIP, the true batch on one rank, gradient cache and one exact loss; MFU without the cache's first pass:",
        table(CLIP_HEAD, [row for name in names(results, "clip", CLIP_ROWS) for row in clip_row(name, results)]),
        "The contrastive loss alone with all its gradients, fp32, 512 features, scale 100:",
        table(LOSS_HEAD, [row for pairs in loss_sizes(results) for row in loss_rows(pairs, results)]),
    ]
    return "\n\n".join(parts) + "\n"


def heading(results: Results) -> str:
    machine = results.get("machine")
    if machine is None:
        return "Not measured yet: `python -m tests.benchmarks.gpu` on a machine with a GPU fills these tables."
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    driver = f" (driver {machine['driver']})" if machine.get("driver") else ""
    dates = sorted({one["date"][:10] for one in tries_of(results)})
    when = f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else "Begun, nothing measured yet"
    return f"{when} on one {machine['device']}{driver}, {machine['cores']} CPU cores; {versions}."


def tries_of(results: Results) -> list[dict[str, Any]]:
    return [one for kind in ("gpt", "clip", "loss") for tries in results.get(kind, {}).values() for one in tries]


def names(results: Results, kind: str, known: Sequence[str]) -> list[str]:
    """The rows of the table, those of other models behind them."""
    return [*known, *(name for name in results.get(kind, {}) if name not in known)]


def loss_sizes(results: Results) -> list[int]:
    return [*LOSS_ROWS, *(int(pairs) for pairs in results.get("loss", {}) if int(pairs) not in LOSS_ROWS)]


def gpt_row(name: str, results: Results) -> list[list[str]]:
    found = best(results.get("gpt", {}).get(name, []), "tokens_per_second")
    if found is None:
        return [[name, failure(results.get("gpt", {}).get(name, [])), *[""] * (len(GPT_HEAD) - 2)]]
    offloaded = ", optimizer on the host" if found["offload"] else ""
    memory, speed = gib(found["peak_bytes"]), found.get("planned_tokens_per_second")
    return [
        [
            name,
            str(found["samples"]),
            str(found["micro_batch_size"]),
            found["recompute"] + offloaded,
            "yes" if found["compile"] else "no",
            f"{found['tokens_per_second']:,.0f}",
            "-" if speed is None else f"{speed / found['tokens_per_second']:.2f}",
            percent(found["mfu"]),
            percent(found["mfu_causal"]),
            memory,
            "-" if found["peak_bytes"] is None else f"{found['planned_bytes'] / found['peak_bytes']:.2f}",
            *(percent(found[f"share_{share}"]) for share in ("kernels", "optimizer", "data", "host")),
        ]
    ]


def clip_row(name: str, results: Results) -> list[list[str]]:
    found = best(results.get("clip", {}).get(name, []), "samples_per_second")
    if found is None:
        return [[name, failure(results.get("clip", {}).get(name, [])), *[""] * (len(CLIP_HEAD) - 2)]]
    return [
        [
            name,
            f"{found['batch']:,}",
            f"{found['micro_batch_size']:,}",
            found["recompute"],
            "yes" if found["compile"] else "no",
            f"{found['samples_per_second']:,.0f}",
            percent(found["mfu"]),
            gib(found["peak_bytes"]),
        ]
    ]


def loss_rows(pairs: int, results: Results) -> list[list[str]]:
    tries = results.get("loss", {}).get(str(pairs), [])
    if not any(one["status"] == OK for one in tries):
        return [[f"{pairs:,}", failure(tries), "", ""]]
    sides = [side for one in tries if one["status"] == OK for side in one["sides"]]
    return [[f"{pairs:,}", side["side"], milliseconds(side["seconds"]), gib(side["bytes"])] for side in sides]


def failure(tries: Sequence[Mapping[str, Any]]) -> str:
    """Why there is no figure."""
    if not tries:
        return MISSING
    last = tries[-1]
    if all(one["status"] == MEMORY for one in tries):
        least = min(one.get("micro_batch_size", 0) for one in tries)
        return f"{MISSING}: {MEMORY} down to micro-batch {least}"
    return f"{MISSING}: {last['status']} ({last.get('message', '')[:80]})"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def milliseconds(seconds: float | None) -> str:
    return MEMORY if seconds is None else f"{1000 * seconds:.1f} ms"


def gib(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**30:.2f} GiB" if value < 10 * 2**30 else f"{value / 2**30:.1f} GiB"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
