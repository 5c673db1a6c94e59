"""One map over independent tasks; the only place that knows joblib.

Where the tasks run is the user's choice, made outside with :func:`joblib.parallel_config`: in this
process (the default), in processes or threads of this machine, on a Dask cluster, or with Ray.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

import torch
from joblib import Parallel, delayed

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_independent(
    function: Callable[[Task], Result], tasks: Iterable[Task], threads: int = 1
) -> list[Result]:
    """Call a function on every task, and return the results in the order of the tasks.

    The same tasks give the same bits wherever they run, provided that the function draws its
    randomness from its task alone: a task carries its own seed, and torch uses the same number of
    threads in all of them, since the order of a sum depends on it.

    Parameters
    ----------
    function
        Must be picklable where the tasks leave this process; joblib also sends lambdas and
        functions defined in a script.
    threads
        Threads of torch inside each task, put back afterwards.

    Examples
    --------
    >>> map_independent(lambda task: task**2, [3, 1, 2])
    [9, 1, 4]

    On two processes of this machine, or on a cluster that a ``dask.distributed.Client`` is
    connected to::

        with joblib.parallel_config(backend="loky", n_jobs=2):
            map_independent(function, tasks)
        with joblib.parallel_config(backend="dask"):
            map_independent(function, tasks)
    """
    if threads < 1:
        message = f"threads is {threads}, expected at least 1: each task runs on that many"
        raise ValueError(message)
    call = delayed(_WithThreads(function, threads))
    results: list[Any] = list(Parallel()(call(task) for task in tasks))
    return results


@final
@dataclass(frozen=True)
class _WithThreads(Generic[Task, Result]):
    """A function that runs on a fixed number of torch's threads."""

    function: Callable[[Task], Result]
    threads: int

    def __call__(self, task: Task) -> Result:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return self.function(task)
        finally:
            torch.set_num_threads(before)
