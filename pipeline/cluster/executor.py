"""Tasks over any executor of `concurrent.futures`, handed out by Dask's own scheduler.

A task is a pair of a function and its one argument, both of which can be pickled where the executor is not of this
process: threads, processes and the workers of a cluster then do the same. Graphs are written down as Dask takes them:
one made of `dask.delayed` costs eight times as much for each task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

from dask.local import get_async

from pipeline import signals
from pipeline.cluster.stats import who
from pipeline.cluster.threads import stop

__all__ = ["compute", "n_together", "reduce"]

_FAN_IN = 16  # results that are merged at a time: fewer would be more tasks, more would be held longer
_MOST_TOGETHER, _TURNS, _MANY = 16, 16, 40_000  # tasks; of a thread; tasks in all: see `n_together`
_SERVED = 600  # threads that a scheduler keeps at work, by tasks of a second
_LAST = 10**12 - 1  # of a width that keeps the order of the names

_Task = tuple[Callable[[Any], Any], Any]
_Done = Callable[[Any], object]


def compute(
    tasks: Sequence[_Task], executor: Executor, n_at_once: int, done: _Done | None = None, n_small: int = 1
) -> list[Any]:
    """Run tasks; results in the order of the tasks. The first error stops the rest.

    When it returns, no task is at work any more; and when it raises, none in this process. After an error the executor
    serves no longer.

    Parameters
    ----------
    executor : Executor
        Of `threads`, of processes, or of a crew. If it has a `Tally` as its attribute
        ``tally``, that is told of each result and of the process that made it. If it has the number of threads that
        wait for tasks far from here as ``n_far``, small tasks go to them several at a time.
    n_at_once : int
        Tasks under way at a time: of threads and processes one more than there are, so that none of them waits for the
        driver between two.
    done : callable, optional
        Given each result as soon as it is there, in the thread that called `compute`. What it raises stops the rest.
    n_small : int
        How many of these tasks are as much work as one has as a rule: a second's. 0 where each of them is more.
    """
    graph = _graph(tasks)
    return list(_run(graph, list(graph), executor, n_at_once, done, n_small))


def reduce(
    tasks: Sequence[_Task],
    merge: Callable[[Sequence[Any]], Any],
    executor: Executor,
    n_at_once: int,
    done: _Done | None = None,
    n_small: int = 1,
) -> Any:
    """Run tasks and merge their results in order, a few at a time, so that few of them are held at once.

    As `compute`, of which `n_small` counts these tasks alone; `merge` is given results that stand in a row, and what it
    has made of others before.
    """
    graph = _graph(tasks)
    keys = list(graph)
    while len(keys) > 1:
        few = [keys[i : i + _FAN_IN] for i in range(0, len(keys), _FAN_IN)]
        keys = _keys(len(graph), len(few))
        graph.update({key: (merge, some) for key, some in zip(keys, few, strict=True)})
    (result,) = _run(graph, keys, executor, n_at_once, done, n_small)
    return result


@dataclass(frozen=True)
class _Call:
    """Tasks as one callable: distributed looks into lists, and would itself run a task of Dask's that it finds there.

    Its text is that of the tasks' arguments, where one is to be named.
    """

    function: Callable[[Any], Any]
    tasks: Any
    nodes: tuple[tuple[Any, ...], ...]  # of the graph

    def __call__(self) -> Any:
        return self.function(self.tasks)

    def __str__(self) -> str:
        return "; ".join("what tasks have found" if len(node) > 1 else str(node[0].args[0]) for node in self.nodes)


def _graph(tasks: Sequence[_Task]) -> dict[str, tuple[Any, ...]]:
    # In a partial: Dask would look for lazy values in the argument, a list of shards perhaps, once for every task.
    keys = _keys(0, len(tasks))
    return {key: (partial(function, each),) for key, (function, each) in zip(keys, tasks, strict=True)}


def _keys(first: int, n: int) -> list[str]:
    """Names under which tasks begin in this order, so that files are read from front to back.

    Of tasks that are alike Dask begins with the one whose name comes last.
    """
    return [f"task-{_LAST - i}" for i in range(first, first + n)]


def n_together(n_tasks: int, n_far: int, n_small: int = 1) -> int:
    """How many tasks go together: one at a time, so that its result counts as soon as it is there.

    But on its way through a scheduler a task takes some 10 ms of the processors of driver, scheduler and worker, as
    long as a small one is itself. So small ones go together, until they are as much work as others; and where there are
    very many, some of these: for them all the scheduler would be what a thousand workers wait for. But no more than
    leave every thread so many turns, since in the last one some have nothing left to do; unless there are more threads
    than a scheduler can keep at work one by one, which had better wait for each other at the end than for it all the
    time. docs/scaling.md has numbers.
    """
    if not n_far:
        return 1
    few = min(_MOST_TOGETHER, max(n_small, n_tasks // _MANY), n_tasks // (_TURNS * n_far))
    served = -(-n_far // _SERVED) if n_small else 1
    return max(1, few, min(served, -(-n_tasks // n_far)))


def _run(
    graph: dict[str, tuple[Any, ...]],
    keys: list[str],
    executor: Executor,
    n_at_once: int,
    done: _Done | None,
    n_small: int = 1,
) -> Any:
    under_way: set[Future[Any]] = set()

    def submit(function: Callable[[Any], Any], tasks: Any) -> Future[Any]:
        future = executor.submit(_Call(function, tasks, tuple(graph[task[0]] for task in tasks)))
        under_way.add(future)
        future.add_done_callback(under_way.discard)
        return future

    tally = getattr(executor, "tally", None)
    n_far = getattr(executor, "n_far", 0)

    def posttask(key: str, result: Any, _graph: object, _state: object, by: str) -> None:
        if len(graph[key]) == 1:  # what has been merged has been told of before
            if tally is not None:
                tally.add(by, result)
            if done is not None:
                done(result)
        signals.check()

    # Nothing is left to Dask's configuration, which any environment variable DASK_... changes: hence the cache too.
    # Signals are deferred, as one that raised while a thread starts would make the pool forget that thread.
    with signals.deferred():
        try:
            return get_async(
                submit,
                n_at_once,
                graph,
                keys,
                cache={},
                get_id=who,
                chunksize=n_together(len(graph), n_far, n_small),
                rerun_exceptions_locally=False,
                callbacks=[(None, None, None, posttask, None)],
            )
        except BaseException:
            # Dask would not wait; but whoever lets go of the output directory must not leave a writer behind.
            stop(executor)
            wait(set(under_way))
            raise
