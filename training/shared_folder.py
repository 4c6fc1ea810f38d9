"""A run's folder must be the same for all ranks: they meet in it whenever a checkpoint is written."""

from __future__ import annotations

import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from training.errors import RecipeError

MARK = ".seen-by-all-"
PATIENCE_SECONDS = 10.0
"""For a mark to show up on a node whose view of the file system is an old one."""


def check_shared(folder: Path) -> None:
    """Raise RecipeError on a rank that does not see what rank 0 has just put into `folder`. Collective.

    A folder that is merely called the same is thereby refused, too: a file's name tells, which no node can have cached.
    """
    if dist.get_world_size() == 1:
        return
    mark: list[str | None] = [_leave_mark(folder) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(mark, src=0)
    sees = mark[0] is None or _sees(folder / mark[0])
    dist.barrier()  # before the mark goes again, and before a rank that sees nothing leaves
    if dist.get_rank() == 0 and mark[0] is not None:
        with suppress(OSError):
            (folder / mark[0]).unlink()
    if not sees:
        raise unseen(folder, dist.get_rank())


def unseen(folder: Path, rank: int) -> RecipeError:
    """What a rank says that looks in vain for the run's folder."""
    return RecipeError(
        f"rank {rank} on {socket.gethostname()} does not see the run's folder {folder} as rank 0 does: run.directory "
        "must be on a file system that all nodes share and mount at the same path, such as NFS or Lustre"
    )


def _leave_mark(folder: Path) -> str | None:
    """The name of a new file in `folder`; None where the disk takes none, which is for those to tell who write."""
    try:
        for old in folder.glob(f"{MARK}*"):  # of a start that was killed just here
            old.unlink(missing_ok=True)
        name = f"{MARK}{secrets.token_hex(8)}"
        (folder / name).touch()
    except OSError:
        return None
    return name


def _sees(path: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)  # other machines' writes cannot be waited for
    return True
