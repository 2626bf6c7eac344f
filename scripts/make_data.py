"""Write HDF5 shards with real or random rows, to extract features from.

    python scripts/make_data.py                      # Fashion-MNIST, or digits if it is not installed: data/*.h5
    python scripts/make_data.py donuts               # rows like those of the reference experiment: data/donuts/
    python scripts/make_data.py digits               # scikit-learn's digits: data/digits/
    python scripts/make_data.py fashion-mnist --output /scratch/fashion
    python scripts/make_data.py fashion-mnist-test   # data/fashion-mnist-test/
    python scripts/make_data.py synthetic --rows 2000000 --columns 784 --shards 8 --layout gzip

A set that exists with the same parameters is not written again, except with `--force`. A directory contains one set:
shards of an earlier call that do not belong to the new set are removed. Files that other programs wrote are never
changed. Exit codes: 0 success, 64 wrong usage, 65 invalid source file, 66 missing source file, 73 a shard cannot be
written, 130 interrupted.
"""

import sys
from pathlib import Path

# So that any Python finds the modules below.
sys.path += [str(Path(__file__).resolve().parents[1] / name) for name in ("pipeline", "kernels")]
import shardpress.setup.installed  # noqa: F401  ends the process with a message if packages are missing

# isort: split

import argparse
import contextlib
import gzip
import json
import math
import os
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import h5py
import numpy as np

USAGE = 64
BAD_DATA = 65
NO_INPUT = 66
CANNOT_CREATE = 73
INTERRUPTED = 130

MADE_BY = "shardpress make_data"
VERSION = 1  # increment it if the rows of a set change, so that existing shards are written again
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_HINT = "to install Fashion-MNIST on Debian: apt-get install dataset-fashion-mnist"
SETS = ("default", "fashion-mnist", "fashion-mnist-test", "digits", "donuts", "synthetic")
DTYPES = ("bool", "uint8", "int16", "uint16", "int32", "float16", "float32", "float64")
LAYOUTS = ("contiguous", "chunked", "gzip", "lzf", "columns")
SYNTHETIC = {"rows": 20_000, "columns": 784, "shards": 4, "dtype": "float32", "layout": "contiguous"}
BLOCK_BYTES = 32 << 20  # size of a block of rows in float32; a shard is written block by block
CHUNK_BYTES = 1 << 20


