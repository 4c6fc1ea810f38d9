"""Which checkpoint a run continues from: the newest that verifies, in its folder or in its second home."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from training.checkpoint import Checkpoint, DamagedCheckpoint, candidates, set_aside, step_of
from training.checkpoint.remote import StorageUnreachable
from training.errors import RecipeError
from training.second_home import Note, SecondHome


class Finding:
    """Collective over all ranks: rank 0's view of the folders counts, and each verifies its share of the files."""

    def __init__(self, directory: Path, away: SecondHome | None, note: Note) -> None:
        self.directory = directory
        self._away = away
        self._note = note

    def newest(self) -> Checkpoint | None:
        """The newest of both places. Damaged ones here are set aside, those there passed over, each with an event.

        Raises StorageUnreachable where nothing is here and nobody knows what is there: the run would begin anew.
        """
        passed_over: set[str] = set()
        while True:
            there = self._newest_there(passed_over)
            here = self.agree_on(0)
            if self._away is not None and there is not None and (here is None or _step(there) > _step(here.name)):
                found = self._verified(partial(self._away.checkpoint, there))
                if isinstance(found, Checkpoint):
                    return found
                passed_over.add(there)
                url = self._away.folder.path(there)
                self._note("checkpoint_damaged", checkpoint=url, reason=found)
                self._say(f"{url} is passed over: {found}")
            elif here is not None:
                found = self._verified(partial(Checkpoint, here))
                if isinstance(found, Checkpoint):
                    if self._away is not None:
                        self._offer_again(self._away, here)
                    return found
                self.put_away(here, found, "damaged")
            else:
                return None

    def newest_here(self) -> Checkpoint | None:
        """The newest in the run's folder; damaged ones are set aside."""
        while (path := self.agree_on(0)) is not None:
            found = self._verified(partial(Checkpoint, path))
            if isinstance(found, Checkpoint):
                return found
            self.put_away(path, found, "damaged")
        return None

    def newest_left_alone(self) -> Checkpoint | None:
        """The newest in the run's folder that verifies; damaged ones are passed over, and nothing is changed."""
        number = 0
        while (path := self.agree_on(number)) is not None:
            found = self._verified(partial(Checkpoint, path))
            if isinstance(found, Checkpoint):
                return found
            self._say(f"{path.name} is passed over: {found}")
            number += 1
        return None

    def agree_on(self, number: int) -> Path | None:
        """The checkpoint in the run's folder with so many newer ones."""
        found = candidates(self.directory) if dist.get_rank() == 0 else []
        choice = _from_rank_0(str(found[number]) if number < len(found) else None)
        return None if choice is None else Path(choice)

    def put_away(self, path: Path, reason: str, label: str) -> None:
        """Rename a checkpoint so that nothing continues from it, and tell."""
        if dist.get_rank() == 0:
            set_aside(path, reason, label)
        self._note(f"checkpoint_{label}", checkpoint=path.name, reason=reason)
        self._say(f"{path.name} is set aside: {reason}")
        dist.barrier()

    def _newest_there(self, passed_over: set[str]) -> str | None:
        if self._away is None:
            return None
        name: str | None = None
        trouble: Exception | None = None
        if dist.get_rank() == 0:
            try:
                name = self._away.newest(passed_over)
            except (StorageUnreachable, RecipeError) as error:
                trouble = error
        trouble = _from_rank_0(trouble)
        if trouble is not None:
            if isinstance(trouble, RecipeError) or self.agree_on(0) is None:
                raise trouble
            self._note("remote_unreachable", remote=self._away.folder.location, reason=str(trouble))
            self._say(f"{trouble}; going on with what is in {self.directory}")
        found: str | None = _from_rank_0(name)
        return found

    def _offer_again(self, away: SecondHome, here: Path) -> None:
        """What the run continues from may have missed its upload."""
        missing = False
        if dist.get_rank() == 0:
            try:
                missing = away.lacks(here)
            except StorageUnreachable:
                missing = True
        if _from_rank_0(missing):
            away.offer(_step(here.name))

    def _verified(self, opened: Callable[[], Checkpoint]) -> Checkpoint | str:
        """The checkpoint, or the first damage that any rank found in its share of the files.

        Raises StorageUnreachable on all ranks if one of them could not look.
        """
        checkpoint: Checkpoint | None = None
        damage: str | None = None
        trouble: str | None = None
        try:
            checkpoint = opened()
            checkpoint.verify(dist.get_rank(), dist.get_world_size())
        except DamagedCheckpoint as error:
            damage = str(error)
        except StorageUnreachable as error:
            trouble = str(error)
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (damage, trouble))
        for _, one in everyone:
            if one is not None:
                raise StorageUnreachable(one)
        first = next((one for one, _ in everyone if one is not None), None)
        if first is not None:
            return str(first)
        assert checkpoint is not None
        return checkpoint

    def _say(self, text: str) -> None:
        if dist.get_rank() == 0:
            print(f"trestle: {text}", flush=True)


def _from_rank_0(value: Any) -> Any:
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _step(name: str) -> int:
    return step_of(name) or 0
