"""`shardpress inspect`: describe input files, and the rows that a run would read from them."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shardpress.base.commandline import Parser
from shardpress.base.errors import DataError, printable, quantity, short_list
from shardpress.commands.parsing import add_json_flag, log_progress, print_json

if TYPE_CHECKING:
    from shardpress.hdf5.columns import Columns
    from shardpress.hdf5.shard import Shard
    from shardpress.scan.look import Appearance
    from shardpress.scan.ranges import Scan
    from shardpress.settings.config import Config
    from shardpress.shards.inspect import FileGroup, Inspection

DESCRIPTION = """Describe HDF5 files: datasets, the choice of the dataset with the rows, extras, ranges of values,
constant columns, bad rows, and storage layouts that make reading slow.

    shardpress inspect shards/
    shardpress inspect cells.h5ad --include obs/cell_type
    shardpress inspect 'shards/*.h5' --all --json | jq .rows.n_bad

By default 256 MB of rows from all files are scanned. --all scans all rows and also finds files with equal rows. Nothing
is written. Everything that `shardpress run` accepts is accepted, and the settings of the input are used. The exit code
is 65 if a file is refused.
"""
_BLOCK_BYTES = 2**23
_MAX_SCANNED = 256 * 10**6  # bytes
_MAX_NUMBERS = 2**16  # maximum number of columns whose ranges are included in the JSON
_MAX_RANGES = 20  # maximum number of columns whose ranges are all listed
_MAX_LISTED = 10
_MAX_REASONS = 3  # refused files whose reasons are listed


def run(options: argparse.Namespace) -> int:
    """Describe the files. Return 65 if a file is refused."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s")  # the output already contains the warnings
    from shardpress.settings.flags import parse_with_settings

    config, own = parse_with_settings(_own_parser(), options.arguments, os.environ)  # before the slow imports: --help
    from shardpress.run.inputs import column_rule
    from shardpress.scan.look import form_of
    from shardpress.shards.inspect import inspect_files
    from shardpress.shards.vet import Selection

    inputs = config.inputs
    selection = Selection(inputs.dataset, inputs.orientation, inputs.include)
    inspection = inspect_files(own.shards or inputs.input, selection, column_rule(config, None))
    scan = None
    form = None
    if inspection.shards:
        with log_progress():
            scan = _scan_rows(inspection, config, own.all)
            form = form_of(config, inspection.shards, None)
    twins = list(_twins(inspection, scan)) if scan is not None and own.all else []
    if own.json:
        print_json(_as_json(inspection, scan, form, twins))
    else:
        print("\n".join(_lines(inspection, scan, form, config.bad_data.missing_value, twins)))
    return DataError.exit_code if inspection.refused else 0


def _own_parser() -> Parser:
    parser = Parser("shardpress inspect", DESCRIPTION)
    parser.add_argument(
        "shards", nargs="*", metavar="SHARDS", help="Files, directories or globs. Default: those of --input."
    )
    parser.add_argument("--all", action="store_true", help="Scan all rows, and find files with equal rows.")
    add_json_flag(parser)
    return parser


