"""What each rank said of itself when the run hung, and which rank it points to. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

LONGEST_NAME = 200  # characters of anything that a rank says of itself


@dataclass(frozen=True)
class Evidence:
    """One rank's own words (see `supervisor.run`), and what was read from outside. Pickled from agent to supervisor."""

    waiting: bool | None = None  # for other ranks; None: it has not answered
    operation: str | None = None  # what it waits in
    group: str | None = None
    sequence: int | None = None
    members: tuple[int, ...] = ()  # the ranks of that group
    entered: Mapping[str, int] = field(default_factory=dict)  # group → the last sequence number that it has entered
    since_seconds: float | None = None
    function: str | None = None  # where its main thread is
    last: str | None = None  # the last operation of a rank that does not wait
    stacks: str = ""  # text, for people
    source: str = ""  # where the stacks come from, or why there are none

    @property
    def waits_in(self) -> str:
        """`all_reduce no. 4 of default_pg (group 0)`."""
        return described(self.operation, self.sequence, self.group)


@dataclass(frozen=True)
class Pointer:
    """The rank that the evidence points to: what it does, and what the others do meanwhile."""

    rank: int
    does: str
    others: str


def described(operation: str | None, sequence: int | None, group: str | None) -> str:
    """One operation in words."""
    number = "" if sequence is None else f" no. {sequence}"
    return f"{operation or 'a collective'}{number}{'' if group is None else f' of {group}'}"


def evidence_of(answer: str, stacks: str, source: str, function: str | None = None) -> Evidence:
    """What a rank wrote to TRESTLE_STACKS.json, "" for nothing; whatever does not fit is as if it had not been said."""
    try:
        told = json.loads(answer) if answer else {}
    except ValueError:
        told = {}
    told = told if isinstance(told, dict) else {}
    waiting, entered, members, last = (told.get(name) for name in ("waiting", "entered", "members", "last"))
    numbers = entered.items() if isinstance(entered, dict) else ()
    words = None
    if isinstance(last, dict):
        words = described(_text(last.get("operation")), _number(last.get("sequence")), _text(last.get("group")))
    return Evidence(
        waiting=waiting if isinstance(waiting, bool) else None,
        operation=_text(told.get("operation")),
        group=_text(told.get("group")),
        sequence=_number(told.get("sequence")),
        members=tuple(m for m in members if isinstance(m, int)) if isinstance(members, list) else (),
        entered={str(name): number for name, number in numbers if isinstance(number, int)},
        since_seconds=since if isinstance(since := told.get("since_seconds"), float) else None,
        function=_text(told.get("function")) or function,
        last=words,
        stacks=stacks,
        source=source,
    )


def pointed_at(evidence: Mapping[int, Evidence], steps: Mapping[int, int | None]) -> Pointer | None:
    """The rank that the others wait for; None where the evidence says nothing.

    `steps`: the last heartbeat of every rank that runs. In this order: a rank that does not wait while others do; one
    that has not answered; one that waits in something earlier or other than the rest.
    """
    said = {rank: evidence.get(rank, Evidence()) for rank in steps}
    waiting = {rank: one for rank, one in said.items() if one.waiting}
    if not waiting:
        return None
    awaited = {rank: sum(rank in _awaited_by(one, said) for one in waiting.values()) for rank in said}

    def first(ranks: Collection[int]) -> int:
        return min(ranks, key=lambda rank: (-awaited[rank], -1 if (s := steps[rank]) is None else s, rank))

    free = [rank for rank, one in said.items() if one.waiting is False]
    if free:
        rank = first(free)
        where = f" but is in {said[rank].function}" if said[rank].function else ""
        return Pointer(rank, f"does not wait for the others{where}", _waiters(waiting))
    silent = [rank for rank, one in said.items() if one.waiting is None]
    if silent:
        rank = first(silent)
        where = f", it is in {said[rank].function}" if said[rank].function else ""
        return Pointer(rank, f"does not answer{where}", _waiters(waiting))
    return _odd_one_out(waiting, awaited, steps)


def _awaited_by(one: Evidence, said: Mapping[int, Evidence]) -> set[int]:
    """The members of the group in which a rank waits that have not come to the same collective of it."""
    if one.group is None or one.sequence is None:
        return set()
    late = set()
    for rank in one.members:
        if rank in said and said[rank].entered.get(one.group, 0) < one.sequence:
            late.add(rank)
    return late


def _odd_one_out(
    waiting: Mapping[int, Evidence], awaited: Mapping[int, int], steps: Mapping[int, int | None]
) -> Pointer | None:
    """All wait, so they do not wait for the same: the rank that most others wait for, else the one with least company.

    None when all of them are in the same collective: then nobody is to blame but what connects them.
    """
    company: dict[str, list[int]] = {}
    for rank in sorted(waiting):
        company.setdefault(waiting[rank].waits_in, []).append(rank)
    if len(company) == 1:
        return None

    def order(rank: int) -> tuple[int, int, int, int]:
        step = steps[rank]
        return -awaited[rank], len(company[waiting[rank].waits_in]), -1 if step is None else step, rank

    rank = min(waiting, key=order)
    where = f", called by {waiting[rank].function}" if waiting[rank].function else ""
    others = {other: one for other, one in waiting.items() if one.waits_in != waiting[rank].waits_in}
    return Pointer(rank, f"waits in {waiting[rank].waits_in}{where}", f"but {_waiters(others)}")


def _waiters(waiting: Mapping[int, Evidence]) -> str:
    """`ranks 0, 2 wait in all_reduce no. 4 of default_pg (group 0)`: what most of them wait in."""
    company: dict[str, list[int]] = {}
    for rank in sorted(waiting):
        company.setdefault(waiting[rank].waits_in, []).append(rank)
    name, ranks = max(company.items(), key=lambda item: len(item[1]))
    return f"{ranks_in_words(ranks)} {'waits' if len(ranks) == 1 else 'wait'} in {name}"


def ranks_in_words(ranks: Collection[int], most: int = 8) -> str:
    """`rank 3`, `ranks 0, 1, 2`, `ranks 0, 1, 2, … (1,023 in all)`."""
    shown = ", ".join(map(str, list(ranks)[:most]))
    more = f", … ({len(ranks):,} in all)" if len(ranks) > most else ""
    return f"rank{'' if len(ranks) == 1 else 's'} {shown}{more}"


def _text(value: Any) -> str | None:
    return " ".join(value.split())[:LONGEST_NAME] if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
