"""`shardpress inspect`: describe input files, and what a run would read from them."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.commands.parsing import add_json_flag, byte_count, print_json, progress_shown
from pipeline.errors import DataError, counted, shown, some
from pipeline.settings.kinds import DATASET, EXACT_NUMBER

if TYPE_CHECKING:
    from pipeline.scan.preview import Preview
    from pipeline.shards.inspect import FileGroup, Inspection
    from pipeline.shards.twins import Twins

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """What is in HDF5 files: datasets, which of them a run would take and why, what rides along, ranges,
constant columns, bad rows, and what would be read faster stored otherwise. Nothing is written.

    shardpress inspect shards/
    shardpress inspect cells.h5ad --carry obs/cell_type
    shardpress inspect 'night/*.h5' --all --json | jq .rows.n_bad

Of the rows, 256 MB from all over the files are looked at, or all with --all. When a file is refused, the exit code
is 65.
"""
_BLOCK_BYTES = 2**23
_MOST_NUMBERS = 2**16  # columns whose ranges stand in the JSON
_FEW = 20  # columns whose ranges are listed one by one
_LISTED = 10
_FLOAT32_DOES = 1e-5  # of a column's range, by which float32 may be coarser: as fine as sensors are


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("shards", nargs="*", metavar="SHARDS", help="files, directories or globs (default: data/*.h5)")
    add("--dataset", metavar="NAME", help="dataset with the rows (default: X, else the only candidate)")
    add("--orientation", choices=("rows", "columns"), help="along which axis of it they lie")
    add(
        "--match-columns",
        choices=("order", "name", "ignore"),
        default="order",
        help="how names of columns are compared",
    )
    add("--carry", nargs="+", default=[], type=DATASET.read, metavar="NAME", help="datasets elsewhere that ride along")
    add("--follow", nargs="+", default=[], metavar="DIR", help="folders with the files that a master file stacks")
    add("--missing-value", type=EXACT_NUMBER.read, metavar="X", help="a value that stands for a missing one")
    add("--most", type=byte_count, default=256 * 10**6, metavar="BYTES", help="of rows to look at (default: 256MB)")
    add("--all", action="store_true", help="look at all rows")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Print what is in the files; the exit code is 65 if a file is refused."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s")  # warnings are part of the answer
    from pipeline.shards.columns import ColumnRule
    from pipeline.shards.inspect import inspect_files
    from pipeline.shards.twins import find_twins
    from pipeline.shards.vet import Selection

    wanted = Selection(options.dataset, options.orientation, tuple(options.carry))
    rule = ColumnRule(options.match_columns)
    found = inspect_files(options.shards or ["data/*.h5"], wanted, options.follow, rule)
    look = None
    if found.shards:
        with progress_shown():
            look = _looked(found, options)
    twins = list(find_twins(found.shards)) if options.all else []
    if options.json:
        print_json(_plain(found, look, twins))
    else:
        print("\n".join(_lines(found, look, twins)))
    return DataError.exit_code if found.refused else 0


def _looked(found: Inspection, options: argparse.Namespace) -> Preview:
    from pipeline.progress import Progress
    from pipeline.scan.blocks import ScanSettings
    from pipeline.scan.preview import preview_rows

    block_rows = max(1, _BLOCK_BYTES // found.shards[0].row_bytes)
    settings = ScanSettings(block_rows, options.missing_value)
    n_threads = len(os.sched_getaffinity(0))
    if not options.all:
        return preview_rows(found.shards, settings, n_threads, options.most)
    n_rows = sum(shard.n_rows for shard in found.shards)
    with Progress("looking at rows", n_rows, "rows", found.shards[0].row_bytes) as progress:
        return preview_rows(found.shards, settings, n_threads, None, advance=progress.advance)


# -- for programs --------------------------------------------------------------------------------------------------


def _plain(found: Inspection, look: Preview | None, twins: Sequence[Twins]) -> dict[str, Any]:
    rows = None if look is None else _plain_rows(found, look)
    equal = [[each.first.path, each.second.path] for each in twins]
    return {"files": [vars(each) for each in found.files], "refused": found.refused, "rows": rows, "equal": equal}


def _plain_rows(found: Inspection, look: Preview) -> dict[str, Any]:
    scan = look.scan
    constant: list[int] = []
    minimum: list[float] = []
    maximum: list[float] = []
    if scan.n_good:
        constant = scan.constant.nonzero()[0].tolist()
        minimum = scan.minimum[:_MOST_NUMBERS].tolist()
        maximum = scan.maximum[:_MOST_NUMBERS].tolist()
    return {
        "n_rows": look.n_rows,
        "n_looked_at": scan.n_rows,
        "n_inputs": len(scan.minimum),
        "n_bad": len(scan.bad_rows),
        "bad_rows": scan.bad_rows[:_LISTED].tolist(),
        "unreadable": {found.shards[i].path: why for i, why in scan.unreadable.items()},
        "constant_columns": constant,
        "narrow_columns": scan.narrow.tolist(),
        "minimum": minimum,
        "maximum": maximum,
        "smaller_dtype": look.smaller,
    }


# -- for people ----------------------------------------------------------------------------------------------------


def _lines(found: Inspection, look: Preview | None, twins: Sequence[Twins]) -> Iterator[str]:
    for files in found.files:
        yield from _of_files(files)
        yield ""
    if look is not None:
        yield from _of_rows(found, look)
    yield from (f"EQUAL ROWS  {each}" for each in twins[:_LISTED])
    if len(twins) > _LISTED:
        yield f"EQUAL ROWS  {len(twins) - _LISTED} files more hold the same rows as another one"
    for refused in found.refused[:_LISTED]:
        yield f"REFUSED  {refused['reason']}"
        yield from _table(refused["datasets"], "")
    if len(found.refused) > _LISTED:
        yield f"REFUSED  {len(found.refused) - _LISTED} files more"


def _of_files(files: FileGroup) -> Iterator[str]:
    names = shown(os.path.basename(files.names[0]))
    if len(files.names) > 1:
        last = shown(os.path.basename(files.names[-1]))
        names = f"{names} ... {last}"
    yield f"{counted(len(files.names), 'file')} ({names}), {counted(files.n_rows, 'row')}"
    yield from _table(files.datasets, files.taken)
    yield f"  taken: {_taken(files)}"
    yield f"  columns: {files.columns}"
    yield f"  riding along: {some(map(shown, files.riding), _LISTED)}"
    if files.left_out:
        words = [f"{name} ({why})" for name, why in files.left_out.items()]
        yield f"  left out: {some(words, _LISTED)}"
    yield from (f"  would read faster: {words}" for words in files.faster)


def _taken(files: FileGroup) -> str:
    """Return the dataset with the rows, and why it was chosen."""
    words = shown(files.taken)
    if files.form != "dense":
        words += f" ({files.form})"
    words += f", since {files.why}"
    if len(files.shape) > 1:
        words += f", rows of shape {tuple(files.shape)} flattened"
    return words


def _table(datasets: Sequence[dict[str, Any]], taken: str) -> Iterator[str]:
    rows = [_row(each) for each in datasets]
    if not rows:
        return
    rows.insert(0, ["dataset", "shape", "dtype", "stored", "filters", "bytes"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        mark = "*" if row[0] == shown(taken) else " "
        yield f"  {mark} " + "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()


def _row(its: dict[str, Any]) -> list[str]:
    if its["what"]:  # not a dataset of numbers
        shape = _shape_in_words(its["shape"]) if its["shape"] else ""
        return [its["name"], shape, "", its["what"], "", ""]
    stored = its["layout"]
    if its["chunks"] is not None:
        stored = f"chunks {_times(its['chunks'])}"
    filters = ", ".join(its["filters"]) or "-"
    return [its["name"], _shape_in_words(its["shape"]), its["dtype"], stored, filters, f"{its['n_bytes']:,}"]


def _shape_in_words(shape: Sequence[int] | None) -> str:
    if shape is None:
        return "none"
    return _times(shape) or "one value"


def _times(lengths: Sequence[int]) -> str:
    return " x ".join(map(str, lengths))


def _of_rows(found: Inspection, look: Preview) -> Iterator[str]:
    from pipeline.scan.ranges import describe_bad_rows

    scan = look.scan
    looked_at = "all" if look.has_all_rows else scan.n_rows
    yield f"{look.n_rows} rows, {looked_at} of them looked at"
    for i, why in list(scan.unreadable.items())[:_LISTED]:
        yield f"  CANNOT BE READ: {shown(found.shards[i].path)}: {why}"
    if len(scan.bad_rows):
        yield f"  BAD ROWS: {describe_bad_rows(found.shards, replace(scan, unreadable={}))}"
    if not scan.n_good:
        return
    yield f"  values from {scan.minimum.min():g} to {scan.maximum.max():g}; bad rows: {len(scan.bad_rows) or 'none'}"
    yield from _of_columns(found, look)
    yield from _of_dtypes(found, look)


def _of_columns(found: Inspection, look: Preview) -> Iterator[str]:
    scan = look.scan
    columns = found.shards[0].columns
    constant = columns.listed(scan.constant.nonzero()[0])
    yield f"  constant columns: {some(constant, _LISTED) if constant else 'none'}"
    if len(scan.narrow):
        narrow = some(columns.listed(scan.narrow), _LISTED)
        yield f"  columns that a few outliers leave no room: {narrow} (--clip-quantile 0.001)"
    if len(scan.minimum) <= _FEW:
        for i, (low, high) in enumerate(zip(scan.minimum, scan.maximum, strict=True)):
            yield f"    column {columns.numbered(i)}: {low:g} to {high:g}"


def _of_dtypes(found: Inspection, look: Preview) -> Iterator[str]:
    import numpy as np

    stored = np.dtype(found.shards[0].stored_dtype)
    smaller = np.dtype(look.smaller) if look.smaller else stored
    if smaller.itemsize < stored.itemsize:
        yield (
            f"  would read faster: {look.smaller} holds every value that was looked at, in "
            f"{smaller.itemsize} of {stored.itemsize} bytes"
        )
    elif stored == np.float64 and look.float32_error < _FLOAT32_DOES:
        yield (
            f"  would read faster: float32, in half the bytes, tells {look.float32_error:.1g} of every column's range "
            "apart, and training computes in it"
        )
