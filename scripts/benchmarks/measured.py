"""Tasks for `scaling`: empty ones, and ones that say where their time went. Workers import them from here."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from pipeline.encoding import encode
from pipeline.encoding.encode import EncodeTask, encode_part
from pipeline.encoding.parts import PartFacts
from pipeline.output.records import Entry

_clock = threading.local()


@dataclass(frozen=True)
class Timed:
    """A part that was encoded, and the seconds that its task took: of these by ``read``, ``compute`` and ``write``."""

    facts: PartFacts
    seconds: float
    spent: dict[str, float]

    @property
    def n_rows(self) -> int:
        return self.facts.n_rows


def empty(task: EncodeTask) -> PartFacts:
    """A task that does nothing, with an argument and a result of a real one's size."""
    source, key = task.part.source, task.part.key
    entry = Entry(f"parts/{key}-{source.start:032x}.h5", 4 * len(source), "0" * 64)
    where = (source.shard.path, source.shard.dataset, source.start, source.stop)
    return PartFacts(entry, len(source), 0, 0, task.part.number, *where)


def timed_part(task: EncodeTask) -> Timed:
    """A part as a run makes it, with a clock beside what reads, computes and writes."""
    _install()
    _clock.spent = Counter()
    start = time.perf_counter()
    facts = encode_part(task)
    return Timed(facts, time.perf_counter() - start, dict(_clock.spent))


def _install() -> None:
    """Put clocks around what an encoding task calls: once for each process, whatever thread comes first."""
    if hasattr(encode.read, "__wrapped__"):
        return
    for name, kind in (("read", "read"), ("read_riders", "read"), ("write_result", "write")):
        setattr(encode, name, _clocked(kind, getattr(encode, name)))
    worker_of = encode.worker_of

    def clocked_worker(settings: Any) -> Any:
        worker = worker_of(settings)
        if not hasattr(worker.encode, "__wrapped__"):
            worker.encode = _clocked("compute", worker.encode)
        return worker

    encode.worker_of = clocked_worker


def _clocked(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def clocked(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            _clock.spent[kind] += time.perf_counter() - start

    return clocked
