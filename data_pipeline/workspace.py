"""The output folder while prepare works in it: one run at a time, nothing half-written where others look."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.errors import BadConfig, EnvironmentFailure

_WORK = ".prepare"
#: Files that prepare writes beside the shard sets; the last one last.
OUTPUT_FILES = (
    "tokenizer.model",
    "merges.txt",
    "merges.txt.gz",
    "quality-filter.npz",
    "report.html",
    "report.json",
    "mix.yaml",
)


def check_output(output: Path, names: Sequence[str], *, overwrite: bool, given: Sequence[str]) -> None:
    """Refuses to replace a finished output unasked, and ever to replace what prepare has not made.

    names: of the corpora; given: the user's own files that prepare copies, which may lie in the output.
    """
    if output.exists() and not output.is_dir():
        raise BadConfig(f"{output} is a file: name a folder for the shards")
    if (output / "mix.yaml").exists() and not overwrite:
        _remove_leftovers(output)
        raise BadConfig(f"{output} holds a prepared mix already: use it, choose another output, or set overwrite: true")
    if not any((output / name).exists() for name in ("mix.yaml", _WORK)):
        own = [os.path.realpath(path) for path in given]
        for name in OUTPUT_FILES:
            path = output / name
            if path.exists() and os.path.realpath(path) not in own:
                raise BadConfig(f"{path} exists and is not of an earlier prepare: choose another output")
    for corpus in names:
        for folder in (output / corpus, output / f"{corpus}-validation"):
            if folder.exists() and not (folder / "manifest.json").exists():
                raise BadConfig(f"{folder} exists and is no shard set: choose another output")


def _remove_leftovers(output: Path) -> None:
    """The work folder of a run that was killed when all was in its place, unless another run works in it now."""
    with open(output / ".prepare.lock", "w") as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(output / _WORK, ignore_errors=True)


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """A folder inside the output, on its file system, for one run at a time.

    What an interrupted run has finished stays in it for the next one; the caller removes it after a success.
    """
    output.mkdir(parents=True, exist_ok=True)
    with open(output / ".prepare.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadConfig(f"another prepare is writing to {output}") from error
        work = output / _WORK
        work.mkdir(exist_ok=True)
        try:
            yield work
        finally:
            if work.exists() and not any(work.iterdir()):
                work.rmdir()


@contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """Turns errors of the file system into an EnvironmentFailure of one line."""
    try:
        yield
    except OSError as error:
        # numpy says only how many items it could not write.
        short = error.errno is None and " requested and " in str(error)
        if short or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message = (
                f"no space left for {output} ({error.strerror or error}): make room and run the same command again, "
                f"it goes on from what is finished (in {output / _WORK}, which can be removed)"
            )
            raise EnvironmentFailure(message) from error
        raise EnvironmentFailure(f"{output} cannot be prepared: {error}") from error
