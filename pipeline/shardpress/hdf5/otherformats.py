"""Formats of files that are not HDF5: their names in messages, and the commands that convert them to HDF5.

A command is one line for a shell. It writes a new file next to the old one.
"""

import codecs
import json
import os
import re
import shlex
import stat
from typing import NamedTuple

from shardpress.base.errors import printable
from shardpress.hdf5.files import FILES, read_at

HEAD_BYTES = 2**20
"""Number of bytes from which the format of a file is recognized. A table can have many columns."""


class _Format(NamedTuple):
    words: str  # name of the format, and advice before the command
    command: str = ""  # for a shell, or Python if it begins with `import`; `{old}` and `{new}` stand for the paths
    ending: str = ".h5"  # of the new path


_NUMBERS = '.select_dtypes("number").to_numpy("float32")'
_SPACES = r"\s+"
_TABLE = "To keep labels, see docs/recipes.md. Convert the columns of numbers"
_CSV = 'import h5py, pandas; h5py.File({{new}}, "x")["X"] = pandas.read_csv({{old}}{options})' + _NUMBERS
_ZARR = "a Zarr directory. Convert it"
_ZARR_ARRAY = _Format(_ZARR, 'import h5py, zarr; h5py.File({new}, "x")["X"] = zarr.open({old}, mode="r")[...]')
_ZARR_GROUP = _Format(
    _ZARR,
    'import h5py, zarr; h5py.File({new}, "x").update((n, a[...]) for n, a in zarr.open({old}, mode="r").arrays())',
)
_ZARR_ANNDATA = _Format(_ZARR, "import anndata; anndata.read_zarr({old}).write_h5ad({new})")
_EMPTY = _Format("an empty file. Copy or download it again.")
_TEXT = _Format("a text file. Check the path.")
_FORMATS = {  # by patterns of the first bytes; the first pattern that matches counts
    rb"(?i:\s*version https://git-lfs)": _Format("a Git LFS pointer. Replace it", "git lfs pull"),
    rb"(?i:\s*<(!doctype )?html)": _Format("a web page. Download the file again."),
    rb"PAR1[\x00-\x1f]": _Format(
        f"a Parquet file. {_TABLE}",
        'import h5py, pandas; h5py.File({new}, "x")["X"] = pandas.read_parquet({old})' + _NUMBERS,
    ),
    rb"\x93NUMPY": _Format(
        "a NumPy file (.npy). Convert it",
        'import h5py, numpy; h5py.File({new}, "x")["X"] = numpy.load({old}, mmap_mode="r")',
    ),
    rb"PK\x03\x04.{26}[ -~]{1,99}?\.npy": _Format(
        "a NumPy archive (.npz). Convert it",
        'import h5py, numpy; h5py.File({new}, "x").update((n, numpy.char.encode(a) if a.dtype.kind == "U" else a) '
        "for n, a in numpy.load({old}).items())",
    ),
    rb"PK\x03\x04": _Format("a ZIP archive. Extract it", "python -m zipfile -e {old} {new}", ending=""),
    rb"\x1f\x8b": _Format("a gzip-compressed file. Decompress it", "gunzip -c {old} > {new}", ending=""),
    rb"\x80[\x02-\x05]": _Format(
        "a pickle of Python, which runs any code when it is opened. If you trust its author, convert it",
        'import h5py, numpy; h5py.File({new}, "x")["X"] = '
        'numpy.asarray(numpy.load({old}, allow_pickle=True), "float32")',
    ),
    rb"MATLAB 5\.0 MAT-file": _Format(
        "a MATLAB file older than 7.3. Convert its arrays of numbers",
        'import h5py, scipy.io; h5py.File({new}, "x").update((n, a) for n, a in scipy.io.loadmat({old}).items() '
        'if hasattr(a, "dtype") and a.dtype.kind in "biuf")',
    ),
    rb"CDF[\x01\x02\x05]": _Format("a netCDF-3 file. Convert it", "nccopy -k nc4 {old} {new}"),
    rb"\x0e\x03\x13\x01": _Format("an HDF4 file. Convert it", "h4toh5 {old} {new}"),
}


