"""Run a command as N ranks over these nodes, watch them, start them again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.attempt import AgentLost, Attempt
from cluster.config import ClusterConfig
from cluster.diagnosis import Failure, culprit_of_exit
from cluster.errors import ClusterError
from cluster.hang import hang_report
from cluster.placement import Place, Placement, place
from cluster.policy import EXIT_ENVIRONMENT, EXIT_FINISHED, EXIT_RESUME_ME, EXIT_USER_ERROR, RestartPolicy, Verdict
from cluster.processes import Launch, usable_cores
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
) -> Outcome:
    """Run `command` as `nodes * ranks_per_node` ranks until all have finished, restarting all after a failure.

    Every rank gets `environment` and
      RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, NODE_RANK, MASTER_ADDR, MASTER_PORT  as under torchrun
      TRESTLE_ATTEMPT    0, 1, ...
      TRESTLE_HEARTBEAT  a file to replace (atomically) with the current step number whenever there is progress
      TRESTLE_STACKS     a file for what it says of itself when it hangs, below
      CUDA_VISIBLE_DEVICES  the GPUs reserved on its node, for LOCAL_RANK to choose from; empty where none are
      OMP_NUM_THREADS    its share of the node's cores, unless set here or in `environment`
    and exits with 0, 2 (user mistake: not restarted) or 75 (saved after SIGTERM); anything else is a failure.
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

    `on_event` gets dicts with "event" (started, failed, restarted, finished, preempted, gave_up; before `failed` for a
    hang, hang_report with its "path"), "time" (ISO, UTC), "attempt", and "rank", "node", "reason", "exit_code",
    "signal", "step" where they apply. "restarted" says in "seconds" how long after the failure was detected the new
    ranks had been started.

    SIGTERM, SIGHUP and Ctrl-C ask the ranks to save and leave; a second Ctrl-C ends everything at once. Call it from
    the main thread, or signals go unnoticed. No process and no Ray setting is left behind, whatever happens.

    Raises `UserError` (exit_code 2) and `ClusterError` (exit_code 1), one line each.
    """
    config.check(tensor_parallel)
    cores = usable_cores()
    supervisor = None
    with StopRequests() as stop:
        try:
            with open_session(config, cores, on_close=stop.shield) as session:
                stop.catch()
                supervisor = _Supervisor(
                    command, config, environment, log_directory, on_event, on_output, session, stop
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
        session: Session,
        stop: StopRequests,
    ) -> None:
        self.attempts = 0
        self._command = command
        self._config = config
        self._environment = _with_threads(environment)
        self._log_directory = log_directory.absolute()
        self._on_event = on_event
        self._on_output = on_output
        self._scratch = None if session.scratch is None else str(session.scratch)
        self._stop = stop
        self._policy = RestartPolicy(config.max_restarts)
        self._placement: Placement | None = None

    def run(self) -> Outcome:
        """Attempt after attempt, until one of them or the policy ends the run."""
        detected = None
        try:
            while True:
                if self._placement is None:
                    self._placement = self._place(again=detected is not None)
                attempt = Attempt(self._placement, self._config.agent_seconds, self._on_output)
                try:
                    self._start(attempt, self._placement, detected)
                    end = self._watch(attempt)
                    detected = time.monotonic()
                    end = self._settle(attempt, end)
                except AgentLost as lost:
                    detected = time.monotonic()
                    end = Failure(str(lost), lost.place.address, step=attempt.highest_step)
                    self._drop_placement(lost.place)
                outcome = self._conclude(attempt, end, time.monotonic() - detected)
                if outcome is not None:
                    return outcome
        except _Stopped:
            return self._stopped()
        except _NodesGone as gone:
            return self._give_up(str(gone))
        finally:
            self._stop.shield()
            self._drop_placement()

    def _place(self, *, again: bool) -> Placement:
        wait = self._config.node_return_seconds if again else self._config.connect_seconds
        try:
            return place(self._config, self._scratch, wait, self._check_stop)
        except ClusterError as error:
            if again:
                raise _NodesGone(f"no nodes to restart on after {wait:g} s: {error}") from error
            raise

    def _start(self, attempt: Attempt, placement: Placement, detected: float | None) -> None:
        self._check_stop()
        number = self.attempts
        self.attempts += 1
        config = self._config
        address, port = attempt.choose_master()
        world_size = len(placement.places) * config.ranks_per_node
        common = Launch(
            command=self._command,
            working_directory=os.getcwd(),
            environment=self._environment,
            log_directory=str(self._log_directory),
            attempt=number,
            node="",
            node_rank=0,
            ranks_per_node=config.ranks_per_node,
            gpus=placement.bundle.gpus,
            world_size=world_size,
            master_address=address,
            master_port=port,
            heartbeat_seconds=config.heartbeat_seconds,
            start_seconds=config.start_seconds,
        )
        attempt.start([replace(common, node=at.address, node_rank=at.node_rank) for at in placement.places])
        details: Event = {
            "nodes": [at.address for at in placement.places],
            "ranks": world_size,
            "ranks_per_node": config.ranks_per_node,
            "gpus_per_node": placement.bundle.gpus,
            "master": f"{address}:{port}",
        }
        if detected is None:
            self._tell("started", **details)
        else:
            self._tell("restarted", **details, seconds=round(time.monotonic() - detected, 3))

    def _watch(self, attempt: Attempt) -> Verdict | Failure:
        """Wait for the end of the attempt: a verdict that all ranks share, or a failure."""
        leave_by = None
        while True:
            attempt.poll(POLL_SECONDS)
            verdict = attempt.verdict()
            if verdict in (Verdict.FINISHED, Verdict.PREEMPTED) and attempt.done:
                return verdict
            if verdict in (Verdict.FAILED, Verdict.USER_ERROR):
                attempt.refresh()
                return culprit_of_exit(attempt.states)
            if leave_by is None:
                if self._stop.received is not None or verdict is Verdict.LEAVING:
                    leave_by = time.monotonic() + self._config.grace_seconds
                    attempt.signal(signal.SIGTERM)
                elif attempt.hung:
                    failure, report = hang_report(attempt, self.attempts - 1, self._log_directory)
                    self._tell("hang_report", **report)
                    return failure
            elif time.monotonic() > leave_by:
                late = next(state for state in attempt.states if state.exit_code is None)
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

    def _conclude(self, attempt: Attempt, end: Verdict | Failure, teardown: float) -> Outcome | None:
        """Tell what has happened and decide; None: start again."""
        if end is Verdict.FINISHED:
            self._tell("finished", step=attempt.highest_step)
            return Outcome(EXIT_FINISHED, self.attempts, "all ranks finished")
        if end is Verdict.PREEMPTED:
            self._tell("preempted", step=attempt.highest_step, saved=True, signal=self._stop_signal())
            return Outcome(EXIT_RESUME_ME, self.attempts, "saved and stopped on request; resume to continue")
        assert isinstance(end, Failure)
        details = {name: value for name, value in asdict(end).items() if value is not None}
        if self._stop.received is not None:
            return self._stopped(end)
        self._tell("failed", **details, teardown_seconds=round(teardown, 3))
        if end.exit_code == EXIT_USER_ERROR:
            return Outcome(EXIT_USER_ERROR, self.attempts, f"{end.reason} (a mistake in its input); {self._see(end)}")
        if self._policy.restart_after(attempt.highest_step):
            return None
        used = self._policy.used
        restarts = f"{used} restart{'' if used == 1 else 's'}"
        return self._give_up(f"{end.reason}, after {restarts} without progress; {self._see(end)}")

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

    def _drop_placement(self, lost: Place | None = None) -> None:
        if self._placement is not None:
            placement, self._placement = self._placement, None
            placement.release(lost)


class _NodesGone(Exception):
    """Nodes were lost and have not come back in time."""


def _with_threads(environment: dict[str, str]) -> dict[str, str]:
    """Add this process's own OMP_NUM_THREADS: on the nodes it could not be told from the one that Ray sets."""
    own = os.environ.get("OMP_NUM_THREADS")
    return environment if own is None else {"OMP_NUM_THREADS": own, **environment}
