"""The loop of one rank: batch → loss → step, and everything that happens between steps."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data_pipeline.batching import BatchSchedule, Duration
from data_pipeline.mixed_stream import MixedStream
from modeling import groups, megatron_bridge
from modeling.registry import Family
from training.batches import Batches, LocalBatch
from training.checkpoint import Checkpoint
from training.engine import Engine, StepResult
from training.errors import Diverged
from training.figures import Tally, device_name, flops_note, memory_bytes, public
from training.health import Health
from training.inputs import Inputs, Seen
from training.metrics import EventLog, Ledger, Recorder, StepClock, format_line, mfu, peak_flops
from training.position import Position
from training.process import Heartbeat, RankEnvironment, StopRequest
from training.recipe import Recipe, to_yaml
from training.saving import RunCheckpoints, restore
from training.schedule import Schedule

_log = logging.getLogger("trestle.training")


@dataclass
class Parts:
    """What a trainer works with; `training.worker` puts it together."""

    recipe: Recipe
    folder: Path
    family: Family
    engine: Engine
    inputs: Inputs
    stream: MixedStream
    checkpoints: RunCheckpoints
    events: EventLog
    heartbeat: Heartbeat
    stop: StopRequest
    environment: RankEnvironment

    @property
    def rank(self) -> int:
        return self.environment.rank

    @property
    def world_size(self) -> int:
        return self.environment.world_size


class Trainer:
    """One run on one rank, from its newest checkpoint to its end."""

    def __init__(self, parts: Parts, checkpoint: Checkpoint | None) -> None:
        self.parts = parts
        recipe = self.recipe = parts.recipe
        self.engine, self.stream = parts.engine, parts.stream
        self.batch_schedule = BatchSchedule(recipe.batch, self.stream.sequence_length)
        self.schedule = self._learning_rates()
        self.position = Position()
        if checkpoint is not None:
            self.position = restore(self.engine, self.stream, recipe, checkpoint)
        self.total_steps = self._steps_of(recipe.training.steps)
        self.clock = StepClock(self.position.useful_seconds, begun=parts.environment.begun)
        self.health = Health(recipe, self.engine, self.clock, parts.events)
        self.tally = Tally(self.stream.corpora, self.engine.device)
        self.recorder: Recorder | None = None
        if parts.rank == 0:
            self.recorder = Recorder(parts.folder, checkpoint.step if checkpoint is not None else None)
            age = time.monotonic() - parts.environment.begun
            self.ledger = Ledger(parts.folder, parts.environment.attempt, self.position.step, age)
            self._write_texts()
        self.looking = parts.inputs.looking(self.engine, self.stream, lambda: parts.heartbeat.beat(self.position.step))
        self._batches: Batches | None = None
        self._flops = parts.family.flops_per_token(recipe.model)

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Train to the end; False when the run was asked to stop before it, and has saved. Collective."""
        try:
            while not self._finished():
                self._train_step()
                stopping = self.parts.stop.reached(self.position.step)
                self._between_steps(stopping)
                if stopping and not self._finished():
                    self.parts.checkpoints.finish(self._beat, hurried=True)
                    return False
            self.parts.checkpoints.finish(self._beat)
            return True
        finally:
            self._close()

    def steps(self, most: int) -> Iterator[int]:
        """Make up to `most` steps and log them without a word on the console, neither validating nor saving; yields the
        step after each. Fewer when the run is asked to stop. Collective.
        """
        try:
            for _ in range(most):
                self._train_step()
                if self.position.step % self.recipe.training.log_every == 0:
                    with self.clock.around("log"):
                        self._log(None, say=False)
                yield self.position.step
                if self.parts.stop.reached(self.position.step):
                    return
        finally:
            self._close()

    def _beat(self) -> None:
        self.parts.heartbeat.beat(self.position.step)

    def _finished(self) -> bool:
        self.total_steps = self._steps_of(self.recipe.training.steps)
        early = self.recipe.training.stop_after or self.total_steps
        patience = self.recipe.training.early_stopping
        enough = patience is not None and self.position.validations_without_gain >= patience
        return self.position.step >= min(self.total_steps, early) or enough

    def _train_step(self) -> None:
        position, clock = self.position, self.clock
        with clock.phase("data"):
            batch = next(self._data())
        with clock.phase("forward_backward"), self.health.step(position.step + 1):
            figures = self._forward_backward(batch)
        self.health.check(position.step + 1, figures, lambda: self._forward_backward(batch))
        samples = position.samples + batch.samples
        rate = self.schedule.learning_rate(position.step, samples * self.stream.sequence_length)
        with clock.phase("optimizer"):
            result = self.engine.step(rate)
        self.tally.add(batch, figures)
        clock.step_done()
        position.step += 1
        position.samples = samples
        position.optimizer_steps = self.engine.optimizer_steps
        position.useful_seconds = clock.useful_seconds
        position.validation_loss = None  # the one before was of other weights
        self.parts.heartbeat.beat(position.step)
        self._note(result)
        self._rate, self._norm, self._size = rate, result.grad_norm, batch.samples

    def _forward_backward(self, batch: LocalBatch) -> list[dict[str, torch.Tensor]]:
        self._seed_dropout()
        return self.engine.forward_backward(batch.micro_batches)

    def _note(self, result: StepResult) -> None:
        """Count steps that were left out, and stop when there are too many in a row."""
        position = self.position
        position.skipped_steps += result.skipped
        position.skipped_in_a_row = position.skipped_in_a_row + 1 if result.skipped else 0
        limit = self.recipe.training.max_skipped_steps
        if result.skipped and self.parts.rank == 0:
            self.parts.events.write("skipped", step=position.step, reason="the gradient norm is not finite")
        if position.skipped_in_a_row >= limit:
            raise Diverged(
                f"{limit} steps in a row had a gradient that is not finite (training.max_skipped_steps); "
                "lower optimizer.lr, lengthen optimizer.warmup, or look at the data before this step"
            )

    def _between_steps(self, stopping: bool) -> None:
        recipe, step = self.recipe, self.position.step
        if self._went_back_after_spike():
            return
        last = self._finished()
        every = recipe.training.validate_every
        seen, best = None, False
        if self.looking is not None and (last or (every and step % every == 0)):
            with self.clock.phase("validation"):
                seen = self.looking.look(step)
            best = self.position.validated(seen.loss) and recipe.checkpoint.keep_best
            self._show(seen)
            last = self._finished()
        every = recipe.checkpoint.every
        if last or stopping or best or (every and step % every == 0):
            with self.clock.phase("checkpoint"):
                self.parts.checkpoints.save(
                    self.engine, self.position, self.stream, recipe, self._beat, needed=last or stopping
                )
        self.parts.checkpoints.poll()
        if last or stopping or seen is not None or step % recipe.training.log_every == 0:
            self._log(seen)

    def _show(self, seen: Seen) -> None:
        if self.recorder is None:
            return
        for tag, text in seen.texts:
            self.recorder.text(self.position.step, tag, text)
        for tag, picture in seen.pictures:
            self.recorder.image(self.position.step, tag, picture)

    def _went_back_after_spike(self) -> bool:
        factor = self.recipe.training.spike_factor
        if factor is None:
            return False
        loss = self.tally.step_loss()
        if not self.position.is_spike(loss, factor):
            return False
        self._go_back(loss)
        return True

    def _go_back(self, loss: float) -> None:
        """After a loss spike: return to an earlier checkpoint and leave out the data since (Chowdhery et al. 2022,
        section 5.1).
        """
        spiked = self.position
        spikes = spiked.spikes + 1
        most = self.recipe.training.max_spikes
        if spikes > most:
            raise Diverged(
                f"the loss spiked {spikes} times, the last time to {loss:.4g} (training.max_spikes is {most})"
            )
        checkpoint = self.parts.checkpoints.before(self.recipe.training.spike_checkpoints, self._beat)
        if checkpoint is None:
            raise Diverged(
                f"the loss spiked to {loss:.4g} at step {spiked.step}, and there is no checkpoint to go back to"
            )
        self._stop_reading()
        self.position = restore(self.engine, self.stream, self.recipe, checkpoint)
        self.position.spikes = spikes
        self.stream.skip(self.position.samples, spiked.samples - self.position.samples)
        self.clock.useful_seconds = self.position.useful_seconds
        self.tally.forget()
        # Saved at once, in place of the checkpoint gone back to: a restart must not meet the same data again.
        self.parts.checkpoints.save(self.engine, self.position, self.stream, self.recipe, self._beat)
        if self.recorder is not None:
            left_out = spiked.samples - self.position.samples
            fields = {"step": spiked.step, "loss": loss, "back_to": checkpoint.step, "samples_skipped": left_out}
            self.parts.events.write("spike", **fields)
            self.recorder.rewind(checkpoint.step)
            told = f"back to step {checkpoint.step}, leaving out {left_out} samples"
            print(f"loss spiked to {loss:.4f} at step {spiked.step}: {told}", flush=True)

    # -- between steps --------------------------------------------------------------------------------------------

    def _log(self, seen: Seen | None, *, say: bool = True) -> None:
        position = self.position
        figures: dict[str, Any] = self.tally.reduce(
            self.engine.parameter_norm_squared(), self.parts.inputs.counts(self.stream)
        )
        compared = self.health.interval(position.step)
        if self.recorder is None:
            return
        tokens = position.samples * self.stream.sequence_length
        figures |= {
            "learning_rate": self._rate,
            "grad_norm": self._norm,
            "tokens": tokens,
            "samples": position.samples,
            "batch_size": self._size,
            "skipped_steps": position.skipped_steps,
            "restarts": self.ledger.restarts,
            "memory_bytes": memory_bytes(),
        }
        figures |= {f"epochs/{name}": passes for name, passes in self.stream.epochs(position.samples).items()}
        figures |= self._speed() | compared
        if seen is not None:
            figures |= seen.figures
        figures = public(figures)
        report = partial(self.ledger.figures, position.step, *self._times())
        self.recorder.log(position.step, figures, report)
        self.recorder.show_events(position.step)
        newest = self.parts.checkpoints.last_verified
        line = format_line({"step": position.step, **figures}, steps=self.total_steps, checkpoint=newest)
        if say:
            print(line, flush=True)

    def _times(self) -> tuple[float, dict[str, float]]:
        return self.clock.useful_seconds, self.clock.spent()

    def _speed(self) -> dict[str, Any]:
        times = self.clock.take()
        if not times:
            return {}
        samples_per_second = self._size / times["step_seconds"]
        tokens_per_second = samples_per_second * self.stream.sequence_length
        return {
            "tokens_per_second": tokens_per_second,
            "samples_per_second": samples_per_second,
            "mfu": mfu(self._flops, tokens_per_second, device_name(), self.parts.world_size),
            **times,
        }

    def _data(self) -> Batches:
        if self._batches is None:
            here = groups.coordinates()
            self._batches = Batches(
                self.stream,
                self.batch_schedule,
                self.recipe.batch.micro_batch_size,
                torch.device("cpu") if self.parts.inputs.on_host else self.engine.device,
                samples=self.position.samples,
                index=here.data,
                count=here.data_size,
                depth=self.recipe.data.prefetch,
                arrays=self.parts.inputs.arrays(self.stream),
            )
        return self._batches

    def _stop_reading(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _close(self) -> None:
        self._stop_reading()
        if self.recorder is not None:
            self.recorder.close(partial(self.ledger.report, self.position.step, *self._times()))

    # -- what the recipe says ---------------------------------------------------------------------------------------

    def _steps_of(self, duration: int | str) -> int:
        parsed = Duration.parse(duration)
        if parsed.steps is not None:
            return parsed.steps
        assert parsed.tokens is not None
        # Counted on from the samples consumed: before a resume the batch may have had another size.
        ahead = self.batch_schedule.step_of_tokens(parsed.tokens)
        here = self.batch_schedule.step_of_tokens(self.position.samples * self.stream.sequence_length)
        return self.position.step + ahead - here

    def _learning_rates(self) -> Schedule:
        optimizer = self.recipe.optimizer
        length = self.stream.sequence_length
        return Schedule(
            optimizer.schedule,
            optimizer.lr,
            warmup=Duration.parse(optimizer.warmup),
            decay=None if optimizer.decay is None else Duration.parse(optimizer.decay),
            total=Duration.parse(self.recipe.training.steps),
            min_lr_ratio=optimizer.min_lr_ratio,
            tokens_at=lambda steps: self.batch_schedule.start(steps) * length,
        )

    def _seed_dropout(self) -> None:
        """Dropout's masks are a function of (seed, step, rank's place): nothing about them needs saving."""
        model = self.recipe.model
        if max(getattr(model, name, 0.0) for name in ("dropout", "patch_dropout")) > 0:
            here = groups.coordinates()
            text = f"{self.recipe.run.seed}:dropout:{self.position.step}:{here.data}:{here.pipeline}"
            seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "little")
            megatron_bridge.seed_dropout(seed, here.tensor)
            # Where a batch is coupled, micro-batches are seeded one by one, the same for any number of ranks.
            text = f"{self.recipe.run.seed}:dropout:{self.position.step}"
            self.engine.dropout_seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "little")

    def _write_texts(self) -> None:
        assert self.recorder is not None
        family, model, world = self.parts.family, self.recipe.model, self.parts.world_size
        peak = peak_flops(device_name())
        self.recorder.text(self.position.step, "recipe", f"```yaml\n{to_yaml(self.recipe)}\n```")
        flops, parameters = family.flops_per_token(model), family.parameter_count(model)
        note = flops_note(family.flops_formula, flops, peak, world, parameters)
        self.recorder.text(self.position.step, "mfu", note)
