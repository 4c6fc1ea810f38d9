"""The nodes that a run holds, each with its agent: lost ones are replaced as others come, spare ones stay warm."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.config import ClusterConfig
from cluster.errors import ClusterError
from cluster.placement import Bundle, Place, Slot, fit, in_order, living_nodes, reserve, start_agent
from cluster.sizes import Sizes

CLOSE_SECONDS = 5.0
LEAVING_SECONDS = 600.0
"""Longer than the notice that clouds give of an interruption (30 s to 2 minutes)."""


@dataclass
class _Vacancy:
    """A slot whose agent has not come up: its node is gone, or has not been found yet."""

    slot: Slot
    agent: Any = None
    asked: Any = None  # where the agent is


class Pool:
    """Up to `config.nodes` distinct nodes. `check` is called while waiting; what it raises ends the wait."""

    def __init__(self, config: ClusterConfig, scratch: str | None, check: Callable[[], None]) -> None:
        self.bundle = Bundle(1, 0)
        self._config = config
        self._scratch = scratch
        self._check = check
        self._places: list[Place] = []
        self._vacancies: list[_Vacancy] = []
        self._surplus: list[Slot] = []
        # By Ray's names of nodes, so that one that comes back mended is another.
        self._avoided: set[str] = set()
        self._leaving: dict[str, float] = {}  # until when (monotonic)
        self.draining: Collection[str] = ()
        """Ray's names of the nodes that it is to take away, as last heard."""

    def open(self, sizes: Sizes) -> None:
        """Reserve all nodes at once, or, where the recipe says a number, as many as there are after the wait.

        Raises as `placement.reserve`.
        """
        seconds = self._config.connect_seconds
        counts = sizes.counts[:1] if self._config.min_nodes is None else sizes.counts
        for count in counts:
            asked = replace(self._config, nodes=count, min_nodes=None)
            try:
                self.bundle, self._places = reserve(asked, self._scratch, seconds, self._check)
                return
            except ClusterError:
                if count == counts[-1]:
                    raise
            seconds = min(seconds, 1.0)  # the others have been waited for already

    @property
    def places(self) -> list[Place]:
        """The nodes whose agents are up and that are neither avoided nor about to leave, in order."""
        return in_order([place for place in self._places if place.node_id not in self._shunned()])

    @property
    def suspects(self) -> list[Place]:
        """The nodes at hand that are avoided."""
        return in_order([place for place in self._places if place.node_id in self._avoided])

    def look(self) -> bool:
        """Take in the agents that have come up, and ask for what is missing; whether any came. Never waits."""
        before = len(self._places)
        self._vacancies = [vacancy for vacancy in self._vacancies if not self._settled(vacancy)]
        if len(self.places) < self._config.nodes and not self._vacancies:
            self._vacancies.append(_Vacancy(self._one_more()))
        return len(self._places) > before

    def lose(self, place: Place) -> None:
        """A node or its agent is gone: a new agent takes over its reservation, there or on another node."""
        import ray

        if any(held.agent == place.agent for held in self._places):
            self._places = [held for held in self._places if held.agent != place.agent]
            ray.kill(place.agent)
            self._vacancies.append(_Vacancy(place.slot))

    def avoid(self, address: str) -> None:
        """Keep away from the node of that address."""
        self._avoided |= {place.node_id for place in self._places if place.address == address}

    def leave(self, addresses: Collection[str]) -> None:
        """Those nodes are about to go away: do without them, unless they are still there after `LEAVING_SECONDS`
        and Ray is not to take them away.
        """
        until = time.monotonic() + LEAVING_SECONDS
        self._leaving |= {place.node_id: until for place in self._places if place.address in addresses}

    def has_spare(self, used: Sequence[Place]) -> bool:
        """Whether a node could take the place of one of the `used`: an idle one of ours, or another in the cluster."""
        if len(self.places) > len(used):
            return True
        held = {place.address for place in self._places}
        try:
            others = [offer for offer in living_nodes() if offer.address not in held]
            fit(others, replace(self._config, nodes=1, min_nodes=None))
        except ClusterError:
            return False
        return True

    def verify(self) -> None:
        """Drop the nodes whose agents do not answer."""
        import ray

        asked = {place.agent.where.remote(): place for place in self._places}
        answers, late = ray.wait(list(asked), num_returns=len(asked), timeout=self._config.agent_seconds)
        for reference in late:
            self.lose(asked[reference])
        for reference in answers:
            try:
                ray.get(reference)
            except ray.exceptions.RayError:
                self.lose(asked[reference])

    def close(self, *, headless: bool = False) -> None:
        """End the agents, and with them any rank that is left, and give the nodes back.

        Without a head there is nobody to give them back to: the nodes end by themselves, and their agents with them.
        """
        import ray
        from ray.util import remove_placement_group

        closing = [place.agent.close.remote() for place in self._places]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        if headless:
            return
        agents = [place.agent for place in self._places] + [v.agent for v in self._vacancies if v.agent is not None]
        for agent in agents:
            ray.kill(agent)
        slots = [*self._surplus, *(held.slot for held in self._places), *(vacancy.slot for vacancy in self._vacancies)]
        for group in {slot.group.id: slot.group for slot in slots}.values():
            remove_placement_group(group)
        self._places, self._vacancies, self._surplus = [], [], []

    def _shunned(self) -> set[str]:
        now = time.monotonic()
        return self._avoided | {n for n, until in self._leaving.items() if now < until or n in self.draining}

    def _settled(self, vacancy: _Vacancy) -> bool:
        """Whether it is known what has become of a vacancy; its agent is asked for where it is missing."""
        import ray

        if vacancy.agent is None:
            vacancy.agent = start_agent(vacancy.slot, self.bundle, self._scratch)
            vacancy.asked = vacancy.agent.where.remote()
        ready, _ = ray.wait([vacancy.asked], timeout=0)
        if not ready:
            return False
        try:
            address, node_id = ray.get(vacancy.asked)
        except ray.exceptions.RayError:  # asked for before Ray knew that the node is dead
            vacancy.agent = None
            return False
        if any(place.node_id == node_id for place in self._places):  # two reservations have met on one node
            ray.kill(vacancy.agent)
            self._surplus.append(vacancy.slot)
        else:
            self._places.append(Place(0, address, node_id, vacancy.agent, vacancy.slot))
        return True

    def _one_more(self) -> Slot:
        """A reservation of one more node, other than those at hand."""
        from ray.util import placement_group

        taken = sorted({place.node_id for place in self._places} | self._shunned())
        selector = [{"ray.io/node-id": f"!in({','.join(taken)})"}] if taken else None
        return Slot(placement_group([self.bundle.resources()], bundle_label_selector=selector), 0)
