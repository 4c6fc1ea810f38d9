"""A run's checkpoints: what goes into one, and which one a run continues from. Collective over all ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.mixed_stream import MixedStream
from training.checkpoint import Checkpoint, CheckpointWriter, Retention, SaveFailed, step_of
from training.config import CheckpointConfig
from training.continuing import check_continues
from training.engine import Engine
from training.finding import Finding
from training.metrics import EventLog
from training.position import Position
from training.recipe import Recipe, to_document
from training.second_home import SecondHome

_log = logging.getLogger("trestle.training")
_GIVE_UP_SECONDS = 5.0
"""For the other ranks to let go of a save that one rank has given up."""
_PARTS = ("torch", "megatron-core", "deepspeed", "sentencepiece", "webdataset")


class RunCheckpoints:
    """Saves and finds the checkpoints of one run: in its folder, and where `checkpoint.remote` says."""

    def __init__(self, folder: Path, name: str, config: CheckpointConfig, events: EventLog) -> None:
        self.directory = folder / "checkpoints"
        self.rank = dist.get_rank()
        self._events = events
        self._announced = 0
        self._asked: int | None = None
        self._failure: SaveFailed | None = None
        self._busy_seconds = config.busy_seconds
        self._asynchronous = config.asynchronous
        self._held_up = False
        self._away: SecondHome | None = None
        retention = Retention(keep=config.keep, keep_best=config.keep_best, keep_every=config.keep_every)
        self._writer = CheckpointWriter(self.directory, self.rank, dist.get_world_size(), retention=retention)
        if config.remote is not None:
            self._away = SecondHome(folder, name, config, retention, self._note)
            self._writer.in_use = self._away.in_hand
        self._found = Finding(self.directory, self._away, self._note)
        dist.barrier()  # rank 0 clears what a killed process left before anybody writes

    # -- saving ---------------------------------------------------------------------------------------------------

    def save(
        self,
        engine: Engine,
        position: Position,
        stream: MixedStream,
        recipe: Recipe,
        beat: Callable[[], None] = lambda: None,
        *,
        needed: bool = False,
    ) -> None:
        """Copy the state and write it beside the training. A failure is reported, and training goes on: see `finish`.

        While storage holds the save before, this one is left out, unless it is `needed`: no other follows it.
        """
        self._share_damage(stream, recipe)
        self._asked = position.step
        if not self._is_free(beat, needed):
            self._report(SaveFailed(f"the checkpoint of step {position.step} is left out: storage holds up another"))
            return
        try:
            stall = self._writer.save(position.step, engine.pieces(), state_of(engine, position, stream, recipe))
            _log.info("checkpoint of step %d: copied in %.3f s", position.step, stall)
        except SaveFailed as failure:
            self._report(failure)
        if not self._asynchronous:
            self._settle(beat)

    def _is_free(self, beat: Callable[[], None], needed: bool) -> bool:
        """Whether the save before has come to its end on every rank; waited for, but only the first time in vain."""
        seconds = 0.0 if self._held_up else self._busy_seconds
        self._held_up = not self._all_settle(self._writer.longest_seconds if needed else seconds, beat)
        return not self._held_up

    def _all_settle(self, seconds: float, beat: Callable[[], None]) -> bool:
        """Whether the last save comes to its end on every rank within so many seconds, by rank 0's clock. Collective.

        A rank that has failed may not have been able to tell through the files: then it is told here, and those that
        still wait for it let go.
        """
        if dist.get_world_size() == 1 and self._writer.settles(0):
            return True
        until, told = time.monotonic() + seconds, False
        while True:
            settled = self._writer.settles(min(1.0, max(0.0, until - time.monotonic())))
            own = settled, time.monotonic() >= until, self._writer.failed
            everyone = [own] * dist.get_world_size()
            dist.all_gather_object(everyone, own)
            if all(settled for settled, _, _ in everyone):
                return True
            given_up = any(failed is not None and self._writer.drop(*failed) for _, _, failed in everyone)
            if given_up and not told:
                until, told = max(until, time.monotonic() + _GIVE_UP_SECONDS), True
            elif everyone[0][1]:
                return False
            beat()

    def _share_damage(self, stream: MixedStream, recipe: Recipe) -> None:
        """What any rank has found damaged in the data, every rank replaces from here on; it is told once."""
        if recipe.data.on_damaged != "substitute":
            return
        everyone: list[list[dict[str, Any]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, stream.found_damage())
        for one in stream.substitute([entry for found in everyone for entry in found]):
            if self.rank == 0:
                print(f"trestle: {one['reason']}; other samples of {one['corpus']} are read in its place", flush=True)
            self._note("substituted", corpus=one["corpus"], member=one["member"], reason=one["reason"])

    def poll(self) -> None:
        """Say that a checkpoint is in place, or has failed, as soon as it is known; never waits."""
        try:
            self._writer.check()
        except SaveFailed as failure:
            self._report(failure)
        self._announce()
        if self._away is not None:
            self._away.poll()

    def finish(self, beat: Callable[[], None] = lambda: None, *, hurried: bool = False) -> None:
        """Wait for the last save, and within bounds for its upload; `beat` is called meanwhile.

        Raises SaveFailed if the newest save is not in place here.
        """
        self._settle(beat, ending=True)
        if self._failure is not None:
            raise self._failure
        if self._away is not None:
            self._away.finish(beat, hurried)

    @property
    def last_verified(self) -> int | None:
        """Step of the newest checkpoint in place."""
        return self._writer.last_verified

    def _settle(self, beat: Callable[[], None], *, ending: bool = False) -> None:
        """Wait until it is known what has become of the newest save. Collective."""
        self._all_settle(self._writer.longest_seconds, beat)
        try:
            self._writer.wait(waited=self._writer.longest_seconds)
        except SaveFailed as failure:
            self._report(failure, ending=ending)
        self._announce()

    def _announce(self) -> None:
        if self._writer.in_place == self._announced:
            return
        self._announced, newest = self._writer.in_place, self._writer.last_verified
        if newest is not None:
            if self._asked is not None and newest >= self._asked:  # else it is an older one that has come late
                self._failure = None
            self._note("checkpointed", step=newest)
            if self._away is not None:
                self._away.offer(newest)

    def _report(self, failure: SaveFailed, *, ending: bool = False) -> None:
        self._failure = failure
        if not ending:  # else it is what the rank ends with
            print(f"trestle: {failure}; training goes on", flush=True)
        self._note("checkpoint_failed", reason=str(failure))

    def _note(self, event: str, **details: Any) -> None:
        """A full disk may not take the event either: no reason to lose the training."""
        if self.rank == 0:
            try:
                self._events.write(event, **details)
            except OSError as error:
                _log.error("the event %s could not be noted: %s", event, error)

    # -- resuming -------------------------------------------------------------------------------------------------

    def resume_point(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, here or in the second home. Collective. Raises as `Finding.newest`."""
        found = self._found.newest()
        here = self._found.agree_on(0)  # what was damaged is no checkpoint any more
        self._writer.went_back(None if here is None else step_of(here.name))
        return found

    def before(self, back: int, beat: Callable[[], None] = lambda: None) -> Checkpoint | None:
        """The `back`-th newest checkpoint that verifies (1: the newest), newer ones put away: the run leaves their
        future. A save that is under way is waited for; one that has failed is just not there.
        """
        self._settle(beat)
        dist.barrier()  # nothing may be put away while another rank still waits for it to get its name
        for _ in range(back - 1):
            newest, older = self._found.agree_on(0), self._found.agree_on(1)
            if newest is None or older is None:
                break
            self._found.put_away(newest, "the run went back to an earlier one after a loss spike", "abandoned")
        found = self._found.newest_here()
        self._writer.went_back(None if found is None else found.step)
        if found is None and self._away is not None:  # resumed from there, and nothing has been saved since
            found = self._found.newest()
        if found is not None and self._away is not None:
            self._away.went_back(found.step)
        return found


