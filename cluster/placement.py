"""Which nodes carry the ranks: one bundle a node, one agent a bundle, ranks in order of (node, device)."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from cluster.agent import Agent
from cluster.config import ClusterConfig
from cluster.errors import ImpossiblePlacement, NodesUnavailable

POLL_SECONDS = 0.2
AGENT_START_SECONDS = 60.0


@dataclass(frozen=True)
class Offer:
    """A living node and all that it has, reserved or not."""

    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Bundle:
    """What is reserved on each node."""

    cpus: int
    gpus: int

    def resources(self) -> dict[str, float]:
        """As Ray's placement groups take it."""
        return {"CPU": float(self.cpus), **({"GPU": float(self.gpus)} if self.gpus else {})}


@dataclass(frozen=True)
class Slot:
    """One bundle of a reservation. When its node dies, Ray reserves another for it as soon as there is one."""

    group: Any
    index: int


@dataclass(frozen=True)
class Place:
    """One node of a run, with its agent's actor handle."""

    node_rank: int
    address: str
    node_id: str
    agent: Any
    slot: Slot


def fit(offers: Sequence[Offer], config: ClusterConfig) -> Bundle:
    """Choose what to reserve on each of `config.nodes` nodes. Pure.

    CPUs are reserved up to what the nodes have, since ranks may well outnumber a laptop's cores; GPUs exactly.
    Raises `ImpossiblePlacement`, which says what the cluster offers.
    """
    ranks = config.ranks_per_node
    gpus_per_rank = config.gpus_per_rank
    if gpus_per_rank is None:
        gpus_per_rank = 1 if any(offer.gpus >= 1 for offer in offers) else 0
    usable = [offer for offer in offers if offer.cpus >= 1]
    able = [offer for offer in usable if offer.gpus >= gpus_per_rank * ranks]
    if len(able) < config.nodes:
        wanted = f"{_count(config.nodes, 'node')} with at least 1 CPU"
        if gpus_per_rank:
            wanted += f" and {_count(gpus_per_rank * ranks, 'GPU')} ({gpus_per_rank} per rank)"
        mend = "ask for fewer cluster.nodes or add some"
        if len(usable) >= config.nodes:
            mend = "ask for fewer cluster.ranks_per_node, or set cluster.gpus_per_rank to 0 to train on CPUs"
        raise ImpossiblePlacement(f"the run needs {wanted}, but the cluster has {describe(offers)}: {mend}")
    able.sort(key=lambda offer: offer.cpus, reverse=True)
    cpus = min(ranks, int(able[config.nodes - 1].cpus))
    return Bundle(cpus, gpus_per_rank * ranks)


def describe(offers: Sequence[Offer]) -> str:
    """`2 nodes (10.0.0.1: 8 CPUs, 2 GPUs; 10.0.0.2: 8 CPUs)`."""
    if not offers:
        return "no living node"
    each = "; ".join(
        f"{offer.address}: {_count(offer.cpus, 'CPU')}" + (f", {_count(offer.gpus, 'GPU')}" if offer.gpus else "")
        for offer in offers
    )
    return f"{_count(len(offers), 'node')} ({each})"


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def living_nodes() -> list[Offer]:
    """The nodes that Ray believes alive, in order of address."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    offers = [
        Offer(n["NodeManagerAddress"], n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0)) for n in nodes
    ]
    return sorted(offers, key=lambda offer: address_order(offer.address))


def living_node_ids(seconds: float = 5.0) -> set[str]:
    """Ray's names of its living nodes; none where the head does not answer in time."""
    import ray

    found: set[str] = set()

    def ask() -> None:
        with suppress(Exception):  # whatever Ray raises about a head that is gone
            found.update(node["NodeID"] for node in ray.nodes() if node["Alive"])

    asking = threading.Thread(target=ask, name="living nodes", daemon=True)  # it would block for a minute
    asking.start()
    asking.join(seconds)
    return set(found)


