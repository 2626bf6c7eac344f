"""Tests of the device check: reports of workers, and workers that do not answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shardpress.cluster import connection, device_check
from shardpress.cluster.device_check import check_devices
from tests.support.helpers import refused
from tests.support.logged import mentions


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


def check(client: Any, requires_device: bool = False, keeps_others: bool = False) -> Any:
    """Return the names of the usable workers, and the failures."""
    found, failures = check_devices(client, lambda: None, requires_device, keeps_others)  # type: ignore[arg-type, return-value]
    return [each["name"] for each in found], failures


CARD = ("host:1", "a card", "")
NO_DRIVER = ("host:2", "cpu", "no driver")


def test_answers_are_awaited_while_the_scheduler_has_the_workers() -> None:
    found, failures = check_devices(Client(a=CARD, b=OSError("no such device")), lambda: None, False)  # type: ignore[arg-type, return-value]
    assert found == [{"name": "a", "host": "host", "pid": 1, "device": "a card"}]
    assert failures == {"b": "no such device"}


def test_workers_without_their_device_are_used_only_on_request(caplog: pytest.LogCaptureFixture) -> None:
    client = Client(a=CARD, b=NO_DRIVER)
    assert check(client) == (["a"], {"b": "no driver"})
    assert mentions(caplog.text, "worker b", "no driver")
    assert check(client, keeps_others=True) == (["a", "b"], {"b": "no driver"})


def test_a_run_without_the_required_devices_stops() -> None:
    with refused(69, "1 worker of 1", ": no driver"):
        check(Client(a=NO_DRIVER))
    with refused(69, "1 worker of 2", ": no driver"):
        check(Client(a=CARD, b=NO_DRIVER), requires_device=True)
    with refused(69, "2 workers of 2", ": no card"):
        check(Client(a=OSError("no card"), b=OSError("no driver")), keeps_others=True)


class ClientWithoutWorkers(Client):
    """Client whose workers leave when they receive a task."""

    def submit(self, *arguments: Any, **named: Any) -> Answer:
        self.present = {}
        return super().submit(*arguments, **named)


def test_a_lost_or_busy_worker_is_not_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    for client in (ClientWithoutWorkers(a=None), Client(a=None)):
        with refused(69, "did not answer"):
            check(client)
        monkeypatch.setattr(device_check, "_SECONDS", 0.01)
