"""No worker does a task of a run before it has told that it would do it as the driver would."""

from __future__ import annotations

import logging
from contextlib import suppress

from distributed import Client, Future, Worker, WorkerPlugin, wait
from distributed.utils import TimeoutError as TooLong

from pipeline.cluster.checks import Answer, Question, answer, differences, refusal
from pipeline.errors import TryAgain, shown, some

__all__ = ["check"]

log = logging.getLogger(__name__)

_SECONDS = 60.0  # for an answer, which takes a fraction of one
_TURNED_AWAY = "shardpress-turned-away"
_FIRST = 100  # in Dask's order of tasks


class Gate(WorkerPlugin):
    """Asks workers that come later; one that would do tasks otherwise has to leave, and nothing that it does counts."""

    name = "shardpress-gate"

    def __init__(self, question: Question, here: Answer) -> None:
        self._question, self._here = question, here

    async def setup(self, worker: Worker) -> None:
        """Ask it, which takes so short that its heartbeats can wait."""
        words = differences(self._question, self._here, answer(self._question))
        if words:
            worker.log_event(_TURNED_AWAY, f"{worker.name} at {worker.address}: {'; '.join(words)}")
            # By the scheduler, which does not count it as a death. To close it here would wait for its nanny, and that
            # waits for this.
            await worker.scheduler.retire_workers(workers=[worker.address], close_workers=True, stimulus_id=self.name)


def check(client: Client, question: Question) -> None:
    """Ask every worker that is there, and see to it that those are asked that come later.

    Raises
    ------
    ConfigError
        When one would not do what this process does.
    TryAgain
        When one gives no answer.
    """
    here, workers = answer(question), client.scheduler_info()["workers"]
    asked = {
        f"{shown(told['name'])} at {address}": client.submit(
            *(answer, question), workers=[address], allow_other_workers=False, pure=False, priority=_FIRST
        )
        for address, told in workers.items()
    }
    if silent := _silent(client, asked):
        raise TryAgain(
            f"{some(silent, 3)}: no answer in {_SECONDS:.0f} s. End these workers, or wait until they are free, "
            "then type the same command again."
        )
    if error := refusal({name: _words(question, here, future) for name, future in asked.items()}):
        raise error
    client.subscribe_topic(_TURNED_AWAY, _tell)
    client.register_plugin(Gate(question, here))


def _silent(client: Client, asked: dict[str, Future]) -> list[str]:
    with client.as_current(), suppress(TooLong):
        wait(list(asked.values()), timeout=_SECONDS)
    return [name for name, future in asked.items() if not future.done()]


def _words(question: Question, here: Answer, future: Future) -> list[str]:
    error = future.exception()
    if error is None:
        return differences(question, here, future.result())
    return [f"it cannot be asked ({type(error).__name__}: {shown(error)})"]


def _tell(event: tuple[float, str]) -> None:
    log.warning("cluster: a worker has come and was turned away: %s", shown(event[1]))