def _scan_rows(inspection: Inspection, config: Config, is_complete: bool) -> Scan:
    from shardpress.base.progress import Progress
    from shardpress.scan.blocks import ScanSettings
    from shardpress.scan.preview import preview_rows

    row_bytes = inspection.shards[0].row_bytes
    block_rows = max(1, _BLOCK_BYTES // row_bytes)
    settings = ScanSettings(block_rows, config.bad_data.missing_value)
    n_threads = config.machine.threads or len(os.sched_getaffinity(0))
    if not is_complete:
        return preview_rows(inspection.shards, settings, n_threads, _MAX_SCANNED)
    with Progress("scanning rows", _n_rows(inspection), "rows", row_bytes) as progress:
        return preview_rows(inspection.shards, settings, n_threads, None, advance=progress.advance)


def _twins(inspection: Inspection, scan: Scan) -> Iterator[tuple[Shard, Shard]]:
    """Yield the first shard with some rows, and each later shard with equal rows, given a scan of all rows."""
    firsts: dict[object, Shard] = {}
    for shard, digest in zip(inspection.shards, scan.digests, strict=True):
        if shard.n_rows and digest is not None:
            first = firsts.setdefault((shard.shape, shard.stored_dtype, digest), shard)
            if first is not shard:
                yield first, shard


# -- JSON ---------------------------------------------------------------------------------------------------------


def _n_rows(inspection: Inspection) -> int:
    return sum(shard.n_rows for shard in inspection.shards)


def _as_json(
    inspection: Inspection, scan: Scan | None, form: Appearance | None, twins: Sequence[tuple[Shard, Shard]]
) -> dict[str, Any]:
    return {
        "files": [vars(group) for group in inspection.files],
        "refused": inspection.refused,
        "rows": None if scan is None else _rows_as_json(inspection, scan),
        "form": None if form is None else form._asdict(),
        "equal": [[first.path, second.path] for first, second in twins],
    }


def _rows_as_json(inspection: Inspection, scan: Scan) -> dict[str, Any]:
    n_ranges = _MAX_NUMBERS if scan.n_fitted else 0  # without good rows, no column has a range
    return {
        "n_rows": _n_rows(inspection),
        "n_looked_at": scan.n_rows,
        "n_inputs": len(scan.minimum),
        "n_bad": len(scan.bad_rows),
        "bad_rows": scan.bad_rows[:_MAX_LISTED].tolist(),
        "unreadable": {inspection.shards[i].path: why for i, why in scan.unreadable.items()},
        "constant_columns": scan.constant.nonzero()[0].tolist() if scan.n_fitted else [],
        "narrow_columns": scan.narrow.tolist(),
        "minimum": scan.minimum[:n_ranges].tolist(),
        "maximum": scan.maximum[:n_ranges].tolist(),
    }


# -- text ---------------------------------------------------------------------------------------------------------


def _lines(
    inspection: Inspection,
    scan: Scan | None,
    form: Appearance | None,
    missing: float | None,
    twins: Sequence[tuple[Shard, Shard]],
) -> Iterator[str]:
    for files in inspection.files:
        yield from _lines_of_files(files)
        yield ""
    if scan is not None:
        yield from _lines_of_rows(inspection, scan, missing)
    if form is not None:
        yield f"  the rows look like {form.words}" + (f"; a run uses {form.flags}" if form.settings else "")
    for first, second in twins[:_MAX_LISTED]:
        names = f"file={printable(first.path)} and file={printable(second.path)}"
        yield f"EQUAL ROWS  {names}: both hold the same {first.n_rows} rows. Remove one of them if it is a copy."
    if len(twins) > _MAX_LISTED:
        yield f"EQUAL ROWS  {len(twins) - _MAX_LISTED} more files have the same rows as another file"
    yield from _lines_of_refused(inspection.refused)


def _lines_of_refused(refused: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the reasons for refusing the first files, and the names of some others."""
    for file in refused[:_MAX_REASONS]:
        yield f"REFUSED  {file['reason']}"
        yield from _table(file["datasets"], "")
    others = refused[_MAX_REASONS:]
    if others:
        names = short_list((printable(os.path.basename(file["file"])) for file in others), _MAX_LISTED)
        yield f"REFUSED  {quantity(len(others), 'more file')}: {names}"


def _lines_of_files(files: FileGroup) -> Iterator[str]:
    first_and_last = dict.fromkeys(printable(os.path.basename(name)) for name in (files.names[0], files.names[-1]))
    names = " ... ".join(first_and_last)
    whose = "; the datasets of the first one:" if len(files.names) > 1 else ""
    yield f"{quantity(len(files.names), 'file')} ({names}), {quantity(files.n_rows, 'row')}{whose}"
    yield from _table(files.datasets, files.taken)
    form = "" if files.form == "dense" else f" ({files.form})"
    flattened = f", rows of shape {tuple(files.shape)} flattened" if len(files.shape) > 1 else ""
    yield f"  rows from: {printable(files.taken)}{form}, because {files.why}{flattened}"
    yield f"  columns: {files.columns}"
    yield f"  extras: {short_list(map(printable, files.extras), _MAX_LISTED)}"
    if files.left_out:
        words = [f"{name} ({why})" for name, why in files.left_out.items()]
        yield f"  not copied: {short_list(words, _MAX_LISTED)}"
    for advice in files.faster:
        yield f"  slow to read: {advice}"


def _table(datasets: Sequence[dict[str, Any]], chosen: str) -> Iterator[str]:
    """Yield the lines of a table of datasets. An asterisk marks the chosen dataset."""
    if not datasets:
        return
    rows = [["dataset", "shape", "dtype", "stored", "filters", "bytes"], *map(_row, datasets)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        mark = "*" if row[0] == printable(chosen) or row[0].startswith(f"{printable(chosen)}/") else " "
        cells = [word.ljust(width) for word, width in zip(row, widths, strict=True)]
        yield f"  {mark} {'  '.join(cells).rstrip()}"


def _row(dataset: dict[str, Any]) -> list[str]:
    shape = _product(dataset["shape"])
    if dataset["what"]:  # not a dataset of numbers
        return [dataset["name"], shape, "", dataset["what"], "", ""]
    stored = dataset["layout"]
    if dataset["chunks"] is not None:
        stored = f"chunks {_product(dataset['chunks'])}"
    filters = ", ".join(dataset["filters"]) or "-"
    return [dataset["name"], shape, dataset["dtype"], stored, filters, f"{dataset['n_bytes']:,}"]


def _product(lengths: Sequence[int] | None) -> str:
    """Return ``3 x 4``, or an empty string for a single value or none."""
    return " x ".join(map(str, lengths or ()))


def _lines_of_rows(inspection: Inspection, scan: Scan, missing: float | None) -> Iterator[str]:
    from shardpress.scan.blocks import ScanSettings
    from shardpress.scan.ranges import describe_bad_rows, misses_values

    settings = ScanSettings(1, missing)
    n_rows = _n_rows(inspection)
    n_scanned = "all" if scan.n_rows == n_rows else scan.n_rows
    yield f"{n_rows} rows, {n_scanned} of them scanned"
    for i, why in list(scan.unreadable.items())[:_MAX_LISTED]:
        yield f"  UNREADABLE: {printable(inspection.shards[i].path)}: {why}"
    if len(scan.bad_rows):
        readable = replace(scan, unreadable={})
        yield f"  BAD ROWS: {describe_bad_rows(inspection.shards, readable, settings)}"
        if misses_values(inspection.shards, readable, settings):
            yield "  advice: a run with --impute median fills in missing values"
    if scan.n_fitted:
        n_bad = len(scan.bad_rows) or "none"
        yield f"  values from {scan.minimum.min():g} to {scan.maximum.max():g}; bad rows: {n_bad}"
        yield from _lines_of_columns(inspection.shards[0].columns, scan)
        yield from (f"  hint: {hint}" for hint in scan.hints)


def _lines_of_columns(columns: Columns, scan: Scan) -> Iterator[str]:
    constant = columns.listed(scan.constant.nonzero()[0])
    yield f"  constant columns: {short_list(constant, _MAX_LISTED) if constant else 'none'}"
    if len(scan.narrow):
        narrow = short_list(columns.listed(scan.narrow), _MAX_LISTED)
        yield f"  columns whose range is stretched by a few outliers: {narrow} (clip them with --clip-quantile 0.001)"
    if len(scan.minimum) <= _MAX_RANGES:
        for i, (low, high) in enumerate(zip(scan.minimum, scan.maximum, strict=True)):
            yield f"    column {columns.numbered(i)}: {low:g} to {high:g}"