def reserve(
    config: ClusterConfig, scratch: str | None, seconds: float, check: Callable[[], None]
) -> tuple[Bundle, list[Place]]:
    """Reserve `config.nodes` distinct nodes, all or none, and start an agent on each, waiting up to `seconds` for them.

    A private Ray never grows, so that there what does not fit is refused at once. `check` is called while waiting;
    what it raises ends the wait.
    Raises `ImpossiblePlacement` (the cluster is too small) or `NodesUnavailable` (large enough, but taken).
    """
    from ray.util import remove_placement_group

    deadline = time.monotonic() + seconds
    while True:
        check()
        try:
            bundle = fit(living_nodes(), config)
        except ImpossiblePlacement:
            if config.address is None or time.monotonic() >= deadline:
                raise
        else:
            group = _reserve(bundle, config.nodes, min(deadline, time.monotonic() + 10.0), check)
            if group is not None:
                try:
                    return bundle, _start_agents(group, config.nodes, bundle, scratch)
                except NodesUnavailable:  # a node died meanwhile
                    remove_placement_group(group)
                    if time.monotonic() >= deadline:
                        raise
            elif time.monotonic() >= deadline:
                raise NodesUnavailable(
                    f"{config.nodes} of {describe(living_nodes())} would do, but what the run needs there is taken: "
                    f"{bundle.resources()} on each; wait for other jobs to end, or ask for less"
                )
        time.sleep(POLL_SECONDS)  # Ray tells of nodes only when asked


def _reserve(bundle: Bundle, nodes: int, deadline: float, check: Callable[[], None]) -> Any | None:
    from ray.util import placement_group, remove_placement_group

    group = placement_group([bundle.resources()] * nodes, strategy="STRICT_SPREAD")
    ready = False
    try:
        while not ready:
            check()
            ready = group.wait(POLL_SECONDS)
            if not ready and time.monotonic() >= deadline:
                break
    finally:
        if not ready:
            remove_placement_group(group)
    return group if ready else None


def _start_agents(group: Any, nodes: int, bundle: Bundle, scratch: str | None) -> list[Place]:
    import ray

    slots = [Slot(group, index) for index in range(nodes)]
    agents = [start_agent(slot, bundle, scratch) for slot in slots]
    try:
        where = ray.get([agent.where.remote() for agent in agents], timeout=AGENT_START_SECONDS)
    except (ray.exceptions.RayError, TimeoutError) as error:
        for agent in agents:
            ray.kill(agent)
        text = " ".join(str(error).split())[:300]
        raise NodesUnavailable(f"an agent did not start on one of the nodes: {text}") from error
    return in_order(
        [
            Place(0, address, node, agent, slot)
            for (address, node), agent, slot in zip(where, agents, slots, strict=True)
        ]
    )


def start_agent(slot: Slot, bundle: Bundle, scratch: str | None) -> Any:
    """The handle of a new agent on the node of a slot; it answers when there is one."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    actor: Any = ray.remote(_NodeAgent)
    return actor.options(
        num_cpus=bundle.cpus,
        num_gpus=bundle.gpus,
        max_concurrency=Agent.THREADS,
        scheduling_strategy=PlacementGroupSchedulingStrategy(slot.group, placement_group_bundle_index=slot.index),
    ).remote(scratch)


def in_order(places: Sequence[Place]) -> list[Place]:
    """The places as nodes 0, 1, ... in order of address."""
    found = sorted(places, key=lambda place: (address_order(place.address), place.node_id))
    return [replace(place, node_rank=rank) for rank, place in enumerate(found)]


def address_order(address: str) -> tuple[int, int, str]:
    """Sort key: IP addresses by number, so that 10.0.0.9 comes before 10.0.0.10, then names."""
    try:
        return (0, int(ipaddress.ip_address(address)), "")
    except ValueError:
        return (1, 0, address)


class _NodeAgent(Agent):
    """The agent as Ray runs it."""

    def where(self) -> tuple[str, str]:
        """This node's address and Ray's name for it."""
        import ray

        return ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id()
