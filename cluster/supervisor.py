"""Run a command as N ranks over these nodes, watch them, start them again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.attempt import AgentLost, Attempt, Refused
from cluster.config import ClusterConfig
from cluster.diagnosis import Failure, culprit_of_exit
from cluster.hang import hang_report
from cluster.head import Head
from cluster.leaving import Leave, Leaving
from cluster.placement import Place, address_order
from cluster.policy import (
    EXIT_ENVIRONMENT,
    EXIT_FINISHED,
    EXIT_RESUME_ME,
    EXIT_USER_ERROR,
    Action,
    FailurePolicy,
    Verdict,
)
from cluster.processes import Launch, usable_cores
from cluster.resizing import NodesGone, Roster
from cluster.session import Session, open_session
from cluster.signals import StopRequests

POLL_SECONDS = 0.1
"""How soon the supervisor notices a signal; reports wake it earlier."""

Event = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `exit_code`: 0 finished, 2 user mistake, 75 saved and to be resumed, 1 given up,
    128 + signal: stopped before the ranks had saved."""

    exit_code: int
    attempts: int
    reason: str


def run(
    command: list[str],
    config: ClusterConfig,
    *,
    tensor_parallel: int,
    environment: dict[str, str],
    log_directory: Path,
    on_event: Callable[[Event], None],
    on_output: Callable[[str], None],
    node_counts: Sequence[int] = (),
    standby: bool = False,
) -> Outcome:
    """Run `command` as `nodes * ranks_per_node` ranks until all have finished, restarting all after a failure.

    `node_counts` are the numbers of nodes, other than `config.nodes`, on which the command can go on: with fewer when
    nodes are lost, with more when others have come. WORLD_SIZE then differs from attempt to attempt.

    Every rank gets `environment` and
      RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, NODE_RANK, MASTER_ADDR, MASTER_PORT  as under torchrun
      TRESTLE_ATTEMPT    0, 1, ...
      TRESTLE_HEARTBEAT  a file to replace (atomically) with the current step number whenever there is progress; a
                         second line that is not empty says that this rank itself got SIGTERM
      TRESTLE_STACKS     a file for what it says of itself when it hangs, below
      CUDA_VISIBLE_DEVICES  the GPUs reserved on its node, for LOCAL_RANK to choose from; empty where none are
      OMP_NUM_THREADS    its share of the node's cores, unless set here or in `environment`
      TRESTLE_NODE       the node's address
    and exits with 0, 2 (user mistake: not restarted, except that a rank which refuses before its first step what others
    have worked with is a failure of its node) or 75 (saved after SIGTERM); anything else is a failure.
    Its output goes to `log_directory`/rank-00000.log on its node; rank 0's lines go to `on_output` too.

    When a rank has not beaten for too long, every rank is asked where it is, and the answers lie in `log_directory`/
    hang-<attempt>-<time>/ beside a report that names the culprit. A rank takes part by two means, each optional:
      SIGUSR1 makes it append the stacks of all its threads to TRESTLE_STACKS, as Python's faulthandler does (the signal
        is sent only to a rank that catches it; others' are read with py-spy where Linux allows it);
      anything written to the FIFO TRESTLE_STACKS.ask, which it makes, makes it write TRESTLE_STACKS.json (atomically),
        an object with "waiting" (whether it waits for other ranks), and as far as it knows "operation" ("all_reduce"),
        "group" (a name that means the same on all ranks), "sequence" (counting the group's operations from 1),
        "members" (the group's ranks), "since_seconds", "entered" (group → the last sequence number that it has
        entered), "function" (where its main thread is), "last" ({"operation", "group", "sequence"} when not waiting).

    `standby`: the command knows how to be one. Where `config.standby` and the memory allow, each node then keeps one
    more process of it, started once all ranks of the node have shown a heartbeat (on spare nodes at once), with
      TRESTLE_STANDBY    in place of the above from RANK to TRESTLE_STACKS: the number of an inherited stream socket
    and ranks of later attempts are forked from it, which have nothing left to import (`training.standby` has the
    protocol). Where none is ready in time, ranks start cold.

    `on_event` gets dicts with "event" (started, failed, restarted, resized, leaving, finished, preempted, gave_up;
    before `failed` for a hang, hang_report with its "path"; no_standby), "time" (ISO, UTC), "attempt", and "rank",
    "node", "reason", "exit_code", "signal", "step" where they apply. "failed" says in "decision" what is done about it,
    "restarted" in "seconds" how long after the failure was detected the new ranks had been started, and in "warm" how
    many of them were forked from a standby; "resized" comes before it when the number of nodes is another: "from", "to"
    and "nodes".

    Whose wish it is when ranks save and leave (75): after a signal to this process, or when ranks on all nodes say that
    they got SIGTERM, or none says so, the run ends ("preempted", exit code 75). When ranks on some nodes say so, or
    Ray drains nodes (`ray drain-node`), only those nodes are going away: "leaving" names them, and the run goes on with
    others, or fewer. A run whose head is gone saves and ends with exit code 1.

    SIGTERM, SIGHUP and Ctrl-C ask the ranks to save and leave; a second Ctrl-C ends everything at once. Call it from
    the main thread, or signals go unnoticed. No process and no Ray setting is left behind, whatever happens.

    Raises `UserError` (exit_code 2) and `ClusterError` (exit_code 1), one line each.
    """
    config.check(tensor_parallel)
    cores = usable_cores()
    supervisor = None
    with StopRequests() as stop:
        try:
            with open_session(config, cores, on_close=stop.shield) as session, Head(session.address) as head:
                stop.catch()
                supervisor = _Supervisor(
                    command,
                    config,
                    environment,
                    log_directory,
                    on_event,
                    on_output,
                    node_counts,
                    session,
                    stop,
                    standby,
                    head,
                )
                return supervisor.run()
        except KeyboardInterrupt:
            attempts = 0 if supervisor is None else supervisor.attempts
            return Outcome(128 + signal.SIGINT, attempts, "killed at once by a second Ctrl-C")


