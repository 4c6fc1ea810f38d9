"""`--dry-run`: show the placement of a job and start nothing; and the few lines of it that every start prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from cluster.config import ClusterConfig
from cluster.errors import ClusterError
from data_pipeline.locations import is_remote
from launcher.arguments import Parser
from launcher.errors import UserError
from launcher.job import Job
from launcher.placement import Plan, RankPlace, Stage, plan_of
from launcher.tables import size, table
from training.config import ParallelConfig

MOST_ROWS = 32
"""Ranks that are shown one by one unless all are asked for."""
REACH_SECONDS = 5.0
"""How long a dry run tries to reach the cluster before it goes on without."""

ON_TOP = "what the allocator wastes, CUDA's context and the collectives' own buffers come on top"
"""Of a GPU's memory: what no formula here counts."""
AT_PEAK = (
    "at the peak: the fullest moment of a step on a GPU, by formula (see training.memory); within 5 % of the live "
    f"tensors of real steps. {ON_TOP[0].upper()}{ON_TOP[1:]}"
)
SENDING = (
    "sent: rings in rank order; a sum over n ranks sends 2 (n - 1) / n of a tensor, a gather half of that; single "
    "numbers, checkpoints and validation are left out"
)
COUPLED = ", and so are the features of the batch that all ranks exchange, and the first of two forward passes"


