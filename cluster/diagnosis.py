"""From the state of all ranks to one sentence that names the likely culprit. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.evidence import Evidence, pointed_at, ranks_in_words
from cluster.policy import EXIT_FINISHED, EXIT_RESUME_ME, EXIT_USER_ERROR, Kind

STOPPED = ("T", "t")  # /proc/<pid>/status: stopped by a signal, or by a debugger


@dataclass(frozen=True)
class RankState:
    """What an agent sees of one rank. Pickled from agent to supervisor."""

    rank: int
    node: str
    pid: int
    exit_code: int | None  # None: running; -9: killed by signal 9
    exit_order: int  # how many of the agent's ranks ended before this one; meaningless while running
    process_state: str  # letter of /proc/<pid>/status, "" once ended
    step: int | None  # last step number in the heartbeat, None before the first
    silent_seconds: float  # since the last heartbeat (or the start)
    stale: bool  # silent for longer than allowed
    asked_to_stop: bool = False  # it says that it got SIGTERM
    out_of_memory: str | None = None  # of a rank that the kernel killed for it: which memory ran out

    @property
    def stopped(self) -> bool:
        """By a signal or a debugger."""
        return self.process_state in STOPPED


@dataclass(frozen=True)
class Failure:
    """The event `failed`, without its time: which rank, where, and why."""

    reason: str
    node: str
    rank: int | None = None
    exit_code: int | None = None
    signal: str | None = None
    step: int | None = None

    @property
    def kind(self) -> Kind:
        """What the policy wants to know of it."""
        if self.rank is None:  # the exit code is then that of an agent's refusal to start ranks
            return Kind.LOST if self.exit_code is None else Kind.EXIT
        if self.exit_code == EXIT_USER_ERROR:
            return Kind.USER_ERROR
        return Kind.HANG if self.exit_code is None and self.signal is None else Kind.EXIT


def highest_step(states: Sequence[RankState]) -> int | None:
    """The furthest step any rank has reported, None before the first heartbeat."""
    return max((state.step for state in states if state.step is not None), default=None)


def culprit_of_exit(states: Sequence[RankState]) -> Failure:
    """Name the rank whose end explains the others': a refused input, then a signal, then an exit code, then the first.

    A killed rank makes its peers' collectives fail within milliseconds, often before anyone has looked, so that the
    order in time alone would blame a peer.
    """
    failed = [state for state in states if state.exit_code not in (None, EXIT_FINISHED, EXIT_RESUME_ME)]
    first = min(failed, key=lambda s: (s.exit_code != EXIT_USER_ERROR, (s.exit_code or 0) > 0, s.exit_order, s.rank))
    code = first.exit_code or 0
    name = signal_name(-code) if code < 0 else None
    if name is None:
        reason = f"rank {first.rank} exited with code {code}"
    else:
        reason = f"rank {first.rank} was killed by {name}"
        if first.out_of_memory is not None:
            reason += f": the kernel's OOM killer ({first.out_of_memory})"
        elif name == "SIGKILL":
            reason += " (the kernel does this when memory runs out)"
    return Failure(reason, first.node, first.rank, code if code > 0 else None, name, first.step)


def culprit_of_hang(states: Sequence[RankState], evidence: Mapping[int, Evidence] | None = None) -> Failure:
    """Name the rank that the silent ones wait for.

    When one rank hangs, all fall silent together, waiting for it in a collective. A stopped process is the cause; else
    the one that the ranks' own evidence points to (`evidence.pointed_at`); else the one at the lowest step; else the
    one that fell silent first.
    """
    silent = [state for state in states if state.stale]
    running = [state for state in states if state.exit_code is None]
    stopped = [state for state in running if state.stopped]
    suspects = stopped or silent or running or states
    first = min(suspects, key=lambda s: (-1 if s.step is None else s.step, -s.silent_seconds, s.rank))
    said = evidence or {}
    pointer = None if stopped else pointed_at(said, {state.rank: state.step for state in running})
    if pointer is not None:
        first = next(state for state in running if state.rank == pointer.rank)
    names = ranks_in_words(sorted(state.rank for state in silent or suspects))
    longest = max(state.silent_seconds for state in silent or suspects)
    at = "before its first heartbeat" if first.step is None else f"at step {first.step}"
    silence = f"no progress for {longest:.1f} s ({names})"
    if stopped:
        which = ", ".join(str(state.rank) for state in stopped)
        reason = f"{silence}: rank {which} {'is' if len(stopped) == 1 else 'are'} stopped by a signal, {at}"
    elif pointer is not None:
        reason = f"{silence}: rank {first.rank} {pointer.does}, {at}; {pointer.others}"
    elif len(silent) == 1:
        reason = f"rank {first.rank} hangs {at}: {silence}"
    else:
        reason = f"{silence}: rank {first.rank} is the furthest behind, {at}"
    return Failure(reason, first.node, first.rank, step=first.step)


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; `signal 99` for a number without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
