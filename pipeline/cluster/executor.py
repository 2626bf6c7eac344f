"""Run tasks on any executor of `concurrent.futures`, in the order that Dask's local scheduler chooses.

A task is a function and its one argument. Both must be picklable unless the executor uses threads of this process, so
that threads, processes and the workers of a cluster can run the same tasks. Graphs are built as plain dictionaries:
`dask.delayed` costs eight times as much per task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

from dask.local import get_async

from pipeline import signals
from pipeline.cluster.stats import process_name
from pipeline.cluster.threads import stop

__all__ = ["batch_size", "compute", "reduce"]

_FAN_IN = 16
"""Results that are merged at once. A smaller number means more tasks, a larger one more results in memory."""
_MAX_BATCH = 16
"""Largest batch, except above the capacity of the scheduler."""
_MIN_BATCHES_PER_THREAD = 16
"""Batches that each thread should get, so that few threads are idle at the end."""
_LARGE_GRAPH = 40_000
"""Number of tasks above which batches keep the scheduler from becoming the bottleneck."""
_SCHEDULER_CAPACITY = 600
"""Threads that one scheduler can keep busy with tasks of about a second (docs/scaling.md)."""
_LAST_NUMBER = 10**12 - 1
"""Largest number in a task's name. All names have the same length, so they sort like their numbers."""

_Task = tuple[Callable[[Any], Any], Any]
_Callback = Callable[[Any], object]
_Graph = dict[str, tuple[Any, ...]]


def compute(
    tasks: Sequence[_Task], executor: Executor, n_at_once: int, done: _Callback | None = None, n_small: int = 1
) -> list[Any]:
    """Run tasks and return their results in the order of the tasks. The first error stops the other tasks.

    No task is running when this function returns. When it raises, no task is running in this process, and the executor
    can no longer be used.

    Parameters
    ----------
    tasks : sequence of (callable, object)
        Functions and their arguments.
    executor : Executor
        An executor of threads, processes or a cluster. If it has an attribute ``stats`` (a `WorkerStats`), each result
        is added to it. If it has an attribute ``n_remote_threads`` (the number of threads in other processes), small
        tasks are sent in batches: see `batch_size`.
    n_at_once : int
        Maximum number of submitted tasks. For threads and processes, one more than their number keeps them busy while
        this process handles a result.
    done : callable, optional
        Called with each result as soon as it is available, in the calling thread. An error that it raises stops the
        other tasks.
    n_small : int
        Number of these tasks that together are about one second of work; 0 if each of them takes longer.

    Returns
    -------
    list
        One result per task.
    """
    graph = _graph_of(tasks)
    return list(_run(graph, list(graph), executor, n_at_once, done, n_small))


def reduce(
    tasks: Sequence[_Task],
    merge: Callable[[Sequence[Any]], Any],
    executor: Executor,
    n_at_once: int,
    done: _Callback | None = None,
    n_small: int = 1,
) -> Any:
    """Run tasks and merge their results in order, in groups, so that few results are in memory at once.

    Parameters
    ----------
    tasks, executor, n_at_once, done, n_small
        Arguments of `compute`. Merges are neither passed to `done` nor counted in `n_small`.
    merge : callable
        Merges a sequence of consecutive results, each of a task or of an earlier merge.

    Returns
    -------
    object
        The merged result of all tasks.
    """
    graph = _graph_of(tasks)
    last_key = _add_merges(graph, merge)
    (result,) = _run(graph, [last_key], executor, n_at_once, done, n_small)
    return result


