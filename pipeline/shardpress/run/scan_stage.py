"""The scan: one pass over the rows that finds the range of each column, the bad rows, and the digests of shards."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from shardpress.base.errors import DataError, printable, quantity, short_list
from shardpress.base.formats import fingerprint
from shardpress.base.progress import Progress
from shardpress.hdf5.shard import Shard, first_rows
from shardpress.output.folder import WORK, unique_name
from shardpress.output.journal import Record
from shardpress.run.context import RunContext
from shardpress.run.estimate import Pace, measure_tasks, stretches
from shardpress.run.memory import block_bytes, chunk_bytes
from shardpress.run.modeling import scan_settings
from shardpress.run.resume import EarlierResults
from shardpress.run.task import Task
from shardpress.scan import ranges
from shardpress.scan.blocks import BlockStats, ScanBlock, ScanSettings, merge_stats, scan_pieces, stats_of_unreadable
from shardpress.scan.ranges import Scan
from shardpress.settings.kinds import n_allowed, sufficient_percentage

log = logging.getLogger(__name__)

_SCALINGS = {"std": "each column to the same variance", "common": "all columns are divided by one number"}
_COLUMNS_LISTED = 10  # columns that a message lists


@dataclass(frozen=True)
class _ScanSample:
    """Scan of some rows."""

    pace: Pace
    scan: Scan
    stretches: list[ScanBlock]  # the readable rows


@dataclass(frozen=True)
class ScanStage:
    """Stage that scans the rows, or reuses the scan of an earlier run."""

    task: Task
    offset: np.ndarray | None = None  # integers (n_inputs,) that are subtracted from the rows

    name: ClassVar[str] = "scan"

    @property
    def shards(self) -> list[Shard]:
        return [self.task.inputs.shards[i] for i in self.task.scanned]

    @cached_property
    def key(self) -> str:
        """Fingerprint of the scan, for which the digests of the rows need not be known."""
        task = self.task
        # A training must not use the scan of other runs, which lacks what only the training needs.
        is_training = task.source == "trained"
        return fingerprint("scan", task.request.scan, is_training, task.ids_of(task.scanned))

    def load(self, earlier: EarlierResults) -> Scan | None:
        scan = self.existing(earlier)
        if scan is None or not scan.unreadable:
            return scan
        # Unreadable files may have been repaired without a new modification time.
        earlier.withdraw(*earlier.journal.records("scan", self.key))
        return None

    def existing(self, earlier: EarlierResults) -> Scan | None:
        """Return the scan of an earlier run, even if it could not read some files, or None."""

        def read(record: Record) -> Scan:
            return Scan.from_npz(earlier.journal.load(record))

        return earlier.latest("scan", self.key, read, "scan: the earlier scan cannot be used (%s); it is recomputed")

    def make(self, context: RunContext) -> Scan:
        """Scan all rows and keep the result. Large integers are scanned again with an offset subtracted."""
        scan = self._scan(context)
        offset = self.offset_of(scan)
        if offset is not None:
            log.info(
                "scan: %s with integers above 2^53, which float64 cannot represent exactly; scanning again with "
                "each column's minimum subtracted",
                quantity(int(np.count_nonzero(offset)), "column"),
            )
            scan = replace(ScanStage(self.task, offset)._scan(context), offset=offset)
        entry = context.journal.write(unique_name(f"{WORK}/scan", ".npz"), scan.to_npz())
        context.journal.add(Record("scan", self.key, entry))
        return scan

    def offset_of(self, scan: Scan) -> np.ndarray | None:
        """Return the offset (n_inputs,) to subtract from the rows, or None.

        `scan` is a scan of the stored values. A given model has its own offset. With a configured missing value no
        offset is used, because stored rows are compared with this value.
        """
        if self.task.source != "trained" or self.task.settings.bad_data.missing_value is not None:
            return None
        return ranges.offset_for(self.task.conversion.dtype(self.shards), scan)

    def check(self, scan: Scan) -> None:
        """Log warnings about the rows. Raise `DataError` if too many are bad, or no model can be trained on them."""
        self.check_bad_rows(scan)
        if self.task.source == "trained":
            self.check_usable(scan)
            self._log_scaling(scan)
            for hint in scan.hints:
                log.info("hint: %s", printable(hint))
            self._warn_of_few_rows(scan)
            self._warn_of_narrow_columns(scan)
        self._log_imputed_values(scan)

    def check_bad_rows(self, scan: Scan) -> None:
        """Raise `DataError` if there are more bad rows than the settings allow."""
        task = self.task
        settings = task.settings.bad_data
        if not len(scan.bad_rows):
            return
        words = ranges.describe_bad_rows(self.shards, scan, self._settings())
        limit = task.max_bad_rows
        if self.n_limited(scan) > limit:
            expected = "finite numbers"
            if task.allows_bad_data:
                expected = f"at most {limit} (--max-bad {settings.max_bad})"
            raise DataError(f"{words}, expected {expected}. {self._advice_on_bad_rows(scan)}")
        log.warning("%s; they are left out and get NaN features", words)

    def n_limited(self, scan: Scan) -> int:
        """Return the number of bad rows to which the limit refers."""
        shard_of_row = np.searchsorted(first_rows(self.shards), scan.bad_rows, side="right") - 1
        is_limited = np.isin(self.task.scanned, self.task.limited)
        return int(np.count_nonzero(is_limited[shard_of_row]))

    def check_usable(self, scan: Scan) -> None:
        ranges.check_usable(self.shards, scan, self._settings())

    def memory_bytes(self) -> int:
        """Return the bytes of the blocks that the threads hold."""
        return self.task.budget.n_threads * block_bytes(self.task) + chunk_bytes(self.task)

    def sample(self) -> _ScanSample:
        """Scan some of the rows, and again if an offset has to be subtracted from them."""
        sample = self._sample()
        model = self.task.model
        offset = self.offset_of(sample.scan) if model is None else model.offset
        if offset is None:
            return sample
        again = ScanStage(self.task, offset)._sample()
        scan = replace(again.scan, offset=offset)
        return replace(again, pace=sample.pace, scan=scan)  # the first pass may read from the disk

    # -- private --

    def _sample(self) -> _ScanSample:
        shards = self.shards
        budget = self.task.budget
        # Unreadable shards are recorded, and do not stop the sample.
        settings = replace(self._settings(), max_unreadable=len(shards))
        stride = ranges.stride_for(shards, self.task.fitted)

        def scan_stretch(stretch: ScanBlock) -> tuple[ScanBlock, BlockStats]:
            pieces = [stretch._replace(block=block) for block in stretch.block.cut(budget.block_rows)]
            fitted = [piece.with_fitted(self.task.fitted) for piece in pieces]
            return stretch, scan_pieces(settings, stride, fitted)

        tasks = [(scan_stretch, stretch) for stretch in stretches(shards, self.task)]
        pace, results = measure_tasks(tasks, budget.n_threads, lambda result: len(result[0].block))
        unreadable = merge_stats([stats for _, stats in results]).unreadable
        readable = [(stretch, stats) for stretch, stats in results if stretch.number not in unreadable]
        # As in a run, all rows of an unreadable shard count as bad.
        part = merge_stats([stats_of_unreadable(shards, unreadable), *(part for _, part in readable)])
        scan = ranges.scan_from_stats(part, settings, shards, self.task.fitted)
        return _ScanSample(pace, scan, [stretch for stretch, _ in readable])

    def _scan(self, context: RunContext) -> Scan:
        task = self.task
        shards = self.shards
        settings = self._settings()
        n_processes = max(1, context.pool.n_local_processes)  # number of processes that share the memory budget
        settings = replace(settings, chunk_bytes=settings.chunk_bytes // n_processes)
        stats = context.pool.stats
        with (
            Progress("scan", sum(shard.n_rows for shard in shards), "rows", shards[0].row_bytes) as progress,
            context.pool.executor(task.budget.n_threads) as (executor, n_at_once),
        ):
            stats.begin("scan")

            def advance(n_rows: int) -> None:
                progress.advance(n_rows, stats)

            return ranges.scan(shards, settings, executor, n_at_once, advance, task.fitted)

    def _settings(self) -> ScanSettings:
        task = self.task
        max_unreadable = 0  # all unreadable shards are named at the end of the scan
        if task.allows_bad_data:
            max_unreadable = task.max_bad_shards - len(task.inputs.bad_shards)
        given = task.model
        scaler = None if given is None else given.scaler
        conversion = replace(task.conversion, offset=self.offset)
        settings = scan_settings(task.settings, task.budget, scaler, conversion)
        checks_extras = given is None and not task.allows_bad_data
        return replace(settings, max_unreadable=max_unreadable, checks_extras=checks_extras)

    def _advice_on_bad_rows(self, scan: Scan) -> str:
        """Return advice on bad rows, including the flags that would let the next run succeed."""
        task = self.task
        settings = task.settings.bad_data
        advice = ["Fix the files"]
        # With a given model, --impute has no effect: the model either imputes values already, or never does.
        if task.source == "trained" and ranges.misses_values(self.shards, scan, self._settings()):
            advice.append("fill in missing values with --impute median")
        if not scan.n_fitted:
            return f"Without these rows, no usable rows would remain. {', or '.join(advice)}."
        limit = ""
        if len(scan.bad_rows) > n_allowed(settings.max_bad, scan.n_rows):
            limit = f" --max-bad {self._sufficient_limit(scan)}"
        return f"{', '.join(advice)}, or leave these rows out with --on-bad-data skip{limit}."

    def _sufficient_limit(self, scan: Scan) -> str:
        """Return a value of --max-bad that allows the bad rows of the scan, and the bad shards."""
        n_left_out = len(self.task.inputs.bad_shards)
        n_shards = len(self.task.inputs.shards) + n_left_out
        of_rows = sufficient_percentage(len(scan.bad_rows), scan.n_rows)
        of_shards = sufficient_percentage(n_left_out + len(scan.unreadable), n_shards)
        return f"{max(of_rows, of_shards)}%"

    def _log_scaling(self, scan: Scan) -> None:
        if self.task.settings.scaling.scale == "auto" and scan.scale != "range":
            log.info(
                "scaling: %s (--scale %s), because most columns have rare values that are much larger than the others",
                _SCALINGS[scan.scale],
                scan.scale,
            )

    def _warn_of_few_rows(self, scan: Scan) -> None:
        n_features = self.task.settings.network.n_features
        n_inputs = self.task.inputs.n_inputs
        if scan.n_fitted >= n_features:
            return
        advice = " If the rows are stored as columns, use --orientation columns." if n_inputs > scan.n_rows else ""
        log.warning(
            "%s of %d columns, fewer than the %d features: the model can memorize the rows, and may not generalize to "
            "other rows. Provide more rows, or lower --n-features.%s",
            quantity(scan.n_fitted, "usable row"),
            n_inputs,
            n_features,
            advice,
        )

    def _warn_of_narrow_columns(self, scan: Scan) -> None:
        """Warn about columns in which outliers widen the range so much that ordinary values hardly differ."""
        columns = scan.narrow
        if scan.scale != "range" or not len(columns):
            return
        names = self.task.inputs.columns
        worst = int(columns[0])
        low, high = scan.inner[:, worst]
        log.warning(
            "%s with outliers that stretch the range to more than 100 standard deviations, so that the model "
            "can hardly distinguish ordinary values: %s; column %s ranges from %g to %g, but 80 %% of its values lie "
            "between %g and %g. Clip the outliers with --clip-quantile %g.",
            quantity(len(columns), "column"),
            short_list(names.listed(columns), _COLUMNS_LISTED),
            names.numbered(worst),
            scan.minimum[worst],
            scan.maximum[worst],
            low,
            high,
            0.01 if scan.scaler.clips else 0.001,
        )

    def _log_imputed_values(self, scan: Scan) -> None:
        if scan.n_missing is None or not scan.n_missing.any():
            return
        value = f"the column's {self.task.settings.bad_data.impute}"
        if self.task.source != "trained":
            value = "the model's value for the column"
        log.info(
            "scan: %s in %s, filled in with %s",
            quantity(int(scan.n_missing.sum()), "missing value"),
            quantity(int((scan.n_missing > 0).sum()), "column"),
            value,
        )
        if scan.scaler.indicators is not None:
            log.info("scan: added %s", quantity(len(scan.scaler.indicators), "missing indicator"))
