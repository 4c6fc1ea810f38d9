"""Where the ranks of a job will be, what each will hold and what it will send: before anything starts, by formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from launcher.job import Job
from modeling.layout import Place
from modeling.registry import family
from training.config import ParallelConfig
from training.footprint import FP32, data_traffic, width
from training.memory import rank_memory


@dataclass(frozen=True)
class RankPlace:
    """One rank: its node, its device there, and its coordinates in the layout."""

    rank: int
    node: str
    device: int
    tensor: int
    pipeline: int
    data: int


@dataclass(frozen=True)
class Groups:
    """The groups of one axis, and how many of them have members on more than one node."""

    size: int
    count: int
    crossing: int


@dataclass(frozen=True)
class Stage:
    """What each rank of a pipeline stage holds (bytes) at its fullest moment (`training.memory`: gradients may then not
    be whole yet, or be there twice), and what the busiest of them sends in a step (bytes).
    """

    stage: int
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """With the micro-batches in flight."""
    logits: int
    buffers: int
    """Inputs, and what DeepSpeed copies beside gradients."""
    host: int
    """An offloaded optimizer's state: on the host, and not in the peak."""
    peak: int
    """The sum of all but the host's."""
    moment: str
    """forward, backward or step: when it comes."""
    sent: dict[str, int]
    """By axis: tensor, pipeline, data, tied (the embedding that first and last stage share)."""
    inside: int
    """To ranks on the same node, of all axes; the largest of any rank of the stage."""
    across: int
    """To other nodes."""


@dataclass(frozen=True)
class Plan:
    """Everything that `--dry-run` shows."""

    name: str
    nodes: list[str]
    ranks: list[RankPlace]
    parallel: ParallelConfig
    replicas: int
    precision: str
    recompute: str
    global_batch_size: int
    micro_batch_size: int
    micro_batches: int
    couples_batch: bool
    """Whether features of the whole batch are exchanged, and micro-batches run forward twice: neither is counted."""
    groups: dict[str, Groups]
    stages: list[Stage] = field(default_factory=list)


def plan_of(job: Job, nodes: Sequence[str] = ()) -> Plan:
    """The placement of a job that has been checked; nodes without an address are called node-0, node-1, …

    Raises ModelError while the vocabulary is not known.
    """
    recipe, cluster = job.recipe, job.cluster
    world, parallel = job.world_size, recipe.parallel
    names = list(nodes[: cluster.nodes]) or [f"node-{number}" for number in range(cluster.nodes)]
    places = [parallel.place(rank, world) for rank in range(world)]
    ranks = [
        RankPlace(
            rank, names[rank // cluster.ranks_per_node], rank % cluster.ranks_per_node, at.tensor, at.pipeline, at.data
        )
        for rank, at in enumerate(places)
    ]
    replicas = parallel.data_parallel(world)
    batch = recipe.batch
    plan = Plan(
        name=recipe.run.name,
        nodes=names,
        ranks=ranks,
        parallel=parallel,
        replicas=replicas,
        precision=recipe.training.precision,
        recompute=recipe.training.recompute,
        global_batch_size=batch.global_batch_size,
        micro_batch_size=batch.micro_batch_size,
        micro_batches=-(-batch.global_batch_size // (replicas * batch.micro_batch_size)),
        couples_batch=family(recipe.model.family).couples_batch,
        groups={
            "TP": _groups(ranks, parallel.tensor, lambda at: (at.pipeline, at.data)),
            "PP": _groups(ranks, parallel.pipeline, lambda at: (at.tensor, at.data)),
            "DP": _groups(ranks, replicas, lambda at: (at.tensor, at.pipeline)),
        },
    )
    return replace(plan, stages=[_stage(job, plan, number) for number in range(parallel.pipeline)])


def _groups(ranks: Sequence[RankPlace], size: int, key: Callable[[RankPlace], tuple[int, int]]) -> Groups:
    nodes: dict[tuple[int, int], set[str]] = {}
    for at in ranks:
        nodes.setdefault(key(at), set()).add(at.node)
    return Groups(size, len(nodes), sum(len(on) > 1 for on in nodes.values()))


def _stage(job: Job, plan: Plan, number: int) -> Stage:
    recipe, parallel = job.recipe, plan.parallel
    footprint = family(recipe.model.family).footprint(recipe.model, parallel, number, plan.recompute)
    element = width(plan.precision)
    samples = plan.micro_batches * plan.micro_batch_size
    halves = 2 * (parallel.tensor - 1) / parallel.tensor
    chunk_ends = parallel.virtual_pipeline
    sent = {
        "tensor": halves * (footprint.summed * samples * element + footprint.partial * FP32),
        "data": sum(data_traffic(footprint, parallel, plan.precision, plan.replicas, plan.micro_batches).values()),
        "tied": float(footprint.tied * FP32),
        "forward": footprint.boundary * samples * element * (chunk_ends - (number == parallel.pipeline - 1)),
        "backward": footprint.boundary * samples * element * (chunk_ends - (number == 0)),
    }
    inside, across = _by_link(plan, number, sent)
    memory = rank_memory(recipe, job.world_size, number)
    return Stage(
        stage=number,
        parameters=footprint.numel,
        weights=memory.weights,
        gradients=memory.gradients,
        optimizer=memory.optimizer,
        activations=memory.activations,
        logits=memory.logits,
        buffers=memory.buffers,
        host=memory.host,
        peak=memory.peak,
        moment=memory.moment,
        sent={
            "tensor": round(sent["tensor"]),
            "pipeline": round(sent["forward"] + sent["backward"]),
            "data": round(sent["data"]),
            "tied": round(sent["tied"]),
        },
        inside=inside,
        across=across,
    )


def _by_link(plan: Plan, stage: int, sent: dict[str, float]) -> tuple[int, int]:
    """The most that a rank of the stage sends inside its node, and across nodes, when rings follow the rank order."""
    parallel, stages = plan.parallel, plan.parallel.pipeline
    node_of = {Place(at.tensor, at.pipeline, at.data): at.node for at in plan.ranks}
    inside = across = 0.0
    for at in plan.ranks:
        if at.pipeline != stage:
            continue
        to = {
            "tensor": Place((at.tensor + 1) % parallel.tensor, stage, at.data),
            "data": Place(at.tensor, stage, (at.data + 1) % plan.replicas),
            "tied": Place(at.tensor, stages - 1 - stage, at.data),
            "forward": Place(at.tensor, (stage + 1) % stages, at.data),
            "backward": Place(at.tensor, (stage - 1) % stages, at.data),
        }
        here = sum(sent[axis] for axis, place in to.items() if node_of[place] == at.node)
        inside, across = max(inside, here), max(across, sum(sent.values()) - here)
    return round(inside), round(across)
