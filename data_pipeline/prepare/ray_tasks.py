"""Makes a phase's calls as Ray tasks, one core each, on the cluster that this process is connected to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_pipeline.errors import EnvironmentFailure

_RETRIES = 3


class RayTasks:
    """workers: tasks at once; 0 takes every core of the cluster. Ray must have been initialised.

    A task whose worker dies is made again a few times, anywhere. Files are the only thing that tasks share: the output
    folder and the sources must be seen by every node under the same path.
    """

    def __init__(self, workers: int = 0) -> None:
        import ray

        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.threads = 1  # one core is what a task has

    def execute(self, calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> Iterator[int]:
        import ray

        call = ray.remote(num_cpus=1, max_retries=_RETRIES)(_call)
        waiting = iter(enumerate(calls))
        running: dict[Any, int] = {}

        def start_next() -> None:
            for number, (function, arguments) in waiting:
                running[call.remote(function, arguments)] = number
                return

        for _ in range(self.workers):
            start_next()
        try:
            while running:
                finished, _ = ray.wait(list(running), num_returns=1)
                number = running.pop(finished[0])
                _result(finished[0])
                start_next()
                yield number
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _call(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    function(*arguments)


def _result(reference: Any) -> None:
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, Exception) else error) from None
    except ray.exceptions.RayError as error:
        first = " ".join(str(error).split())[:200]
        raise EnvironmentFailure(
            f"a worker of prepare died {_RETRIES + 1} times, out of memory perhaps ({first}); fewer workers "
            "(--prepare.workers) or a smaller max_document_bytes need less; what is finished is kept"
        ) from error
