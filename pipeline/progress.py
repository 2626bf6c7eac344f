"""How far a pass has come: a tqdm bar on a terminal, plain lines at a steady pace in a log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Self

from tqdm import tqdm

__all__ = ["Progress"]

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0  # 360 lines an hour at most: a log is read as a whole in the morning


class Progress:
    """Progress of one pass, `what`.

    Parameters
    ----------
    total : int or None
        Units in all, where that is known.
    unit : str
        In the plural.
    unit_bytes : int
        Of one unit, when the rate in MB/s is to be shown too.
    """

    def __init__(self, what: str, total: int | None, unit: str, unit_bytes: int = 0) -> None:
        self._what, self._total, self._unit, self._unit_bytes = what, total, unit, unit_bytes
        self._done, self._told, self._note = 0, -1, ""
        self._start = self._last_line = time.monotonic()
        on_terminal = sys.stderr.isatty() and log.isEnabledFor(logging.INFO)
        scale = total is not None and total > 10_000  # rows in k and M; minibatches and epochs are counted
        self._bar = tqdm(total=total, desc=what, bar_format=self._form(), unit_scale=scale) if on_terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if error is None and self._told != self._done:  # after an error, a line would look like success
            self._line()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def advance(self, n_units: int = 1, note: str = "") -> None:
        """Count units; `note` stands behind them."""
        self._done, self._note = self._done + n_units, note
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(filter(None, [self._pace(), note])), refresh=False)
            self._bar.update(n_units)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._line()

    def _form(self) -> str:
        """Tqdm's own words for a rate are "2.09s/ epochs"; ours stand behind the bar."""
        if self._total is None:
            return f"{{desc}}: {{n_fmt}} {self._unit} [{{elapsed}}{{postfix}}]"
        return f"{{l_bar}}{{bar}}| {{n_fmt}}/{{total_fmt}} {self._unit} [{{elapsed}}<{{remaining}}{{postfix}}]"

    def _line(self) -> None:
        self._last_line, self._told = time.monotonic(), self._done
        total = "" if self._total is None else f"/{self._total}"
        words = [f"{self._done}{total} {self._unit}", f"{self.seconds:.1f} s", self._rate(), self._note]
        log.info("%s: %s", self._what, ", ".join(filter(None, words)))

    def _pace(self) -> str:
        """For a bar, which shows no seconds: of slow units, how long one takes."""
        rate = self._done / max(self.seconds, 1e-9)
        if self._unit_bytes or not self._done:
            return self._rate()
        return f"{rate:,.1f} {self._unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{self._unit.removesuffix('s')}"

    def _rate(self) -> str:
        rate = self._done / max(self.seconds, 1e-9)
        return f"{rate:,.0f} {self._unit}/s, {rate * self._unit_bytes / 1e6:,.0f} MB/s" if self._unit_bytes else ""
