"""The failure policy and the choice of a culprit, without any process."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.diagnosis import Failure, RankState, culprit_of_exit, culprit_of_hang
from cluster.evidence import Evidence
from cluster.policy import Action, Decision, FailurePolicy, Kind, Verdict, judge

RESTART, ELSEWHERE, SHRINK, GIVE_UP = Action.RESTART, Action.RESTART_ELSEWHERE, Action.SHRINK, Action.GIVE_UP


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


def decide(policy: FailurePolicy, step: int | None, node: str | None = None, **more: Any) -> Action:
    """The decision about a rank's exit, each time on another node unless one is named."""
    policy_node = node or f"node-{sum(policy.on_node.values())}"
    known: dict[str, Any] = {"kind": Kind.EXIT, "spare": False, "smaller": False, **more}
    return policy.decide(known.pop("kind"), policy_node, step, **known).action


def test_restarts_run_out_without_progress() -> None:
    policy = FailurePolicy(max_restarts=2)
    assert [decide(policy, step) for step in (7, 7, 5, None)] == [RESTART, RESTART, GIVE_UP, GIVE_UP]


def test_progress_pays_the_restarts_back() -> None:
    policy = FailurePolicy(max_restarts=2)
    assert [decide(policy, step) for step in (7, 7, 8, 8, 9, 9, 9)] == [RESTART] * 6 + [GIVE_UP]


def test_failures_before_the_first_step_are_no_progress() -> None:
    policy = FailurePolicy(max_restarts=1)
    assert [decide(policy, None), decide(policy, None)] == [RESTART, GIVE_UP]


def test_a_refusal_of_what_has_worked_before_is_a_failure_of_the_node_that_refuses() -> None:
    policy = FailurePolicy(max_restarts=2, best_step=9)
    refusal: dict[str, Any] = {"kind": Kind.USER_ERROR, "node": "a"}
    assert decide(policy, None, grown=True, **refusal) is SHRINK
    assert decide(policy, None, **refusal) is RESTART
    assert policy.decide(Kind.USER_ERROR, "a", None, spare=True, smaller=True) == Decision(ELSEWHERE, avoid="a")
    assert decide(policy, None, **refusal) is GIVE_UP


def test_a_refusal_with_steps_behind_it_or_before_any_is_not_tried_again() -> None:
    assert decide(FailurePolicy(max_restarts=2), None, kind=Kind.USER_ERROR) is GIVE_UP
    assert decide(FailurePolicy(max_restarts=2, best_step=9), 8, kind=Kind.USER_ERROR, grown=True) is GIVE_UP


def test_no_restarts_allowed_means_none_even_with_progress() -> None:
    assert decide(FailurePolicy(max_restarts=0), 100) is GIVE_UP


def test_a_node_on_which_failures_keep_happening_is_avoided_when_there_is_a_spare_one() -> None:
    policy = FailurePolicy(max_restarts=5)
    assert decide(policy, 3, "a", spare=True) is RESTART
    assert policy.decide(Kind.HANG, "a", 3, spare=False, smaller=True) == Decision(RESTART)
    assert policy.decide(Kind.EXIT, "a", 3, spare=True, smaller=True) == Decision(ELSEWHERE, avoid="a")


def test_failures_on_several_nodes_are_nobodys_fault() -> None:
    policy = FailurePolicy(max_restarts=9)
    answers = [decide(policy, 3, node, spare=True, smaller=True) for node in ("a", "b", "a", "a", "a")]
    assert answers == [RESTART] * 5


def test_a_node_is_left_out_before_giving_up_for_its_sake() -> None:
    policy = FailurePolicy(max_restarts=1)
    assert decide(policy, 3, "a", smaller=True) is RESTART
    assert policy.decide(Kind.EXIT, "a", 3, spare=False, smaller=True) == Decision(SHRINK, avoid="a")
    assert [decide(policy, 3, "b", smaller=False) for _ in range(2)] == [RESTART, GIVE_UP]


def test_lost_nodes_are_not_suspected() -> None:
    policy = FailurePolicy(max_restarts=2)
    answers = [decide(policy, 3, "a", kind=Kind.LOST, spare=True, smaller=True) for _ in range(3)]
    assert answers == [RESTART, RESTART, GIVE_UP]


def test_an_attempt_that_grew_and_failed_at_once_goes_back_and_costs_no_restart() -> None:
    policy = FailurePolicy(max_restarts=0, best_step=9)
    assert [decide(policy, step, grown=True) for step in (None, None, 9)] == [SHRINK, SHRINK, GIVE_UP]


FAILURES = st.tuples(st.sampled_from(Kind), st.sampled_from("abc"), st.none() | st.integers(0, 5), *[st.booleans()] * 2)


@given(st.integers(0, 5), st.lists(FAILURES, max_size=60))
def test_whatever_happens_the_policy_keeps_its_word(max_restarts: int, failures: list[Any]) -> None:
    policy = FailurePolicy(max_restarts)
    restarts, best, nodes = 0, -1, set("abc")
    for kind, node, step, spare, other in failures:
        smaller = other and len(nodes - {node}) > 0
        decision = policy.decide(kind, node, step, spare=spare, smaller=smaller)
        refused = kind is Kind.USER_ERROR and (step is not None or best < 0)
        if step is not None and step > best:
            best, restarts = step, 0
        if refused:
            assert decision.action is GIVE_UP, "a refused input is never tried again"
        if decision.action is GIVE_UP:
            assert refused or restarts >= max_restarts, "no restart is kept back"
            return
        if decision.action is SHRINK:
            assert smaller and decision.avoid == node and restarts >= max_restarts
            nodes.discard(node)
            restarts = 0
            continue
        assert decision.action is RESTART or (spare and decision.avoid == node and kind is not Kind.LOST)
        restarts += 1
        assert restarts <= max_restarts, "without progress there are never more restarts in a row"


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


def test_ranks_that_have_got_on_or_ended_meanwhile_leave_a_sentence_and_no_traceback() -> None:
    assert culprit_of_hang([state(0), state(1, step=9)]).rank == 1
    assert culprit_of_hang([state(0, exit_code=0), state(1, exit_code=0)]).rank == 0


def test_an_agent_that_refuses_to_start_ranks_is_not_taken_for_a_lost_one() -> None:
    assert Failure("no such program", "a", exit_code=2).kind is Kind.EXIT
    assert Failure("the node is gone", "a").kind is Kind.LOST


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