def batch_size(n_tasks: int, n_remote_threads: int, n_small: int = 1, capacity: int = _SCHEDULER_CAPACITY) -> int:
    """Return how many tasks to send to a remote thread at once.

    Each task costs about 10 ms of processor time of the driver, the scheduler and the worker together. Batches spread
    this cost over several small tasks, and keep the scheduler from becoming the bottleneck of a very large graph. But
    the results of a batch arrive, and are committed, together, and large batches leave threads idle at the end. Hence
    the limits, which docs/scaling.md supports with measurements.

    Parameters
    ----------
    n_tasks : int
        Number of tasks in the graph.
    n_remote_threads : int
        Number of threads in other processes; 0 if the tasks run in this process.
    n_small : int
        Number of these tasks that together are about one second of work; 0 if each of them takes longer.
    capacity : int
        Number of threads that one scheduler can keep busy with tasks of about a second.

    Returns
    -------
    int
        Number of tasks, at least 1.
    """
    if n_remote_threads == 0:
        return 1

    useful = max(n_small, n_tasks // _LARGE_GRAPH)
    fair = n_tasks // (_MIN_BATCHES_PER_THREAD * n_remote_threads)
    batch = min(_MAX_BATCH, useful, fair)

    # Above its capacity the scheduler limits the throughput. A few idle threads at the end cost less.
    if n_small > 0:
        needed = math.ceil(n_remote_threads / capacity)
        tasks_per_thread = math.ceil(n_tasks / n_remote_threads)
        batch = max(batch, min(needed, tasks_per_thread))

    return max(1, batch)


@dataclass(frozen=True)
class _Batch:
    """A batch of tasks as one callable.

    distributed searches lists for Dask's tasks and would run the tasks that it finds, so an object hides them. Its text
    names the arguments of the tasks, for error messages.
    """

    function: Callable[[Any], Any]  # function of Dask that runs the tasks
    tasks: Any  # the tasks in Dask's form
    nodes: tuple[tuple[Any, ...], ...]  # the same tasks in our graph

    def __call__(self) -> Any:
        return self.function(self.tasks)

    def __str__(self) -> str:
        return "; ".join(_node_text(node) for node in self.nodes)


def _node_text(node: tuple[Any, ...]) -> str:
    if _is_merge(node):
        return "a merge of results"
    (task,) = node
    return str(task.args[0])


def _is_merge(node: tuple[Any, ...]) -> bool:
    """Return whether a node of the graph merges results; otherwise it is a task."""
    return len(node) > 1


def _graph_of(tasks: Sequence[_Task]) -> _Graph:
    """Return a Dask graph of independent tasks."""
    # A partial hides the argument from Dask, which would search it (say, a list of shards) for keys of other tasks.
    keys = _task_names(0, len(tasks))
    return {key: (partial(function, argument),) for key, (function, argument) in zip(keys, tasks, strict=True)}


def _add_merges(graph: _Graph, merge: Callable[[Sequence[Any]], Any]) -> str:
    """Add a tree of merges to a graph of tasks, and return the key of its root."""
    keys = list(graph)
    while len(keys) > 1:
        groups = [keys[start : start + _FAN_IN] for start in range(0, len(keys), _FAN_IN)]
        keys = _task_names(len(graph), len(groups))
        for key, group in zip(keys, groups, strict=True):
            graph[key] = (merge, group)
    (root,) = keys
    return root


def _task_names(first: int, n: int) -> list[str]:
    """Return names for tasks, so that they start in this order and files are read from front to back.

    Among equivalent tasks Dask starts the one whose name sorts last.
    """
    return [f"task-{_LAST_NUMBER - number}" for number in range(first, first + n)]


def _run(
    graph: _Graph,
    keys: list[str],
    executor: Executor,
    n_at_once: int,
    done: _Callback | None,
    n_small: int,
) -> Any:
    """Run a graph and return the results of `keys`."""
    run = _GraphRun(graph, executor, done)
    n_remote_threads = getattr(executor, "n_remote_threads", 0)
    # All options are given, even the cache, because environment variables DASK_... would set the omitted ones. Signals
    # are deferred: an exception that is raised while a thread starts would make the pool lose track of that thread.
    with signals.deferred():
        try:
            return get_async(
                run.submit,
                n_at_once,
                graph,
                keys,
                cache={},
                get_id=process_name,
                chunksize=batch_size(len(graph), n_remote_threads, n_small),
                rerun_exceptions_locally=False,
                callbacks=[(None, None, None, run.handle_result, None)],
            )
        except BaseException:
            # Dask does not wait, but the caller unlocks the output directory, and nothing may write there afterwards.
            stop(executor)
            run.wait()
            raise


class _GraphRun:
    """One run of a graph, with its unfinished batches and the functions that handle its results.

    Parameters
    ----------
    graph : dict
        Tasks and merges by their names.
    executor : Executor
        Executor that runs them.
    done : callable or None
        Called with the result of each task, but not of merges.
    """

    def __init__(self, graph: _Graph, executor: Executor, done: _Callback | None) -> None:
        self._graph = graph
        self._executor = executor
        self._stats = getattr(executor, "stats", None)
        self._done = done
        self._pending: set[Future[Any]] = set()

    def submit(self, function: Callable[[Any], Any], tasks: Any) -> Future[Any]:
        """Submit a batch, as Dask passes it."""
        nodes = tuple(self._graph[task[0]] for task in tasks)
        future = self._executor.submit(_Batch(function, tasks, nodes))
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def handle_result(self, key: str, result: Any, _graph: object, _state: object, process: str) -> None:
        """Count a result and call `done`; Dask calls this in the thread that runs the graph."""
        if not _is_merge(self._graph[key]):
            if self._stats is not None:
                self._stats.add(process, result)
            if self._done is not None:
                self._done(result)
        signals.check()

    def wait(self) -> None:
        """Wait until no batch is running."""
        wait(set(self._pending))
