"""What the loop calls: collects, compares, and turns what it finds into events and lines."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
import torch.distributed as dist

from training.engine import Engine
from training.errors import RecipeError
from training.health.integrity import Corrupted, Figures, Finding, Integrity
from training.health.stragglers import Change, StragglerDetector
from training.health.work import OwnWork, Probe
from training.metrics import EventLog, StepClock
from training.recipe import Recipe

_PEERS_LEAVE_SECONDS = 3.0


class Health:
    """Of all ranks; built on each, collectively."""

    def __init__(self, recipe: Recipe, engine: Engine, clock: StepClock, events: EventLog) -> None:
        self._training, self._save_every = recipe.training, recipe.checkpoint.every
        self._device, self._events = engine.device, events
        self._clock = clock
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self.nodes = _nodes(self._world)
        """Each rank's node."""
        self._integrity = self._checks(recipe, engine)
        self._work = OwnWork(clock, engine.device)
        self._seen = time.monotonic()
        here = engine.coordinates
        factor = self._training.straggler_factor
        self._detectors: dict[str, StragglerDetector] = {}
        self._probe: Probe | None = None
        self._replica_of = [here.data] * self._world
        if factor is not None and self._world > 1:
            self._compare(recipe, engine, factor)

    def _checks(self, recipe: Recipe, engine: Engine) -> Integrity | None:
        training = recipe.training
        if training.check_replicas_every is None and training.check_recompute_every is None:
            return None
        if training.check_recompute_every and engine.device.type == "cuda" and not training.deterministic:
            raise RecipeError(
                "training.check_recompute_every compares bits, which a GPU computes anew only with "
                "training.deterministic true; set it, or check_recompute_every to null"
            )
        return Integrity(engine)

    # -- checks of a step -------------------------------------------------------------------------------------------

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around forward and backward of `step` (counted from 1)."""
        with ExitStack() as around:
            if self._detectors:  # who else takes what it has measured?
                around.enter_context(self._work.step())
            if self._integrity is not None and self._recompute_due(step):
                around.enter_context(self._integrity.watching(keep=True))
            yield

    def check(self, step: int, figures: Figures, again: Callable[[], Figures]) -> None:
        """Between the gradients of `step` and its update: what the recipe wants to be checked. Collective.

        `again` runs forward and backward once more. Raises Corrupted, on every rank, after the event that names the
        ranks at fault.
        """
        if self._integrity is None:
            return
        replicas, recompute = self._replicas_due(step), self._recompute_due(step)
        with self._clock.phase("check") if replicas or recompute else nullcontext():
            found = self._integrity.replicas() if replicas else None
            if found is None and recompute:
                found = self._integrity.recomputed(figures, again)
        if found is not None:
            self._leave(step, found)

    def _replicas_due(self, step: int) -> bool:
        """Also before each regular checkpoint: none may be made of weights that differ."""
        every = self._training.check_replicas_every
        return every is not None and (step % every == 0 or bool(self._save_every and step % self._save_every == 0))

    def _recompute_due(self, step: int) -> bool:
        every = self._training.check_recompute_every
        return every is not None and step % every == 0

    def _leave(self, step: int, found: Finding) -> None:
        first = found.ranks[0]
        names = ", ".join(f"rank {rank} on {self.nodes[rank]}" for rank in found.ranks)
        among = "" if len(found.ranks) == 1 else "one of "
        message = f"silent corruption at step {step}: {among}{names}: {found.what}"
        if self._rank == 0:
            more = {} if len(found.ranks) == 1 else {"ranks": list(found.ranks)}
            self._events.write("corruption", rank=first, node=self.nodes[first], step=step, reason=found.what, **more)
            print(f"trestle: {message}", flush=True)
        dist.barrier()  # the event comes first: whoever leaves now takes the others along
        if self._rank not in found.ranks:
            try:
                dist.barrier()
            except RuntimeError:
                time.sleep(_PEERS_LEAVE_SECONDS)  # whoever supervises names the rank that leaves first
        raise Corrupted(message)

    # -- stragglers ---------------------------------------------------------------------------------------------------

    def _compare(self, recipe: Recipe, engine: Engine, factor: float) -> None:
        """What can be compared in this layout: see `training.straggler_factor`."""
        here, parallel = engine.coordinates, recipe.parallel
        places = torch.zeros(self._world, 3, dtype=torch.int64, device=self._device)
        places[self._rank] = torch.tensor([here.tensor, here.pipeline, here.data])
        dist.all_reduce(places)
        kinds = [tuple(place[:2]) for place in places.tolist()]
        self._replica_of = [place[2] for place in places.tolist()]
        alone = parallel.zero_stage <= 1 and not engine.family.couples_batch
        if alone and here.data_size > 1:
            self._detectors["work"] = StragglerDetector(kinds, factor, self._training.straggler_seconds)
        if not alone or here.data_size < self._world:
            # Ranks wait for each other within forward and backward, so that all of them look slow.
            self._probe = Probe(self._device)
            everyone = [0] * self._world
            self._detectors["probe"] = StragglerDetector(everyone, factor, self._training.straggler_seconds)

    def interval(self, step: int) -> dict[str, float]:
        """At the end of a logging interval: compare ranks. Collective, one small all-reduce. Figures on rank 0."""
        now = time.monotonic()
        seconds, self._seen = now - self._seen, now
        if not self._detectors:
            return {}
        table = torch.zeros(2, self._world, dtype=torch.float64, device=self._device)
        table[0, self._rank] = self._work.take()
        table[1, self._rank] = self._probe.seconds() if self._probe is not None else 0.0
        dist.all_reduce(table)
        if self._rank != 0:
            return {}
        values = dict(zip(("work", "probe"), table.tolist(), strict=True))
        if not any(values["work"]):
            return {}  # no step since
        figures: dict[str, float] = {}
        for name, detector in self._detectors.items():
            factors = [factor or 1.0 for factor in detector.factors(values[name])]
            slowest = max(range(self._world), key=factors.__getitem__)
            figures |= {f"straggler/{name}_factor": factors[slowest], f"straggler/{name}_rank": slowest}
            self._tell(step, name, detector.observe(values[name], seconds))
        return figures

    def _tell(self, step: int, measure: str, changes: list[Change]) -> None:
        """One event for each replica: by their work its ranks cannot be told apart, as they wait for each other."""
        told: set[tuple[int, bool]] = set()
        for change in changes:
            key = (change.rank if measure == "probe" else self._replica_of[change.rank], change.slow)
            if key in told:
                continue
            told.add(key)
            together = [c.rank for c in changes if measure == "work" and (self._replica_of[c.rank], c.slow) == key]
            node, rank = self.nodes[change.rank], change.rank
            event = "straggler" if change.slow else "straggler_recovered"
            fields = {"factor": round(change.factor, 2), "seconds": round(change.seconds, 1), "measure": measure}
            more = {"ranks": together} if len(together) > 1 else {}
            self._events.write(event, rank=rank, node=node, step=step, **fields, **more)
            who = f"ranks {', '.join(map(str, together))}, first on {node}," if more else f"rank {rank} on {node}"
            verb = ("has" if not more else "have") if change.slow else ("is" if not more else "are")
            what = (
                f"{verb} been {change.factor:.1f} times slower than the others for {change.seconds:.0f} s"
                if change.slow
                else f"{verb} no longer slower than the others"
            )
            print(f"trestle: {who} {what} (step {step})", flush=True)


def _nodes(world_size: int) -> list[str]:
    names: list[str] = [""] * world_size
    dist.all_gather_object(names, os.environ.get("TRESTLE_NODE") or socket.gethostname())
    return names
