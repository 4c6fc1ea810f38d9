"""The failure policy and the choice of a culprit, without any process."""

from __future__ import annotations

import pytest

from cluster.diagnosis import RankState, culprit_of_exit, culprit_of_hang
from cluster.evidence import Evidence
from cluster.policy import RestartPolicy, Verdict, judge


@pytest.mark.parametrize(
    ("exit_codes", "verdict"),
    [
        ([None, None], Verdict.RUNNING),
        ([0, None], Verdict.RUNNING),
        ([0, 0], Verdict.FINISHED),
        ([75, None], Verdict.LEAVING),
        ([75, 75], Verdict.PREEMPTED),
        ([0, 75], Verdict.PREEMPTED),
        ([1, None], Verdict.FAILED),
        ([-9, 0], Verdict.FAILED),
        ([75, 1], Verdict.FAILED),
        ([2, None], Verdict.USER_ERROR),
        ([-6, 2], Verdict.USER_ERROR),
    ],
)
def test_exit_codes_decide_what_an_attempt_was(exit_codes: list[int | None], verdict: Verdict) -> None:
    assert judge(exit_codes) is verdict


def test_restarts_run_out_without_progress() -> None:
    policy = RestartPolicy(max_restarts=2)
    assert [policy.restart_after(step) for step in (7, 7, 5, None)] == [True, True, False, False]


def test_progress_pays_the_restarts_back() -> None:
    policy = RestartPolicy(max_restarts=2)
    assert [policy.restart_after(step) for step in (7, 7, 8, 8, 9, 9, 9)] == [True, True, True, True, True, True, False]


def test_failures_before_the_first_step_are_no_progress() -> None:
    policy = RestartPolicy(max_restarts=1)
    assert [policy.restart_after(None), policy.restart_after(None)] == [True, False]


def test_no_restarts_allowed_means_none_even_with_progress() -> None:
    assert not RestartPolicy(max_restarts=0).restart_after(100)


def state(rank: int, **changes: object) -> RankState:
    values: dict[str, object] = {
        "rank": rank,
        "node": f"node-{rank}",
        "pid": 100 + rank,
        "exit_code": None,
        "exit_order": 0,
        "process_state": "S",
        "step": 10,
        "silent_seconds": 5.0,
        "stale": False,
    }
    return RankState(**{**values, **changes})  # type: ignore[arg-type]


def test_a_killed_rank_is_named_even_if_its_peer_was_seen_to_fail_first() -> None:
    failure = culprit_of_exit([state(0, exit_code=1, exit_order=0), state(1, exit_code=-9, exit_order=1), state(2)])
    assert (failure.rank, failure.signal, failure.exit_code, failure.node) == (1, "SIGKILL", None, "node-1")


def test_a_rank_that_refuses_its_input_is_named_before_all_others() -> None:
    failure = culprit_of_exit([state(0, exit_code=-6), state(1, exit_code=2, exit_order=1)])
    assert (failure.rank, failure.exit_code) == (1, 2)


def test_the_first_to_fail_is_named_among_equals() -> None:
    assert culprit_of_exit([state(0, exit_code=1, exit_order=1), state(1, exit_code=1, exit_order=0)]).rank == 1


def test_a_stopped_process_is_the_culprit_among_many_silent_ones() -> None:
    ranks = [state(0, stale=True, step=3), state(1, stale=True, process_state="T"), state(2, stale=True)]
    failure = culprit_of_hang(ranks)
    assert failure.rank == 1
    assert failure.reason == "no progress for 5.0 s (ranks 0, 1, 2): rank 1 is stopped by a signal, at step 10"


def test_a_stopped_rank_is_named_even_before_its_own_silence_is_too_long() -> None:
    assert culprit_of_hang([state(0, stale=True), state(1, process_state="T", silent_seconds=4.9)]).rank == 1


