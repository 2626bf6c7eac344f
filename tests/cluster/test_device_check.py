"""Tests of the device check: reports of workers, and workers that do not answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shardpress.cluster import connection
from shardpress.cluster.device_check import WorkerDevice, check_devices


class Answer:
    """Future of a worker's answer. It is unfinished at the first check, and always unfinished if the answer is None."""

    def __init__(self, found: Any) -> None:
        self.found = found
        self.n_checks = 0

    @property
    def status(self) -> str:
        return "pending" if self.found is None else "error" if isinstance(self.found, Exception) else "finished"

    def done(self) -> bool:
        self.n_checks += 1
        return self.found is not None and self.n_checks > 1

    def result(self) -> Any:
        return self.found

    def exception(self) -> Any:
        return self.found


class Client:
    """Client whose cached scheduler information contains no workers, as after a query without workers."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.present = dict.fromkeys(answers)
        self.scheduler = SimpleNamespace(identity=lambda n_workers: {"workers": {n: {"name": n} for n in self.present}})

    def sync(self, function: Any, **named: Any) -> Any:
        return function(**named)

    def scheduler_info(self, n_workers: int = -1) -> dict[str, Any]:
        return {"workers": {}, "n_workers": len(self.present)}

    def submit(self, *_: Any, workers: list[str], **__: Any) -> Answer:
        return Answer(self.answers[workers[0]])

    def cancel(self, _: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def poll_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_WAIT_INTERVAL", 0.001)


def check(client: Any, seconds: float = 60.0) -> Any:
    return check_devices(client, lambda: None, seconds)  # type: ignore[arg-type, return-value]


def test_answers_are_awaited_while_the_scheduler_has_the_workers() -> None:
    found, failed = check(Client(a=("host:1", "cpu", "", ""), b=OSError("no such device")))
    assert (found, failed) == ([WorkerDevice("a", "host:1", "cpu", "")], {"b": "no such device"})
    assert found[0].facts() == {"name": "a", "host": "host", "pid": 1, "device": "cpu"}


class ClientWithoutWorkers(Client):
    """Client whose workers leave when they receive a task."""

    def submit(self, *arguments: Any, **named: Any) -> Answer:
        self.present = {}
        return super().submit(*arguments, **named)


def test_a_lost_or_busy_worker_is_not_awaited() -> None:
    for client, seconds in ((Client(a=None), 0.01), (ClientWithoutWorkers(a=None), 60.0)):
        found, failed = check(client, seconds)
        assert (found, list(failed)) == ([], ["a"])