class MakeDataError(Exception):
    """Error with a message for the user and an exit code."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class Table:
    """Rows and labels; `read(start, stop)` returns rows of shape (stop - start, n_inputs), and labels, uint8."""

    n_rows: int
    n_inputs: int
    dtype: np.dtype
    read: Callable[[int, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Piece:
    """A table split evenly into the shards of one directory; it is loaded only when a shard must be written."""

    paths: tuple[Path, ...]
    parameters: dict
    load: Callable[[], Table]
    layout: str = "contiguous"

    def recipe(self, index: int) -> str:
        """Return everything that determines the content of a shard, in the form that is stored in the file."""
        place = {"shard": index, "shards": len(self.paths), "version": VERSION}
        return json.dumps({**self.parameters, **place}, sort_keys=True)

    def unfinished(self) -> list[int]:
        """Return the numbers of the shards that are missing or were made from another recipe."""
        return [index for index, path in enumerate(self.paths) if recipe_of(path) != self.recipe(index)]


# ---- sources of rows


def arrays(X: np.ndarray, y: np.ndarray) -> Table:
    """Return a table of rows that are in memory."""
    return Table(*X.shape, X.dtype, lambda start, stop: (X[start:stop], y[start:stop]))


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Read a gzipped idx file: two zero bytes, type 8 (uint8), the rank, a big-endian uint32 for each axis, values.

    Raises
    ------
    MakeDataError
        If the file is missing, is not a gzip file, or has an unexpected type, rank or number of values.
    """
    content = read_gzip(path)
    magic = content[:4].hex()
    expected = f"000008{rank:02x}"
    header = 4 + 4 * rank
    if magic != expected or len(content) < header:
        raise MakeDataError(BAD_DATA, f"{path}: begins with {magic}, expected an idx header, {expected}")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", rank, 4))
    found = len(content) - header
    if found != math.prod(shape):
        raise MakeDataError(BAD_DATA, f"{path}: contains {found} values, expected {math.prod(shape)} for {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_gzip(path: Path) -> bytes:
    """Read and decompress a gzip file."""
    try:
        return gzip.decompress(path.read_bytes())
    except (FileNotFoundError, PermissionError) as error:
        raise MakeDataError(NO_INPUT, f"{path}: cannot be read ({error.strerror}); {FASHION_HINT}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise MakeDataError(BAD_DATA, f"{path}: not a complete gzip file ({error}); {FASHION_HINT}") from error


def fashion_files(part: str) -> tuple[Path, Path]:
    """Return the files with the images and the labels of `part`, train or t10k."""
    return FASHION_FOLDER / f"{part}-images-idx3-ubyte.gz", FASHION_FOLDER / f"{part}-labels-idx1-ubyte.gz"


def load_fashion(part: str) -> Table:
    """Load Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): one row of uint8 pixels per image, labels 0 to 9."""
    images, labels = fashion_files(part)
    X = read_idx(images, 3)
    y = read_idx(labels, 1)
    if len(X) != len(y):
        raise MakeDataError(BAD_DATA, f"{labels}: contains {len(y)} labels, expected {len(X)}, one per image")
    return arrays(X.reshape(len(X), -1), y)


def load_digits(rows: slice) -> Table:
    """Load scikit-learn's 8 x 8 digits: values from 0 to 16 as uint8, labels 0 to 9."""
    from sklearn import datasets  # slow to import, and only needed here

    X, y = datasets.load_digits(return_X_y=True)
    return arrays(X[rows].astype(np.uint8), y[rows].astype(np.uint8))


def load_donuts(seed: int) -> Table:
    """Make two noisy donuts around one centre, and two columns that are correlated with them: 2000 rows, shuffled.

    Columns 0 and 1 are the position, with a uniform angle and a radius of 1 (label 0) or 2.5 (label 1), whose standard
    deviation is 0.3. Columns 2 and 3 are each one coordinate minus half of the other, plus noise with a standard
    deviation of 0.04. The cross term makes the rows vary more than twice as much in one of two directions as in the
    other, so that the reference network learns as slowly as published. A part of the remaining cost comes from
    the noise, which two features cannot represent. A larger part comes from the nonlinearity of the sigmoid.
    """
    random = np.random.default_rng(seed)
    y = random.permutation(np.repeat(np.array([0, 1], np.uint8), 1000))
    angle = random.uniform(0, 2 * np.pi, len(y))
    radius = np.array([1.0, 2.5])[y] + random.normal(0, 0.3, len(y))
    position = radius[:, np.newaxis] * np.column_stack([np.cos(angle), np.sin(angle)])
    correlated = position - position[:, ::-1] / 2 + random.normal(0, 0.04, position.shape)
    return arrays(np.hstack([position, correlated]).astype(np.float32), y)


@dataclass(frozen=True)
class Clusters:
    """Ten overlapping clusters in 16 dimensions, multiplied by a random matrix, plus noise, in [0, 1].

    Every tile of rows has its own random stream, so that a row depends only on the seed, its number and the width.
    """

    seed: int
    n_inputs: int
    dtype: np.dtype

    @property
    def height(self) -> int:
        """Number of rows of a tile."""
        return max(1, min(256, (1 << 22) // self.n_inputs))

    def stream(self, *key: int) -> np.random.Generator:
        """Return the random generator for one purpose."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    @cached_property
    def centres(self) -> np.ndarray:
        """Centre of each cluster (10, 16)."""
        return self.stream(0).standard_normal((10, 16), np.float32)

    @cached_property
    def mixing(self) -> np.ndarray:
        """Matrix that maps 16 dimensions to the columns."""
        return self.stream(1).standard_normal((16, self.n_inputs), np.float32) * np.float32(0.025)

    def tile(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Make the rows of a tile and their labels."""
        random = self.stream(2, number)
        y = random.integers(0, 10, self.height, np.uint8)
        X = (self.centres[y] + random.standard_normal((self.height, 16), np.float32)) @ self.mixing
        X += random.random(X.shape, np.float32) * np.float32(0.07) + np.float32(0.465)
        return as_dtype(np.clip(X, 0, 1, out=X), self.dtype), y

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Make some rows and their labels."""
        first = start // self.height
        last = math.ceil(stop / self.height)
        X, y = zip(*map(self.tile, range(first, last)), strict=True)
        rows = slice(start - first * self.height, stop - first * self.height)
        return np.concatenate(X)[rows], np.concatenate(y)[rows]


def load_synthetic(seed: int, n_rows: int, n_inputs: int, dtype: np.dtype) -> Table:
    """Make a table of clusters.

    For integers, values are multiplied by the largest integer of the dtype, but at most by 65535. For bool they are
    compared with 0.5.
    """
    return Table(n_rows, n_inputs, dtype, Clusters(seed, n_inputs, dtype).read)


def as_dtype(X: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert values in [0, 1] to another dtype."""
    if dtype.kind == "b":
        return X > 0.5
    if dtype.kind in "iu":
        X = np.rint(X * np.float32(min(65535, np.iinfo(dtype).max)))
    return X.astype(dtype, copy=False)


# ---- assignment of rows to files


def shards(folder: Path, stem: str, count: int) -> tuple[Path, ...]:
    """Return the paths of `count` shards."""
    return tuple(folder / f"{stem}-{index}.h5" for index in range(count))


def fashion(folder: Path, part: str) -> Piece:
    """Plan the 60,000 rows of `train` in six shards, or the 10,000 test rows of `t10k` in one shard."""
    if part == "train":
        paths = shards(folder, "fashion-mnist-train", 6)
        name = "fashion-mnist"
    else:
        paths = shards(folder, "test", 1)
        name = "fashion-mnist-test"
    return Piece(paths, {"set": name}, lambda: load_fashion(part))


def digits(folder: Path) -> list[Piece]:
    """Plan the digits: the first 1500 for training, the other 297 for tests in a subdirectory."""
    train = shards(folder, "digits-train", 3)
    test = shards(folder / "digits-test", "test", 1)
    return [
        Piece(train, {"set": "digits"}, lambda: load_digits(slice(0, 1500))),
        Piece(test, {"set": "digits-test"}, lambda: load_digits(slice(1500, None))),
    ]


def default(folder: Path, force: bool) -> list[Piece]:
    """Plan Fashion-MNIST if its files or all shards made from them exist, otherwise the digits."""
    pieces = [fashion(folder, "train"), fashion(folder / "fashion-mnist-test", "t10k")]
    sources = [*fashion_files("train"), *fashion_files("t10k")]
    if all(path.exists() for path in sources) or not (force or any(piece.unfinished() for piece in pieces)):
        return pieces
    print(f"no Fashion-MNIST in {FASHION_FOLDER}: using scikit-learn's digits instead; {FASHION_HINT}")
    return digits(folder)


def random_piece(folder: Path, options: argparse.Namespace) -> Piece:
    """Plan rows that are computed from a seed: donuts or synthetic."""
    parameters = {"set": options.set, "seed": options.seed}
    if options.set == "donuts":
        return Piece(shards(folder, "donuts", 1), parameters, lambda: load_donuts(options.seed))
    parameters |= {name: getattr(options, name) for name in SYNTHETIC}
    table = options.seed, options.rows, options.columns, np.dtype(options.dtype)
    paths = shards(folder, "synthetic", options.shards)
    return Piece(paths, parameters, lambda: load_synthetic(*table), options.layout)


def plan(options: argparse.Namespace) -> tuple[list[Piece], set[Path]]:
    """Return the requested pieces, and the directories that must not contain other shards of this script."""
    folder = options.output or Path("data", "" if options.set == "default" else options.set)
    if options.set == "default":
        return default(folder, options.force), {folder, folder / "fashion-mnist-test", folder / "digits-test"}
    if options.set == "digits":
        return digits(folder), {folder, folder / "digits-test"}
    if options.set in ("donuts", "synthetic"):
        return [random_piece(folder, options)], {folder}
    return [fashion(folder, "train" if options.set == "fashion-mnist" else "t10k")], {folder}


# ---- files


def recipe_of(path: Path) -> str | None:
    """Return the recipe that is stored in a shard; None if it is not a complete file of this script."""
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("recipe")) if str(file.attrs.get("made_by")) == MADE_BY else None
    except (OSError, RuntimeError):
        return None


def storage(piece: Piece, table: Table, n_rows: int) -> tuple[dict, int]:
    """Return the storage of `X`, as keywords of `create_dataset`, and how many rows to write at a time."""
    most = max(1, BLOCK_BYTES // (4 * table.n_inputs))
    if piece.layout == "contiguous":
        return {}, most
    width = min(25, table.n_inputs) if piece.layout == "columns" else table.n_inputs
    height = max(1, min(n_rows, most, CHUNK_BYTES // (width * table.dtype.itemsize)))
    compression = {"chunked": None, "columns": "gzip"}.get(piece.layout, piece.layout)
    # Blocks consist of whole chunks. If two blocks shared a chunk, it would be compressed twice.
    return {"chunks": (height, width), "compression": compression}, most // height * height


@contextlib.contextmanager
def delay_interrupt() -> Iterator[None]:
    """Delay Ctrl-C until a write is complete. An exception in a weak reference callback of h5py would be lost."""
    pressed = []
    handler = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed and callable(handler):  # not if the caller ignores SIGINT
        handler(signal.SIGINT, None)


def fill(file: h5py.File, piece: Piece, table: Table, first: int, end: int) -> None:
    """Write rows `first` to `end` of the table into an empty file, block by block."""
    n_rows = end - first
    keywords, step = storage(piece, table, n_rows)
    X = file.create_dataset("X", (n_rows, table.n_inputs), table.dtype, **keywords)
    y = file.create_dataset("y", (n_rows,), np.uint8)
    row_id = file.create_dataset("row_id", (n_rows,), np.int64)
    for start in range(0, n_rows, step):
        stop = min(start + step, n_rows)
        rows, labels = table.read(first + start, first + stop)
        with delay_interrupt():
            X[start:stop] = rows
            y[start:stop] = labels
            row_id[start:stop] = np.arange(first + start, first + stop)


def write_shard(piece: Piece, index: int, table: Table) -> None:
    """Write one shard under a temporary name in the same directory, then rename it."""
    path = piece.paths[index]
    first = table.n_rows * index // len(piece.paths)
    end = table.n_rows * (index + 1) // len(piece.paths)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        need_room(path, (end - first) * (table.n_inputs * table.dtype.itemsize + 9))
        with h5py.File(partial, "w") as file:
            file.attrs["made_by"] = MADE_BY
            file.attrs["recipe"] = piece.recipe(index)
            fill(file, piece, table, first, end)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # HDF5 raises either after a failed write
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def cannot_write(path: Path, error: Exception) -> MakeDataError:
    """Return the error of a failed write."""
    cause = os.strerror(error.errno) if getattr(error, "errno", None) else error
    return MakeDataError(CANNOT_CREATE, f"{path}: cannot be written ({cause}); choose another directory with --output")


def need_room(path: Path, n_bytes: int) -> None:
    """Stop if the disk has too little space. HDF5 ends the process if a disk fills up while it writes chunks."""
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        room = f"needs {n_bytes / 1e6:,.1f} MB, but only {free / 1e6:,.1f} MB are free"
        raise MakeDataError(CANNOT_CREATE, f"{path}: {room}; free some space or choose another --output")


def clear(folders: set[Path], keep: set[Path]) -> None:
    """Remove shards of this script that are not in `keep`; print a note about other files."""
    for path in sorted(path for folder in folders for path in folder.glob("*.h5") if path not in keep):
        if recipe_of(path) is None:
            print(f"note: {path} was not written by this script and is kept")
            continue
        path.unlink()
        print(f"removed {path}, which belongs to another set")
        if not any(each.parent == path.parent for each in keep):
            with contextlib.suppress(OSError):  # it is not empty
                path.parent.rmdir()


def make(pieces: list[Piece], folders: set[Path], force: bool) -> None:
    """Write the missing shards. Every source is read and checked before a file is removed or written."""
    work = []
    for piece in pieces:
        todo = list(range(len(piece.paths))) if force else piece.unfinished()
        refuse_foreign_files(piece, todo)
        table = load_checked(piece) if todo else None
        work.append((piece, todo, table))
    clear(folders, {path for piece in pieces for path in piece.paths})
    for piece, todo, table in work:
        if table is not None:
            for index in todo:
                write_shard(piece, index, table)
        print(summary(piece, table))


def refuse_foreign_files(piece: Piece, todo: list[int]) -> None:
    """Stop if a file that this script did not make has the name of a shard."""
    for index in todo:
        path = piece.paths[index]
        if os.path.lexists(path) and recipe_of(path) is None:
            sentence = f"{path}: exists, but is not a complete file of this script; move it, or choose another --output"
            raise MakeDataError(CANNOT_CREATE, sentence)


def load_checked(piece: Piece) -> Table:
    """Load the table of a piece; stop if it has fewer rows than shards."""
    table = piece.load()
    if table.n_rows < len(piece.paths):
        sentence = f"{piece.parameters['set']}: {table.n_rows} rows, expected {len(piece.paths)} or more, one per shard"
        raise MakeDataError(BAD_DATA, sentence)
    return table


def summary(piece: Piece, table: Table | None) -> str:
    """Return one line about the rows and files of a piece."""
    name = piece.parameters["set"]
    first = piece.paths[0]
    count = len(piece.paths)
    where = f"{first} to {piece.paths[-1].name}" if count > 1 else f"{first}"
    if table is None:
        return f"{name}: {where} exists; use --force to write it again"
    rows = f"{table.n_rows:,} rows x {table.n_inputs} columns of {table.dtype}, labels y, row_id"
    size = sum(path.stat().st_size for path in piece.paths) / 1e6
    return f"{name}: {rows} -> {where} ({size:.1f} MB)"


# ---- the command line


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser("make_data.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("set", nargs="?", default="default", choices=SETS, help="data set (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="directory of the shards (default: data, or data/SET)")
    parser.add_argument("--seed", type=int, default=0, help="seed of donuts and synthetic rows (default: 0)")
    parser.add_argument("--force", action="store_true", help="write the set even if it exists")
    group = parser.add_argument_group("options of synthetic")
    for name in ("rows", "columns", "shards"):
        group.add_argument(f"--{name}", type=int, help=f"(default: {SYNTHETIC[name]})")
    for name, choices in (("dtype", DTYPES), ("layout", LAYOUTS)):
        group.add_argument(f"--{name}", choices=choices, help=f"(default: {SYNTHETIC[name]})")
    options = parser.parse_args(argv)
    problems = check(options)
    if problems:
        parser.error("; ".join(problems))
    return options


def check(options: argparse.Namespace) -> list[str]:
    """Set the defaults of the synthetic set; return all problems of the options."""
    set_options = {name for name in SYNTHETIC if getattr(options, name) is not None}
    problems = [] if options.seed >= 0 else ["--seed is negative"]
    if options.set != "synthetic":
        return problems + [f"--{name} can be used with synthetic only" for name in sorted(set_options)]
    vars(options).update({name: value for name, value in SYNTHETIC.items() if name not in set_options})
    limits = {"rows": 2**48, "columns": 2**24, "shards": max(1, options.rows)}
    for name, limit in limits.items():
        if not 1 <= getattr(options, name) <= limit:
            problems.append(f"--{name} is {getattr(options, name)}, expected a number from 1 to {limit}")
    return problems


def main(argv: list[str] | None = None) -> int:
    """Write the set that `argv` names; return an exit code, as listed in the docstring of the module."""
    try:
        options = parse(argv)
    except SystemExit as stop:  # argparse has printed the help (0) or an error (2)
        return USAGE if stop.code else 0
    try:
        make(*plan(options), options.force)
    except MakeDataError as error:
        print(f"make_data: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"make_data: {error}", file=sys.stderr)
        return CANNOT_CREATE
    except KeyboardInterrupt:
        print("make_data: interrupted. Run the same command again to write the missing shards.", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
