"""No worker does a task of a run before it has told that it would do it as the driver would."""

from __future__ import annotations

import logging

from distributed import Client, Future, Worker, WorkerPlugin

from pipeline.cluster.checks import (
    Answer,
    Question,
    answer,
    differences,
    differences_of_scheduler,
    facts_of_scheduler,
    refusal,
)
from pipeline.cluster.connection import ask_all
from pipeline.cluster.device_check import wait_for_answers, workers_of
from pipeline.errors import ConfigError, TryAgain, shown, some

__all__ = ["check"]

log = logging.getLogger(__name__)

_SECONDS = 120.0  # for an answer, which takes a fraction of one, but others' tasks may come first
_TURNED_AWAY = "shardpress-turned-away"
_FIRST = 100  # in Dask's order of tasks


class Gate(WorkerPlugin):
    """Asks workers that come later; one that would do tasks otherwise has to leave, and nothing that it does counts.

    Parameters
    ----------
    here : Answer
        The driver's.
    client : str
        Of the driver. Without it the run is over, and whoever comes is welcome; no plugin is told of that.
    """

    def __init__(self, question: Question, here: Answer, client: str) -> None:
        self.name = f"shardpress-{client}"
        self._question = question
        self._here = here
        self._client = client

    async def setup(self, worker: Worker) -> None:
        """Ask it, which takes so short that its heartbeats can wait."""
        events = await worker.scheduler.events(topic=self._client)
        if not events or any(event.get("action") == "remove-client" for _, event in events):
            return
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
        When one would not do what this process does, or the scheduler would not understand its tasks.
    TryAgain
        When one gives no answer.
    """
    _check_scheduler(client)
    here = answer(question)
    workers = workers_of(client)
    asked = {
        address: client.submit(
            answer, question, workers=[address], allow_other_workers=False, pure=False, priority=_FIRST
        )
        for address in workers
    }
    wait_for_answers(client, asked, _SECONDS)
    names = {address: f"{shown(told['name'])} at {address}" for address, told in workers.items()}
    there = workers_of(client)  # who has left meanwhile need not answer
    if silent := [names[address] for address in there if address in asked and not asked[address].done()]:
        raise TryAgain(
            f"{some(silent, 3)}: no answer in {_SECONDS:.0f} s. End these workers, or wait until they are free, then "
            "type the same command again."
        )
    wrong = {names[address]: _words(question, here, future) for address, future in asked.items() if future.done()}
    if error := refusal(wrong):
        raise error
    client.subscribe_topic(_TURNED_AWAY, _tell)
    gate = Gate(question, here, client.id)
    ask_all(lambda: client.register_plugin(gate), lambda: client.status == "running")


def _check_scheduler(client: Client) -> None:
    """Refuse a scheduler that does not know our classes, or that imports from where other users can write.

    It computes nothing, but it takes every task apart.
    """
    try:
        words = differences_of_scheduler(client.run_on_scheduler(facts_of_scheduler))
    except Exception as error:  # whatever its own packages raise
        words = [_unasked(error)]
    if words:
        raise ConfigError(
            f"scheduler: it cannot take this run's tasks: {'; '.join(words)}. Start it with the packages that the "
            "workers have, and with a private directory as DASK_TEMPORARY_DIRECTORY."
        )


def _unasked(error: BaseException) -> str:
    return f"it cannot be asked ({type(error).__name__}: {shown(' '.join(str(error).split()))})"


def _words(question: Question, here: Answer, future: Future) -> list[str]:
    error = future.exception()
    if error is None:
        return differences(question, here, future.result())
    return [_unasked(error)]


def _tell(event: tuple[float, str]) -> None:
    log.warning("cluster: a worker has come and was turned away: %s", shown(event[1]))