def state_of(engine: Engine, position: Position, stream: MixedStream, recipe: Recipe) -> dict[str, Any]:
    """The manifest's `state`."""
    parallel = recipe.parallel
    return {
        "position": position.to_json(),
        "tokens": position.samples * stream.sequence_length,
        "validation_loss": position.validation_loss,
        "data": stream.state(position.samples),
        "layout": {
            "world_size": dist.get_world_size(),
            "tensor": parallel.tensor,
            "pipeline": parallel.pipeline,
            "virtual_pipeline": parallel.virtual_pipeline,
            "sequence": parallel.sequence,
            "zero_stage": parallel.zero_stage,
        },
        # Nothing is drawn in an order: dropout's generators are seeded each step from these.
        "rng": {
            "kind": "seeded by (seed, step, data rank, stage, tensor rank)",
            "seed": recipe.run.seed,
            "step": position.step,
        },
        "schedule": {"kind": recipe.optimizer.schedule, "lr": recipe.optimizer.lr},
        # fp32 whatever the precision: bf16 weights are the masters rounded, so that storing both would say it twice.
        "weights": "fp32 masters",
        "recipe": to_document(recipe),
        "versions": {part: version(part) for part in _PARTS},
    }


def restore(engine: Engine, stream: MixedStream, recipe: Recipe, checkpoint: Checkpoint) -> Position:
    """Take over weights, moments and position. Raises DataMismatch or CheckpointMismatch when they are another
    run's.
    """
    check_continues(checkpoint, recipe, stream)
    position = Position.from_json(checkpoint.state["position"])
    engine.load(checkpoint.read, position.optimizer_steps)
    # No rank may overwrite or delete what another one still reads.
    torch.distributed.barrier()
    return position
