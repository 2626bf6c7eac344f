"""Progress of a pass over data: a tqdm bar on a terminal, and a few lines in the log. Both show the time left.

Between passes, `activity` shows what is happening.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from shardpress.base.runlog import SHOWN_BY_BAR
from shardpress.base.text import duration

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger(__name__)

# Percentages at which a line is logged. The first lines are close together, to show early how long the pass takes.
_MARKS = (1, 2, 5, *range(10, 100, 10))
_SECONDS_BETWEEN_LINES = 5.0  # minimum; a short pass logs only one line, when it ends
_LONGEST_SILENCE = 600.0  # seconds after which a line is logged in any case
_SECONDS_BETWEEN_BARS = 0.1  # do not redraw after every unit, because a unit can take only a few microseconds


@contextmanager
def activity(what: str, usual: str) -> Iterator[None]:
    """Show what is happening during a step that has no units: on a terminal at once, in a log after 5 seconds.

    The line on the terminal counts the seconds, and disappears at the end of the step. `usual` says how long the step
    usually takes.
    """
    bar = _activity_bar(what, usual) if _is_watched() else None
    is_done = threading.Event()
    line = f"{what} (usually {usual})"
    shown = threading.Thread(target=_show, args=(line, bar, is_done), name="activity", daemon=True)
    shown.start()
    try:
        yield
    finally:
        is_done.set()
        shown.join()
        if bar is not None:
            bar.close()


def _activity_bar(what: str, usual: str) -> tqdm:
    from tqdm import tqdm

    return tqdm(desc=what, bar_format=f"{{desc}} [{{elapsed}}, usually {usual}]", leave=False)


def _show(what: str, bar: tqdm | None, is_done: threading.Event) -> None:
    if bar is None:
        if not is_done.wait(_SECONDS_BETWEEN_LINES):
            log.info("%s", what)
        return
    while not is_done.wait(1):
        bar.refresh()


class Progress:
    """Progress of one pass. A total of None is unknown."""

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str,
        unit_bytes: int = 0,  # if it is not 0, the rate is also shown in MB/s
        done: int = 0,  # units that an earlier run has completed; rates do not include them
        is_minor: bool = False,  # the end is shown only if a line was logged before, and a bar disappears
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        now = clock()
        self._clock = clock
        self._what = what
        self._total = total
        self._unit = unit
        self._unit_bytes = unit_bytes
        self._before = done
        self._done = done
        self._is_minor = is_minor
        self._logged = -1
        self._notes: tuple[object, ...] = ()
        self._start = now
        self._last_line = now
        self._last_bar = now
        self._next_mark = self._mark_after(done)
        self._bar = self._new_bar() if _is_watched() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.close()
            self._bar = None  # so that the terminal also shows the last line
        is_wanted = self._logged >= 0 or not self._is_minor
        if error is None and is_wanted and self._logged != self._done:  # after an error, a line would look like success
            self._line(is_last=True)

    @property
    def seconds(self) -> float:
        return self._clock() - self._start

    def advance(self, n_units: int = 1, *notes: object) -> None:
        """Count units, and show notes after the count. They become text only then, because units can be short."""
        self._done += n_units
        self._notes = notes
        now = self._clock()
        if self._bar is not None and now - self._last_bar >= _SECONDS_BETWEEN_BARS:
            self._last_bar = now
            self._draw()
        if self._is_line_due(now - self._last_line):
            self._line()

    def expect(self, total: int) -> None:
        """Change the total number of units."""
        if total == self._total:
            return
        self._total = total
        self._next_mark = min(self._next_mark, total)
        if self._bar is not None:
            self._bar.total = total

    def _is_line_due(self, silent: float) -> bool:
        if silent < _SECONDS_BETWEEN_LINES:
            return False
        if silent >= _LONGEST_SILENCE:
            return True
        if self._total is None:
            return silent >= self.seconds / 3  # whenever the elapsed time has grown by half
        return self._done >= self._next_mark

    def _mark_after(self, done: int) -> float:
        marks = (mark * (self._total or 0) / 100 for mark in _MARKS)
        return next((mark for mark in marks if mark > done), math.inf)

    def _line(self, is_last: bool = False) -> None:
        self._last_line = self._clock()
        self._logged = self._done
        self._next_mark = self._mark_after(self._done)
        left = "" if is_last else self._left()
        elapsed = duration(self.seconds, math.inf)
        words = [self._count(), elapsed, self._rate(), left, *map(str, self._notes)]
        extra = {SHOWN_BY_BAR: self._bar is not None}
        log.info("%s: %s", self._what, ", ".join(filter(None, words)), extra=extra)

    def _count(self) -> str:
        if self._total is None or self._done > self._total:  # do not show a total that was exceeded
            return f"{self._done} {self._unit}"
        count = f"{self._done}/{self._total} {self._unit}"
        if self._done == self._total:
            return count
        return f"{count} ({100 * self._done / max(1, self._total):.0f} %)"

    def _left(self) -> str:
        """Return the time that the remaining units take at the average rate."""
        n = self._done - self._before
        n_left = (self._total or 0) - self._done
        if n <= 0 or n_left <= 0:
            return ""
        return f"{duration(n_left * self.seconds / n)} left"

    def _rate(self) -> str:
        if not self._unit_bytes:
            return ""
        rate = (self._done - self._before) / max(self.seconds, 1e-9)
        return f"{rate:,.0f} {self._unit}/s, {rate * self._unit_bytes / 1e6:,.0f} MB/s"

    # -- on a terminal -----------------------------------------------------------------------------------------------

    def _new_bar(self) -> tqdm:
        from tqdm import tqdm  # imported here, so that the first line of a program appears sooner

        is_scaled = self._total is not None and self._total > 10_000  # abbreviate large counts with k or M
        return tqdm(
            total=self._total,
            desc=self._what,
            bar_format=self._bar_format(),
            unit_scale=is_scaled,
            initial=self._before,
            leave=not self._is_minor,
        )

    def _draw(self) -> None:
        assert self._bar is not None
        words = [self._pace(), *map(str, self._notes)]
        self._bar.set_postfix_str(", ".join(filter(None, words)), refresh=False)
        self._bar.update(self._done - self._bar.n)

    def _bar_format(self) -> str:
        """Return a format without tqdm's rate, which reads like "2.09s/ epochs". The postfix shows the rate instead."""
        if self._total is None:
            return f"{{desc}}: {{n_fmt}} {self._unit} [{{elapsed}}{{postfix}}]"
        return f"{{l_bar}}{{bar}}| {{n_fmt}}/{{total_fmt}} {self._unit} [{{elapsed}}<{{remaining}}{{postfix}}]"

    def _pace(self) -> str:
        """Return the rate for a bar, in units per second, or in seconds per unit if units are slow."""
        n = self._done - self._before
        if self._unit_bytes or not n:
            return self._rate()
        rate = n / max(self.seconds, 1e-9)
        if rate >= 1:
            return f"{rate:,.1f} {self._unit}/s"
        return f"{1 / rate:.1f} s/{self._unit.removesuffix('s')}"


def _is_watched() -> bool:
    """Return whether progress is logged, and standard error is a terminal that can draw a bar."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and log.isEnabledFor(logging.INFO)
