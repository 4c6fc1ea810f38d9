"""One attempt: the same command on every node of a placement, as the supervisor sees it through the agents."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from cluster.awake import AwakeClock
from cluster.diagnosis import RankState, highest_step
from cluster.errors import ClusterError
from cluster.evidence import Evidence
from cluster.placement import Place, living_node_ids
from cluster.policy import Verdict, judge
from cluster.processes import Launch, Report

REPORT_SECONDS = 1.0
"""How long an agent holds back a report when there is no news: the rate of traffic from an undisturbed node."""


LONGEST_POLL = 5.0
"""Of a longer time between two polls only so much counts as waiting for agents: the supervisor was paused, or busy."""


REPORT_SHARE = 0.8
"""Of the time for a hang report, what an agent has: the rest is for the way to it and back."""


class AgentLost(Exception):
    """A node, or the agent on it, is gone."""

    def __init__(self, place: Place, reason: str) -> None:
        super().__init__(reason)
        self.place = place


class Refused(Exception):
    """An agent could not do what it was asked for, and is well otherwise."""

    def __init__(self, place: Place, error: ClusterError) -> None:
        super().__init__(str(error))
        self.place = place
        self.error = error


class Attempt:
    """Starts ranks, keeps the newest state of each, hands rank 0's lines to `on_output`.

    Each agent is asked for a report that it answers when there is news; the answers are taken as they come, so that the
    cost for the supervisor is one message per node and second. Every method may raise `AgentLost` and `Refused`.
    """

    def __init__(self, places: Sequence[Place], agent_seconds: float, on_output: Callable[[str], None]) -> None:
        self._places = list(places)
        self._agent_seconds = agent_seconds
        self._on_output = on_output
        self._reports: dict[int, Report] = {}
        self._notes: list[tuple[Place, str]] = []
        self._clock = AwakeClock(LONGEST_POLL)
        self._pending: dict[Any, tuple[Place, float]] = {}  # the report asked for → whose, and since when, by the clock

    def choose_master(self) -> tuple[str, int]:
        """Address and a free port on node 0, for the ranks to meet."""
        first = self._places[0]
        port = self._answers({first: first.agent.free_port.remote()}, self._agent_seconds)[first]
        return first.address, port

    def start(self, launches: Sequence[Launch]) -> int:
        """Start all ranks; returns how many came from a standby. Raises `Refused` when all nodes have answered."""
        asked = {place: place.agent.start.remote(launch) for place, launch in zip(self._places, launches, strict=True)}
        warm = self._answers(asked, self._agent_seconds)
        self._ask_for_reports(self._places)
        return sum(warm.values())

    def poll(self, seconds: float) -> None:
        """Take the reports that have come, waiting up to `seconds` for the first."""
        import ray

        waiting = list(self._pending)
        if not waiting:
            return
        ready, _ = ray.wait(waiting, num_returns=1, timeout=seconds)
        if len(waiting) > 1:
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for reference in ready:
            place, _ = self._pending.pop(reference)
            report = self._answers({place: reference}, self._agent_seconds)[place]
            self._take(place, report)
            if not report.done:
                self._ask_for_reports([place])
        now = self._clock.look()
        for place, since in self._pending.values():
            if now - since > REPORT_SECONDS + self._agent_seconds:
                raise self._lost(place, f"has not answered for {self._agent_seconds:g} s")

    def refresh(self) -> None:
        """Ask every agent for its ranks' states now, for a diagnosis across nodes."""
        asked = {place: place.agent.states.remote() for place in self._places}
        for place, states in self._answers(asked, self._agent_seconds).items():
            before = self._reports.get(place.node_rank)
            self._reports[place.node_rank] = Report(states, [], before is not None and before.done)

    def evidence(self, seconds: float) -> dict[int, Evidence]:
        """Where every rank is, by its number, as far as the agents tell within `seconds`. Raises nothing."""
        import ray

        asked = [place.agent.evidence.remote(REPORT_SHARE * seconds) for place in self._places]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=seconds)
        told: dict[int, Evidence] = {}
        for reference in answered:
            with suppress(Exception):  # a lost agent; whatever else, it must not keep a run from starting again
                told |= ray.get(reference)
        return told

    def forget(self, place: Place) -> None:
        """Leave a lost node out of all that follows."""
        self._places.remove(place)
        self._pending = {reference: asked for reference, asked in self._pending.items() if asked[0] != place}

    def signal(self, number: int) -> None:
        """Send a signal to every rank."""
        self._answers({place: place.agent.signal.remote(number) for place in self._places}, self._agent_seconds)

    def stop(self, grace_seconds: float) -> None:
        """End all ranks, SIGTERM first and SIGKILL after `grace_seconds`; returns when they are gone."""
        asked = {place: place.agent.stop.remote(grace_seconds) for place in self._places}
        self._pending.clear()
        for place, report in self._answers(asked, grace_seconds + self._agent_seconds).items():
            self._take(place, report)

    @property
    def states(self) -> list[RankState]:
        """The newest known state of every rank, in rank order."""
        return [state for rank in sorted(self._reports) for state in self._reports[rank].states]

    @property
    def highest_step(self) -> int | None:
        """The furthest step that any rank has reported in this attempt."""
        return highest_step(self.states)

    @property
    def all_in_step(self) -> bool:
        """True when every rank has told of a step, so that it is ready to be asked to save."""
        states = self.states
        return len(self._reports) == len(self._places) and all(state.step is not None for state in states)

    @property
    def nodes_asked_to_stop(self) -> set[str]:
        """Addresses of the nodes on which a rank says that it got SIGTERM."""
        return {state.node for state in self.states if state.asked_to_stop}

    @property
    def hung(self) -> bool:
        """True when a rank has been silent for too long."""
        return any(state.stale for state in self.states)

    @property
    def done(self) -> bool:
        """True when every rank has ended and all output has been handed over."""
        return len(self._reports) == len(self._places) and all(report.done for report in self._reports.values())

    def take_notes(self) -> list[tuple[Place, str]]:
        """What agents had to say of their nodes, beside the state of their ranks."""
        notes, self._notes = self._notes, []
        return notes

    def verdict(self) -> Verdict:
        """What the exit codes say, `RUNNING` until every node has reported."""
        verdict = judge([state.exit_code for state in self.states])
        if len(self._reports) < len(self._places) and verdict not in (Verdict.USER_ERROR, Verdict.FAILED):
            return Verdict.RUNNING
        return verdict

    def _take(self, place: Place, report: Report) -> None:
        self._reports[place.node_rank] = report
        self._notes += [(place, note) for note in report.notes]
        for line in report.output:
            self._on_output(line)

    def _ask_for_reports(self, places: Sequence[Place]) -> None:
        for place in places:
            self._pending[place.agent.report.remote(REPORT_SECONDS)] = (place, self._clock.look())

    def _answers(self, asked: Mapping[Place, Any], seconds: float) -> dict[Place, Any]:
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        deadline = time.monotonic() + seconds
        answers = {}
        refused: Refused | None = None
        for place, reference in asked.items():
            try:
                answers[place] = ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
            except GetTimeoutError as error:
                raise self._lost(place, f"has not answered for {seconds:g} s") from error
            except RayTaskError as error:  # the agent itself raised
                if isinstance(error.cause, ClusterError):
                    refused = refused or Refused(place, error.cause)
                    continue
                raise self._lost(place, f"failed: {_last_line(error)}") from error
            except RayError as error:
                raise self._lost(place, "died") from error
        if refused is not None:  # only now, since others that were still starting ranks could not be stopped yet
            raise refused
        return answers

    def _lost(self, place: Place, what: str) -> AgentLost:
        if place.node_id in living_node_ids():
            return AgentLost(place, f"the agent on node {place.address} {what}")
        return AgentLost(place, f"node {place.address} left the cluster")


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:300] if lines else type(error).__name__
