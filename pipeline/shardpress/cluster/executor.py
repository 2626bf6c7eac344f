"""Run tasks on any executor of `concurrent.futures`, in the order that Dask's local scheduler chooses.

A task is a function and one argument. Both must be picklable unless the executor uses threads of this process. The same
tasks can therefore run in threads, in processes and on the workers of a cluster. Graphs are plain dictionaries, because
`dask.delayed` costs eight times as much per task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from shardpress.base import signals
from shardpress.cluster.stats import process_name
from shardpress.cluster.threads import stop

_FAN_IN = 16
"""Number of results to merge at once. A larger number means fewer tasks, but more results in memory."""
_MAX_BATCH = 16
"""Largest batch size, unless the threads exceed the capacity of the scheduler."""
_MIN_BATCHES_PER_THREAD = 16
"""Smallest number of batches per thread, so that few threads are idle at the end."""
_LARGE_GRAPH = 40_000
"""Number of tasks above which batches keep the scheduler from becoming the bottleneck."""
_SCHEDULER_CAPACITY = 600
"""Number of threads that one scheduler can keep busy with tasks of about one second (see docs/performance.md)."""
_LAST_NUMBER = 10**12 - 1
"""Largest number in the name of a task. All names have the same length, so that they sort like their numbers."""

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")
_Node = tuple[Any, ...]  # a task, or a function that merges and the names of its arguments
_Graph = dict[str, _Node]


def compute(
    tasks: Sequence[tuple[Callable[[_Argument], _Result], _Argument]],
    executor: Executor,
    n_at_once: int,
    done: Callable[[_Result], object] | None = None,
    n_small: int = 1,
) -> list[_Result]:
    """Run tasks and return their results in the order of the tasks. The first error stops the other tasks.

    No task is running when this function returns. If it raises an error, no task is running in this process, and the
    executor can no longer be used.

    Parameters
    ----------
    executor : Executor
        Its attributes are used if it has them: each result is added to ``stats`` (a `WorkerStats`), and small tasks are
        sent in batches to ``n_remote_threads`` (see `batch_size`).
    n_at_once : int
        Maximum number of submitted tasks: one more than the threads, which are busy while a result is handled.
    done : callable, optional
        Function that is called in this thread with each result as soon as it is available.
    n_small : int
        Number of tasks that together take about one second. 0 if each task takes longer.
    """
    graph = _graph_of(tasks)
    return list(_run(graph, list(graph), executor, n_at_once, done, n_small))


def reduce(
    tasks: Sequence[tuple[Callable[[_Argument], _Result], _Argument]],
    merge: Callable[[Sequence[_Result]], _Result],
    executor: Executor,
    n_at_once: int,
    done: Callable[[_Result], object] | None = None,
    n_small: int = 1,
) -> _Result:
    """Run tasks and merge their results in order. Results are merged in groups, so that few are in memory at once.

    `merge` must also accept its own results. For the other arguments, see `compute`. Merged results are not passed to
    `done`, and merges are not counted in `n_small`.
    """
    graph = _graph_of(tasks)
    last_key = _add_merges(graph, merge)
    (result,) = _run(graph, [last_key], executor, n_at_once, done, n_small)
    return result


def batch_size(n_tasks: int, n_remote_threads: int, n_small: int = 1) -> int:
    """Return the number of tasks to send to a remote thread at once. docs/performance.md contains measurements.

    Each task costs about 10 ms of processor time on the driver, the scheduler and the worker together. Batches spread
    this cost over several small tasks. In a very large graph, they also keep the scheduler from becoming the
    bottleneck. However, the results of a batch arrive together, and large batches leave threads idle at the end.
    """
    if n_remote_threads == 0:
        return 1

    useful = max(n_small, n_tasks // _LARGE_GRAPH)
    fair = n_tasks // (_MIN_BATCHES_PER_THREAD * n_remote_threads)
    batch = min(_MAX_BATCH, useful, fair)

    # If there are more threads than the scheduler can keep busy, it limits the throughput. Larger batches then cost
    # less, although a few threads are idle at the end.
    if n_small > 0:
        needed = math.ceil(n_remote_threads / _SCHEDULER_CAPACITY)
        tasks_per_thread = math.ceil(n_tasks / n_remote_threads)
        batch = max(batch, min(needed, tasks_per_thread))

    return max(1, batch)


@dataclass(frozen=True)
class _Batch:
    """Batch of tasks as one callable, which hides the tasks from distributed: it would search a list for Dask tasks."""

    function: Callable[[object], object]  # Dask's function that runs the tasks
    tasks: object  # the tasks in Dask's form
    nodes: tuple[_Node, ...]  # the same tasks as nodes of our graph

    def __call__(self) -> object:
        return self.function(self.tasks)

    def __str__(self) -> str:
        return "; ".join(_node_text(node) for node in self.nodes)


def _node_text(node: _Node) -> str:
    if _is_merge(node):
        return "a merge of results"
    (task,) = node
    return str(task.args[0])


def _is_merge(node: _Node) -> bool:
    return len(node) > 1


def _graph_of(tasks: Sequence[tuple[Callable[[_Argument], object], _Argument]]) -> _Graph:
    # A partial hides the argument from Dask. Otherwise Dask would search it (a list of shards, for example) for keys of
    # other tasks.
    keys = _task_names(0, len(tasks))
    return {key: (partial(function, argument),) for key, (function, argument) in zip(keys, tasks, strict=True)}


def _add_merges(graph: _Graph, merge: Callable[[Sequence[_Result]], _Result]) -> str:
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
    """Return names for `n` tasks. The names make Dask start the tasks in order, so that files are read sequentially.

    Among equivalent tasks, Dask first starts the task whose name sorts last.
    """
    return [f"task-{_LAST_NUMBER - number}" for number in range(first, first + n)]


def _run(
    graph: _Graph,
    keys: list[str],
    executor: Executor,
    n_at_once: int,
    done: Callable[[_Result], object] | None,
    n_small: int,
) -> Sequence[_Result]:
    run = _GraphRun(graph, executor, done)
    n_remote_threads = getattr(executor, "n_remote_threads", 0)
    # Pass all options, even the cache, because environment variables DASK_... set options that are omitted. Signals are
    # deferred, because the pool would lose track of a thread if an exception were raised while the thread starts.
    with signals.deferred():
        try:
            if len(graph) <= 1 and not n_remote_threads:
                return [run.result_of(key) for key in graph]
            from dask.local import get_async  # takes a tenth of a second to load, which small runs do without

            results: Sequence[_Result] = get_async(
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
            return results
        except BaseException:
            # Dask does not wait for running tasks. They must end here, because the caller unlocks the output directory,
            # and no task is allowed to write to it after that.
            stop(executor)
            run.wait()
            raise


class _GraphRun:
    """State of one run of a graph: the unfinished batches, and the handling of results."""

    def __init__(self, graph: _Graph, executor: Executor, done: Callable[[Any], object] | None) -> None:
        self._graph = graph
        self._executor = executor
        self._stats = getattr(executor, "stats", None)
        self._done = done
        self._pending: set[Future[object]] = set()

    def submit(self, function: Callable[[object], object], tasks: Sequence[Sequence[str]]) -> Future[object]:
        nodes = tuple(self._graph[task[0]] for task in tasks)
        future = self._executor.submit(_Batch(function, tasks, nodes))
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def result_of(self, key: str) -> Any:
        """Return the result of a task, which a thread of this process runs."""
        (task,) = self._graph[key]
        result = self._executor.submit(task).result()
        self.handle_result(key, result, None, None, process_name())
        return result

    def handle_result(self, key: str, result: object, _graph: object, _state: object, process: str) -> None:
        """Count a result and call `done`. Dask calls this method in the thread that runs the graph."""
        if not _is_merge(self._graph[key]):
            if self._stats is not None:
                self._stats.add(process, result)
            if self._done is not None:
                self._done(result)
        signals.check()

    def wait(self) -> None:
        wait(set(self._pending))