def add_dry_run(parser: Parser) -> None:
    """The options of a command that can show its placement instead of starting."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show which rank gets which node and device, memory and communication; start nothing, write nothing",
    )
    parser.add_argument(
        "--all-ranks", action="store_true", help=f"with --dry-run: one row a rank beyond {MOST_ROWS}, too"
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: all of it as JSON")


def check_anywhere(job: Job) -> None:
    """`Job.check` for a cluster that need not exist yet. Raises as that does."""
    address = job.cluster.address or "node-0:6379"
    replace(job, cluster=replace(job.cluster, address=address)).check()


def dry_run(job: Job, *, all_ranks: bool = False, as_json: bool = False) -> int:
    """Print the placement of a job; 0. With `cluster.address` of a cluster that answers, on its nodes.

    Nothing is started or written. Raises errors with exit_code for a job that cannot run.
    """
    check_anywhere(job)
    note = read_vocabulary(job)
    nodes, where = real_nodes(job.cluster)
    plan = plan_of(job, nodes)
    if as_json:
        print(json.dumps({**asdict(plan), "notes": [n for n in (note, where) if n]}, indent=1))
        return 0
    print("\n".join(lines(plan, all_ranks=all_ranks)))
    for remark in (note, where):
        if remark:
            print(remark)
    return 0


def real_nodes(cluster: ClusterConfig) -> tuple[list[str], str]:
    """Addresses of the nodes that would carry the run, as far as the cluster tells; and what to say of it."""
    if cluster.address is None:
        return [], ""
    from cluster.preview import nodes_now

    try:
        nodes = nodes_now(replace(cluster, connect_seconds=min(cluster.connect_seconds, REACH_SECONDS)))
    except ClusterError as error:
        return [], f"nodes: named by number, since {error}"
    if len(nodes) > cluster.nodes:
        return nodes, f"nodes: any {cluster.nodes} of the {len(nodes)} that would do: {', '.join(nodes)}"
    return nodes, f"nodes: those that {cluster.address} has now"


def read_vocabulary(job: Job) -> str:
    """Let the shards decide the vocabulary where they are at hand; what to say when they are not.

    Raises what `check_shards` raises.
    """
    from launcher.supervise import check_shards

    missing = [
        source.shards
        for source in job.recipe.data.mix
        if not is_remote(source.shards) and not (Path(source.shards) / "manifest.json").is_file()
    ]
    if job.recipe.model.vocab_size is None and (missing or not job.recipe.data.mix):
        where = f"the shards {missing[0]} are not there" if missing else "no shards are named"
        raise UserError(
            f"model.vocab_size is null, for the shards to decide, but {where}: make them with `trestle prepare`, or "
            "say --model.vocab_size"
        )
    if job.recipe.data.mix and not missing:
        check_shards(job.recipe)
        return ""
    return f"shards: not looked at ({missing[0]} is not there)" if missing else "shards: none are named"


def headline(plan: Plan) -> str:
    """The layout and the batch in one line."""
    parallel, nodes, ranks = plan.parallel, len(plan.nodes), len(plan.ranks)
    return (
        f"{ranks:,} rank{'s' if ranks > 1 else ''} on {nodes:,} node{'s' if nodes > 1 else ''}: "
        f"{axes(parallel, plan.replicas)}, "
        f"ZeRO {parallel.zero_stage}, {plan.precision}; {plan.global_batch_size:,} samples a step = {plan.replicas} x "
        f"{plan.micro_batches} micro-batches of {plan.micro_batch_size}"
    )


def axes(parallel: ParallelConfig, replicas: int) -> str:
    """How a model is divided over ranks, in words."""
    said = f"TP {parallel.tensor} x PP {parallel.pipeline} x DP {replicas}"
    if parallel.virtual_pipeline > 1:
        said += f", {parallel.virtual_pipeline} chunks a stage"
    return f"{said}, sequence parallel" if parallel.sequence else said


def crossings(plan: Plan) -> str:
    """Which groups cross nodes, in one line."""
    said = []
    for axis, groups in plan.groups.items():
        if groups.size == 1:
            continue
        crossing = (
            "none" if not groups.crossing else "all" if groups.crossing == groups.count else f"{groups.crossing:,}"
        )
        said.append(f"{crossing} of {groups.count:,} {axis} groups of {groups.size}")
    return f"cross nodes: {', '.join(said)}" if said else "cross nodes: nothing, there is one rank"


def short(job: Job) -> list[str]:
    """The placement in three lines, for the start of a run."""
    plan = plan_of(job)
    fullest = max(plan.stages, key=lambda stage: stage.peak)
    busiest = max(plan.stages, key=lambda stage: stage.inside + stage.across)
    away = f", {size(fullest.host)} on the host" if fullest.host else ""
    of = " of the fullest stage" if len(plan.stages) > 1 else ""
    return [
        headline(plan),
        f"memory a rank{of}: {size(fullest.weights)} weights, {size(fullest.gradients)} gradients, "
        f"{size(fullest.optimizer)} optimizer, {size(fullest.activations)} activations, "
        f"{size(fullest.peak)} at the peak{away}",
        f"sent a step and rank: {size(busiest.inside)} inside a node, {size(busiest.across)} across; {crossings(plan)}",
    ]


def lines(plan: Plan, *, all_ranks: bool = False) -> list[str]:
    """Everything, for the eyes."""
    found = [f"{plan.name}: {headline(plan)}", ""]
    if all_ranks or len(plan.ranks) <= MOST_ROWS:
        rows = [(str(at.rank), at.node, at.device, at.tensor, at.pipeline, at.data) for at in plan.ranks]
        found += [table(("rank", "node", "device", "TP", "PP", "DP"), rows), ""]
    else:
        found += [table(("ranks", "nodes", "devices", "TP", "PP", "DP"), _condensed(plan)), ""]
        found += ["one row a stage; --all-ranks shows one a rank", ""]
    found += [crossings(plan), ""]
    found += [_stage_table("memory a rank", plan, _memory), AT_PEAK, ""]
    sending = SENDING + (COUPLED if plan.couples_batch else "")
    found += [_stage_table("sent a step by the busiest rank", plan, _traffic), sending]
    return found


def _condensed(plan: Plan) -> list[Sequence[object]]:
    """A row for the ranks of each pipeline stage, which follow one another."""
    rows: list[Sequence[object]] = []
    for stage in range(plan.parallel.pipeline):
        of = [at for at in plan.ranks if at.pipeline == stage]
        rows.append(
            (
                f"{of[0].rank} - {of[-1].rank}",
                of[0].node if of[0].node == of[-1].node else f"{of[0].node} - {of[-1].node}",
                _range(of, "device"),
                _range(of, "tensor"),
                stage,
                _range(of, "data"),
            )
        )
    return rows


def _range(ranks: Sequence[RankPlace], axis: str) -> str:
    values = [getattr(at, axis) for at in ranks]
    return str(min(values)) if min(values) == max(values) else f"{min(values)} - {max(values)}"


def _stage_table(title: str, plan: Plan, columns: Callable[[Stage], dict[str, object]]) -> str:
    """One row for each run of stages that are alike."""
    rows: list[list[object]] = []
    first = 0
    for stage in plan.stages:
        alike = stage.stage + 1 < len(plan.stages) and columns(plan.stages[stage.stage + 1]) == columns(stage)
        if not alike:
            name = str(stage.stage) if first == stage.stage else f"{first} - {stage.stage}"
            rows.append([f"stage {name}" if len(plan.stages) > 1 else "every rank", *columns(stage).values()])
            first = stage.stage + 1
    return table((title, *columns(plan.stages[0])), rows)


def _memory(stage: Stage) -> dict[str, object]:
    away = {"on the host": size(stage.host)} if stage.host else {}
    return {
        "parameters": stage.parameters,
        "weights": size(stage.weights),
        "gradients": size(stage.gradients),
        "optimizer": size(stage.optimizer),
        "activations": size(stage.activations),
        "logits": size(stage.logits),
        "buffers": size(stage.buffers),
        "peak": size(stage.peak),
        "comes in": stage.moment,
        **away,
    }


def _traffic(stage: Stage) -> dict[str, object]:
    shown = {axis: size(count) for axis, count in stage.sent.items()}
    return {**shown, "inside a node": size(stage.inside), "across nodes": size(stage.across)}


def say_short(job: Job) -> None:
    """Print `short` before the ranks start."""
    for line in short(job):
        print(f"trestle: {line}", flush=True)