def describe(path: str, head: bytes) -> str | None:
    """Return the format of a file and what to do, given its first bytes, or None if the format is unknown."""
    known = _format_of(head)
    return None if known is None else _in_words(known, path)


def describe_path(path: str, is_convertible: bool = False) -> str | None:
    """Return the format of a directory or a file as `describe` does, or None for a link, a device, or HDF5.

    With `is_convertible`, return None unless a command helps.
    """
    mode = os.lstat(path).st_mode
    known = None
    if stat.S_ISDIR(mode):
        known = _format_of_directory(path)
    elif stat.S_ISREG(mode):
        known = _format_of(_head(path))
    if known is None or (is_convertible and not known.command):
        return None
    return _in_words(known, path)


def _format_of(head: bytes) -> _Format | None:
    if not head:
        return _EMPTY
    for pattern, known in _FORMATS.items():
        if re.match(pattern, head, re.DOTALL):
            return known
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # accepts a character that is cut off
    except UnicodeDecodeError:
        return None
    if re.search(r"[\x00-\x08\x0e-\x1f]", text):
        return None
    return _text_format(text, len(head) == HEAD_BYTES)


def _format_of_directory(path: str) -> _Format | None:
    if os.path.lexists(os.path.join(path, ".zarray")):
        return _ZARR_ARRAY
    for name in ("zarr.json", ".zattrs", ".zgroup"):
        metadata = os.path.join(path, name)
        if not os.path.lexists(metadata):
            continue
        head = b"" if os.path.islink(metadata) else _head(metadata)
        if re.search(rb'"encoding-type"\s*:\s*"anndata"', head):
            return _ZARR_ANNDATA
        is_array = re.search(rb'"node_type"\s*:\s*"array"', head)
        return _ZARR_ARRAY if is_array else _ZARR_GROUP
    return None


def _head(path: str) -> bytes:
    descriptor = FILES.open(path)
    try:
        return read_at(descriptor, 0, min(FILES.fstat(descriptor).st_size, HEAD_BYTES))
    finally:
        FILES.close(descriptor)


# -- texts -------------------------------------------------------------------------------------------------------


def _text_format(text: str, is_cut: bool) -> _Format:
    lines = text.splitlines()
    if is_cut and len(lines) > 1:
        del lines[-1]
    rows = [line for line in lines if line.strip() and not line.startswith("#")][:2]
    separator = next((mark for mark in "\t;," if rows and mark in rows[0]), None)
    table = [row.split(separator) for row in rows]
    if not table or not _is_table(table, separator is None):
        return _TEXT
    options = "" if separator == "," else f", sep={_literal(separator or _SPACES)}"
    if any(map(_is_number, table[0])):
        options += ", header=None"
    elif not table[0][0]:  # pandas writes no name for the index
        options += ", index_col=0"
    if any(line.startswith("#") for line in lines):
        options += ', comment="#"'
    return _Format(f"a text file with a table. {_TABLE}", _CSV.format(options=options))


def _is_table(rows: list[list[str]], has_spaces: bool) -> bool:
    """Return whether the last row contains numbers. Between spaces, a sentence may contain some as well."""
    are_numbers = [_is_number(word) for word in rows[-1]]
    return all(are_numbers) if has_spaces else any(are_numbers)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


# -- words -------------------------------------------------------------------------------------------------------


def _in_words(known: _Format, path: str) -> str:
    if not known.command:
        return known.words
    old = path.rstrip("/")
    new = os.path.splitext(old)[0] + known.ending
    if os.path.lexists(new):
        new = f"{old}.h5"
    if known.command.startswith("import "):
        code = known.command.format(old=_literal(old), new=_literal(new))
        command = f"python -c {shlex.quote(code)}"
    else:
        command = known.command.format(old=_argument(old), new=_argument(new))
    return f"{known.words} with `{printable(command)}`."


def _literal(path: str) -> str:
    return json.dumps(path, ensure_ascii=False)  # double quotes, since the shell needs single quotes around the code


def _argument(path: str) -> str:
    return shlex.quote(f"./{path}" if path.startswith("-") else path)