class _Stopped(Exception):
    """A stop was requested while no rank was running."""


class _Supervisor:
    def __init__(
        self,
        command: list[str],
        config: ClusterConfig,
        environment: dict[str, str],
        log_directory: Path,
        on_event: Callable[[Event], None],
        on_output: Callable[[str], None],
        node_counts: Sequence[int],
        session: Session,
        stop: StopRequests,
        standby: bool,
        head: Head,
    ) -> None:
        self.attempts = 0
        self._begun = False  # some attempt has had all of its ranks started
        self._head_address = session.address
        self._standby = config.standby if standby else False
        self._command = command
        self._config = config
        self._environment = _with_threads(environment)
        self._log_directory = log_directory.absolute()
        self._on_event = on_event
        self._on_output = on_output
        self._working_directory = "" if session.shipped else os.getcwd()
        self._stop = stop
        self._policy = FailurePolicy(config.max_restarts)
        scratch = None if session.scratch is None else str(session.scratch)
        self._roster = Roster(config, node_counts, scratch, self._check_stop)
        self._leaving = Leaving(config, self._roster, head, stop)

    def run(self) -> Outcome:
        """Attempt after attempt, until one of them or the policy ends the run."""
        detected = None
        try:
            while True:
                attempt = Attempt(self._roster.choose(), self._config.agent_seconds, self._on_output)
                try:
                    self._start(attempt, detected)
                    end = self._watch(attempt)
                    detected = time.monotonic()
                    end = self._settle(attempt, end)
                except AgentLost as lost:
                    detected = time.monotonic()
                    end = Failure(str(lost), lost.place.address, step=attempt.highest_step)
                    self._clear_away(attempt, lost.place)
                except Refused as refused:
                    if not self._begun:
                        raise refused.error from None
                    # Nodes have started these ranks before: something is missing on this one.
                    detected, error = time.monotonic(), refused.error
                    end = Failure(str(error), refused.place.address, exit_code=error.exit_code)
                    self._clear_away(attempt, None)
                outcome = self._conclude(attempt, end, time.monotonic() - detected)
                if outcome is not None:
                    return outcome
        except _Stopped:
            return self._stopped()
        except NodesGone as gone:
            return self._give_up(str(gone))
        finally:
            self._stop.shield()
            self._roster.pool.close(headless=self._leaving.headless)

    def _start(self, attempt: Attempt, detected: float | None) -> None:
        self._check_stop()
        number = self.attempts
        self.attempts += 1
        self._leaving.reset()
        config, places, gpus = self._config, self._roster.used, self._roster.pool.bundle.gpus
        address, port = attempt.choose_master()
        world_size = len(places) * config.ranks_per_node
        common = Launch(
            command=self._command,
            working_directory=self._working_directory,
            environment=self._environment,
            log_directory=str(self._log_directory),
            attempt=number,
            node="",
            node_rank=0,
            ranks_per_node=config.ranks_per_node,
            gpus=gpus,
            world_size=world_size,
            master_address=address,
            master_port=port,
            heartbeat_seconds=config.heartbeat_seconds,
            start_seconds=config.start_seconds,
            standby=self._standby,
        )
        warm = attempt.start([replace(common, node=at.address, node_rank=at.node_rank) for at in places])
        self._begun = True
        if self._standby is not False:
            in_use = {at.node_id for at in places}
            for spare in self._roster.pool.places:
                if spare.node_id not in in_use:
                    spare.agent.stand_by.remote(replace(common, node=spare.address))  # whatever becomes of it
        details: Event = {
            "nodes": [at.address for at in places],
            "ranks": world_size,
            "ranks_per_node": config.ranks_per_node,
            "gpus_per_node": gpus,
            "master": f"{address}:{port}",
        }
        if len(places) != (self._roster.former or config.nodes):
            sizes = {"from": self._roster.former or config.nodes, "to": len(places)}
            self._tell("resized", **sizes, nodes=details["nodes"], ranks=world_size)
        if detected is None:
            self._tell("started", **details)
        else:
            self._tell("restarted", **details, warm=warm, seconds=round(time.monotonic() - detected, 3))

    def _watch(self, attempt: Attempt) -> Verdict | Failure:
        """Wait for the end of the attempt: a verdict that all ranks share, or a failure."""
        leave_by: float | None = None
        ask_at: float | None = None
        while True:
            attempt.poll(POLL_SECONDS)
            for at, note in attempt.take_notes():
                self._tell("no_standby", node=at.address, reason=note)
            verdict = attempt.verdict()
            if verdict in (Verdict.FINISHED, Verdict.PREEMPTED) and attempt.done:
                if leave_by is None:
                    self._leaving.look(attempt, verdict)
                return verdict
            if verdict in (Verdict.FAILED, Verdict.USER_ERROR):
                attempt.refresh()
                return culprit_of_exit(attempt.states)
            if leave_by is None:
                if self._leaving.look(attempt, verdict):
                    leave_by = time.monotonic() + self._config.grace_seconds
                    # Ranks that go of their own leave together, and a signal could hit one on its way out.
                    ask_at = leave_by - (0.5 if self._leaving.why is Leave.OWN else 1.0) * self._config.grace_seconds
                elif attempt.hung:
                    found = hang_report(attempt, self.attempts - 1, self._log_directory)
                    if found is not None:
                        failure, report = found
                        self._tell("hang_report", **report)
                        return failure
            elif ask_at is not None and time.monotonic() >= ask_at:
                ask_at = None
                attempt.signal(signal.SIGTERM)
            elif time.monotonic() > leave_by:
                late = next((state for state in attempt.states if state.exit_code is None), None)
                if late is not None:  # else all have ended, of which the rest is yet to be heard, or none has reported
                    reason = f"rank {late.rank} had not saved {self._config.grace_seconds:g} s after SIGTERM"
                    return Failure(reason, late.node, late.rank, step=late.step)

    def _settle(self, attempt: Attempt, end: Verdict | Failure) -> Verdict | Failure:
        """Clear away what a failed attempt has left running."""
        if isinstance(end, Verdict):
            return end
        attempt.stop(self._config.teardown_seconds)
        if attempt.verdict() is Verdict.USER_ERROR:  # its peers' failures may have been seen first
            return culprit_of_exit(attempt.states)
        return end

    def _clear_away(self, attempt: Attempt, lost: Place | None) -> None:
        """The same where a node was lost or refused to start ranks; others may be lost meanwhile."""
        while True:
            if lost is not None:
                self._roster.pool.lose(lost)
                attempt.forget(lost)
            try:
                attempt.stop(self._config.teardown_seconds)
                return
            except AgentLost as another:
                lost = another.place

    def _conclude(self, attempt: Attempt, end: Verdict | Failure, teardown: float) -> Outcome | None:
        """Tell what has happened and decide; None: start again."""
        step = attempt.highest_step
        if end is Verdict.FINISHED:
            self._tell("finished", step=step)
            return Outcome(EXIT_FINISHED, self.attempts, "all ranks finished")
        saved = end is Verdict.PREEMPTED
        if self._stop.received is None and (self._leaving.why is Leave.HEAD or self._leaving.headless):
            work = "the ranks have saved" if saved else "the work since the newest checkpoint is lost"
            return self._give_up(
                f"the Ray head at {self._head_address} is gone; {work}; resume when a head is there again to continue"
            )
        if saved and self._stop.received is None and self._leaving.goes_on:
            if self._leaving.going:
                assert self._leaving.why is not None
                nodes = sorted(self._leaving.going, key=address_order)
                self._tell("leaving", nodes=nodes, reason=self._leaving.why.value, step=step)
                self._roster.pool.leave(nodes)
            if self._policy.reached(step):
                self._roster.progressed()
            return None
        if saved:
            self._tell("preempted", step=step, saved=True, signal=self._stop_signal())
            return Outcome(EXIT_RESUME_ME, self.attempts, "saved and stopped on request; resume to continue")
        assert isinstance(end, Failure)
        if self._stop.received is not None:
            return self._stopped(end)
        return self._after_failure(end, step, teardown)

    def _after_failure(self, failure: Failure, step: int | None, teardown: float) -> Outcome | None:
        roster, used = self._roster, self._policy.used
        decision = self._policy.decide(
            failure.kind,
            failure.node,
            step,
            spare=roster.pool.has_spare(roster.used),
            smaller=roster.smaller(failure.node),
            grown=roster.grown,
        )
        details = {name: value for name, value in asdict(failure).items() if value is not None}
        self._tell("failed", **details, decision=decision.action.value, teardown_seconds=round(teardown, 3))
        given_up = decision.action is Action.GIVE_UP
        if given_up and failure.exit_code == EXIT_USER_ERROR and failure.rank is not None:
            reason = f"{failure.reason} (a mistake in its input); {self._see(failure)}"
            return Outcome(EXIT_USER_ERROR, self.attempts, reason)
        if given_up:
            restarts = f"{used} restart{'' if used == 1 else 's'}"
            return self._give_up(f"{failure.reason}, after {restarts} without progress; {self._see(failure)}")
        roster.failed(decision)
        return None

    def _give_up(self, reason: str) -> Outcome:
        self._tell("gave_up", reason=reason)
        return Outcome(EXIT_ENVIRONMENT, self.attempts, f"gave up: {reason}")

    def _stopped(self, failure: Failure | None = None) -> Outcome:
        assert self._stop.received is not None
        why = "no rank was running" if failure is None else failure.reason
        reason = f"stopped by {self._stop.received.name} before the ranks had saved: {why}"
        self._tell("preempted", saved=False, signal=self._stop_signal(), reason=why)
        return Outcome(128 + self._stop.received, self.attempts, reason)

    def _see(self, failure: Failure) -> str:
        if failure.rank is None:
            return f"logs: {self._log_directory}"
        return f"log: {self._log_directory / f'rank-{failure.rank:05d}.log'}"

    def _stop_signal(self) -> str | None:
        return None if self._stop.received is None else self._stop.received.name

    def _check_stop(self) -> None:
        if self._stop.received is not None:
            raise _Stopped

    def _tell(self, event: str, **details: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._on_event({"event": event, "time": now, "attempt": self.attempts - 1, **details})


def _with_threads(environment: dict[str, str]) -> dict[str, str]:
    """Add this process's own OMP_NUM_THREADS: on the nodes it could not be told from the one that Ray sets."""
    own = os.environ.get("OMP_NUM_THREADS")
    return environment if own is None else {"OMP_NUM_THREADS": own, **environment}
