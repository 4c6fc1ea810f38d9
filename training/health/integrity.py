"""Numbers that are wrong without an error: replicas that differ, masters that differ from their weights, and steps that
do not come out the same twice (Dixit et al. 2021, "Silent Data Corruptions at Scale").
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from training.engine import Engine
from training.errors import TrainingError
from training.health.fingerprint import fingerprint, fingerprint_of_all

Figures = list[dict[str, torch.Tensor]]


class Corrupted(TrainingError):
    """A rank has computed or kept something wrong; the weights of the last checkpoint are the way back."""


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    ranks: tuple[int, ...]
    """Who may be at fault; several where it cannot be told who among them."""
    what: str


def odd_ones(values: Sequence[int], kinds: Sequence[Hashable]) -> tuple[list[int], bool]:
    """Ranks whose value is not that of the strict majority among ranks of equal kind, and whether there always was one:
    without one, all ranks of that kind are returned. Pure.
    """
    of_kind: dict[Hashable, list[int]] = defaultdict(list)
    for rank, kind in enumerate(kinds):
        of_kind[kind].append(rank)
    odd, certain = [], True
    for ranks in of_kind.values():
        value, count = Counter(values[rank] for rank in ranks).most_common(1)[0]
        majority = 2 * count > len(ranks)
        differ = [rank for rank in ranks if values[rank] != value]
        odd += differ if majority else ranks
        certain = certain and majority
    return sorted(odd), certain


class Integrity:
    """The two checks; both happen after a step's gradients and before its update, and are collective.

    Then weights are those from which the gradients came: under ZeRO the update overwrites a rank's weights with the
    masters' owners' values, and with them whatever had become of them in between.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        here = engine.coordinates
        self.kinds = [tuple(place) for place in _gather([here.tensor, here.pipeline], engine.device)]
        """Ranks that hold the same weights have the same."""
        self._sums: list[torch.Tensor] = []

    # -- replicas ---------------------------------------------------------------------------------------------------

    def replicas(self) -> Finding | None:
        """Whether data-parallel replicas hold equal weights, and ZeRO's masters are what the weights were made from."""
        before = self._weights()
        found = _gather([int(before), int(self._masters_differ())], self._engine.device)
        hashes = [row[0] for row in found]
        bad_masters = tuple(rank for rank, row in enumerate(found) if row[1])
        odd, certain = odd_ones(hashes, self.kinds)
        if odd and not certain and self._engine.inputs.parallel.zero_stage in (1, 2):
            # The masters can tell: each element has one owner, from whom all get it anew.
            self._engine.publish()
            changed = _gather([int(self._weights() != before)], self._engine.device)
            odd = [rank for rank, row in enumerate(changed) if row[0]] or odd
        if odd:
            return Finding(tuple(odd), "weights differ from those of the other replicas")
        if bad_masters:
            return Finding(bad_masters, "weights differ from the masters that they were made from")
        return None

    def _weights(self) -> torch.Tensor:
        return fingerprint_of_all((parameter for parameter, _ in self._engine.inputs.shards), self._engine.device)

    def _masters_differ(self) -> bool:
        """Whether a master of this rank, rounded, is not the weight that forward has used."""
        inputs, device = self._engine.inputs, self._engine.device
        if inputs.parallel.zero_stage not in (1, 2):
            return False
        parameter_of = {id(shard): parameter for parameter, shard in inputs.shards}
        differ = torch.zeros((), dtype=torch.bool, device=device)
        for fragment in self._engine.fragments():
            weight = parameter_of[id(fragment.shard)].detach().view(-1)
            weight = weight[fragment.start : fragment.start + fragment.weight.numel()]
            master = fragment.weight.detach().to(weight)
            differ |= fingerprint(master) != fingerprint(weight)
        return bool(differ)

    # -- the same step twice ------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self, *, keep: bool) -> Iterator[None]:
        """Take note of all gradients of what is run inside; unless `keep`, they reach the accumulators as zeros."""
        total = torch.zeros((), dtype=torch.int64, device=self._engine.device)

        def note(number: int) -> Callable[[torch.Tensor], torch.Tensor | None]:
            def hook(gradient: torch.Tensor) -> torch.Tensor | None:
                # Odd, and another for each parameter; the order in which gradients come does not matter.
                total.add_(fingerprint(gradient) * (2 * number + 1))
                return None if keep else torch.zeros_like(gradient)

            return hook

        learned = [parameter for parameter, _ in self._engine.inputs.shards if parameter.requires_grad]
        hooks = [parameter.register_hook(note(number)) for number, parameter in enumerate(learned)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._sums.append(total)

    def recomputed(self, first: Figures, again: Callable[[], Figures]) -> Finding | None:
        """Run a step, which was run under `watching`, once more, and compare losses and gradients bit by bit."""
        buffers = [(buffer, buffer.clone()) for chunk in self._engine.chunks for buffer in chunk.buffers()]
        with self.watching(keep=False):
            second = again()
        with torch.no_grad():
            for buffer, value in buffers:  # running means must not see the batch twice
                buffer.copy_(value)
        one, two = self._sums[-2:]
        self._sums.clear()
        one, two = one + _of_figures(first, one), two + _of_figures(second, two)
        found = _gather([int(one != two)], self._engine.device)
        bad = tuple(rank for rank, row in enumerate(found) if row[0])
        return Finding(bad, "a step's losses and gradients did not come out the same twice") if bad else None


def _of_figures(figures: Figures, like: torch.Tensor) -> torch.Tensor:
    return fingerprint_of_all((value for one in figures for value in one.values()), like.device)


def _gather(values: list[int], device: torch.device) -> list[list[int]]:
    """Every rank's whole numbers, in the order of ranks. Collective."""
    own = torch.tensor(values, dtype=torch.int64, device=device)
    everyone: list[Any] = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    return torch.stack(everyone).tolist()  # type: ignore[no-any-return]