def test_the_rank_furthest_behind_is_the_suspect_when_none_is_stopped() -> None:
    failure = culprit_of_hang([state(0, stale=True), state(1, stale=True, step=9), state(2, stale=True)])
    assert failure.rank == 1 and failure.step == 9
    assert culprit_of_hang([state(0, stale=True), state(1, stale=True, step=None)]).rank == 1


def test_a_rank_that_the_kernel_killed_for_memory_is_told_from_other_kills() -> None:
    killed = state(1, exit_code=-9)
    assert culprit_of_exit([killed]).reason.endswith("SIGKILL (the kernel does this when memory runs out)")
    short = state(1, exit_code=-9, out_of_memory="cgroup memory limit 8.0 GiB")
    expected = "rank 1 was killed by SIGKILL: the kernel's OOM killer (cgroup memory limit 8.0 GiB)"
    assert culprit_of_exit([short]).reason == expected


WORLD = "default_pg (group 0)"


def waits(sequence: int = 5, operation: str = "all_reduce", group: str = WORLD, world: int = 4) -> Evidence:
    """A rank that has entered this collective, and in the world's group at least the four before."""
    entered = {WORLD: 4, group: sequence}
    return Evidence(True, operation, group, sequence, tuple(range(world)), entered, 3.0, "step (loop.py:7)")


def busy(entered: int = 4) -> Evidence:
    return Evidence(False, entered={WORLD: entered}, function="read (data.py:3)")


NOBODY = Evidence()


@pytest.mark.parametrize(
    ("evidence", "culprit", "words"),
    [
        ([waits(), busy(), waits(), waits()], 1, "rank 1 does not wait for the others but is in read (data.py:3), at"),
        ([waits(), waits(), NOBODY, waits()], 2, "rank 2 does not answer, at step 10; ranks 0, 1, 3 wait in all_red"),
        ([busy(5), busy(), waits(), waits()], 1, "rank 1 does not wait"),  # rank 0 has been there and gone on
        ([NOBODY, busy(), waits(), waits()], 1, "rank 1 does not wait"),
        ([waits(), waits(), waits(4), waits()], 2, "rank 2 waits in all_reduce no. 4 of default_pg (group 0), called"),
        ([waits(), waits(operation="broadcast"), waits(), waits()], 1, "rank 1 waits in broadcast no. 5"),
        ([waits(), waits(), waits(), waits(1, group="PAIR (group 1)", world=2)], 3, "; but ranks 0, 1, 2 wait in all"),
        ([waits(), waits(), waits(), waits()], 0, "no progress for 5.0 s (ranks 0, 1, 2, 3): rank 0 is the furthest"),
        ([busy(), busy(), busy(), busy()], 0, "rank 0 is the furthest behind"),
        ([NOBODY, NOBODY, NOBODY, NOBODY], 0, "rank 0 is the furthest behind"),
        ([], 0, "rank 0 is the furthest behind"),
    ],
)
def test_the_rank_that_the_others_wait_for_is_named(evidence: list[Evidence], culprit: int, words: str) -> None:
    failure = culprit_of_hang([state(rank, stale=True) for rank in range(4)], dict(enumerate(evidence)))
    assert failure.rank == culprit and failure.node == f"node-{culprit}"
    assert words in failure.reason


def test_a_rank_that_has_not_fallen_silent_itself_can_be_what_the_silent_ones_wait_for() -> None:
    ranks = [state(0, stale=True), state(1)]
    assert culprit_of_hang(ranks, {0: waits(world=2), 1: busy()}).rank == 1


def test_a_stopped_rank_is_the_culprit_whatever_the_others_say() -> None:
    ranks = [state(0, stale=True), state(1, stale=True, process_state="T")]
    assert culprit_of_hang(ranks, {0: busy()}).reason.endswith("rank 1 is stopped by a signal, at step 10")


def test_a_rank_that_has_ended_is_no_suspect() -> None:
    ranks = [state(0, stale=True), state(1, exit_code=0), state(2, stale=True)]
    assert culprit_of_hang(ranks, {0: waits(world=3), 2: busy()}).rank == 2
