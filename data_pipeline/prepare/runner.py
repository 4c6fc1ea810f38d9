"""Runs a phase's tasks, each once: what an earlier, interrupted run has finished is not done again.

A task is a module-level function that writes its files into an empty folder of its own. The folder's name is a hash of
the function and its arguments, and it appears by a rename when the function has returned: where it is, it is whole. A
task names the outputs of others by their folders, so that whatever a change in the recipe or in a source touches gets
another name, and nothing else does. The number of workers is no argument, and so has no influence on any byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import data_pipeline
from data_pipeline.errors import EnvironmentFailure
from data_pipeline.prepare.progress import Progress
from data_pipeline.shards import sync_path

TaskFunction = Callable[..., None]
_TEMPORARY = ".unfinished-"
#: What decides on a result beside the arguments.
_PACKAGES = (
    *("numpy", "numba", "pyarrow", "resiliparse", "fastwarc", "scikit-learn", "sentencepiece"),
    *("pillow", "opencv-python-headless", "simplejpeg"),
)


@dataclass
class Task:
    """One call of a phase's function."""

    arguments: dict[str, Any]
    """Keyword arguments, JSON-able: everything that the result depends on. Paths of other outputs as strings."""
    weight: float = 1.0
    """What it will take, in the unit of the phase (bytes, as a rule): for progress alone."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments that have no influence on the result, such as a number of threads."""


class Executor(Protocol):
    """Where the calls of a phase are made."""

    workers: int
    """Calls at once."""
    threads: int
    """Threads that one call may use when it is alone."""

    def execute(self, calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> Iterator[int]:
        """Makes the calls and yields their numbers as they end. An error of a call is raised as it was."""


class InProcess:
    """Makes the calls one after the other in this process. threads: 0 takes every core that it may use."""

    workers = 1

    def __init__(self, threads: int = 0) -> None:
        self.threads = threads or len(os.sched_getaffinity(0))

    def execute(self, calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> Iterator[int]:
        for number, (function, arguments) in enumerate(calls):
            function(*arguments)
            yield number


class Runner:
    """Maps phases over an executor, below the folder `root`, which must be seen by every worker under this path."""

    def __init__(self, root: Path, executor: Executor, progress: Progress) -> None:
        self.root, self.executor, self.progress = root.absolute(), executor, progress
        for left in self.root.glob(f"*/*{_TEMPORARY}*"):
            shutil.rmtree(left)

    @property
    def workers(self) -> int:
        """Tasks that run at once."""
        return self.executor.workers

    @property
    def threads(self) -> int:
        """Threads that a task may use."""
        return self.executor.threads

    def map(self, name: str, function: TaskFunction, tasks: Sequence[Task]) -> list[Path]:
        """The folders that `function` has filled, one a task, in their order. `name`: the phase, for people."""
        folders = [self.root / name / self._key(function, task) for task in tasks]
        (self.root / name).mkdir(exist_ok=True)
        first = {folder: number for number, folder in reversed(list(enumerate(folders)))}  # equal tasks are one
        missing = sorted(number for folder, number in first.items() if not folder.exists())
        sizes = [tasks[number].weight for number in missing]
        done = sum(task.weight for task in tasks) - sum(sizes)
        with self.progress.phase(name, sum(task.weight for task in tasks), done) as advance:
            calls = [(_fill, (function, folders[number], tasks[number])) for number in missing]
            for finished in self.executor.execute(calls):
                advance(sizes[finished])
        return folders

    def one(self, name: str, function: TaskFunction, **arguments: Any) -> Path:
        """The folder of a phase with one task."""
        return self.map(name, function, [Task(arguments)])[0]

    def _key(self, function: TaskFunction, task: Task) -> str:
        call = {
            "versions": _versions(),
            "function": f"{function.__module__}.{function.__qualname__}",
            "arguments": task.arguments,
        }
        # Relative names below the root: a run that is moved with its unfinished work goes on.
        # Names of files may be any bytes.
        text = json.dumps(call, sort_keys=True, ensure_ascii=False).replace(f"{self.root}/", "./")
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


@cache
def _versions() -> list[str]:
    """Of this room's code and of what it calls: no unfinished work of other versions is gone on with."""
    code = hashlib.sha256()
    for path in sorted(Path(data_pipeline.__path__[0]).rglob("*.py")):
        code.update(path.read_bytes())
    return [code.hexdigest(), *(f"{name} {version(name)}" for name in _PACKAGES)]


def _fill(function: TaskFunction, folder: Path, task: Task) -> None:
    temporary = folder.with_name(f"{folder.name}{_TEMPORARY}{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        function(temporary, **task.arguments, **task.options)
        for path in temporary.iterdir():
            sync_path(path)
        sync_path(temporary)
        os.rename(temporary, folder)
    except FileNotFoundError as error:
        if error.filename is None or not str(error.filename).startswith(str(folder.parents[1])):
            raise
        raise EnvironmentFailure(f"{error.filename} has gone while prepare worked with it") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
