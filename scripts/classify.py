"""Train a scikit-learn classifier on features, and say how good they are.

    python scripts/classify.py                     features/, labels "y"
    python scripts/classify.py --features compact --labels y --test more

The same classifier is trained on the raw columns and on as many principal components, on the same rows: a logistic
regression on standardized columns, until it has converged. Rows that do not fit in the memory budget are learnt from
out of core. Without --test, a fifth of the rows of every class is held out.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where any Python finds what the next line names
import pipeline.installed  # noqa: F401  which ends with a sentence what cannot go on

# isort: split

import argparse
import logging
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from pipeline.errors import DataError, ShardpressError, UsageError, counted, shown
from pipeline.features import Features, open_features
from pipeline.formats import missing_value
from pipeline.model import Model, load_model
from pipeline.settings.kinds import parse_bytes
from pipeline.signals import Stopped, leave, stoppable
from scripts.classifiers import compare
from scripts.representations import LEFT_OUT, Rows, pieces

log = logging.getLogger(__name__)

HELD_OUT = 0.2
PIECES_A_BUDGET = 128


def main(argv: Sequence[str] | None = None) -> int:
    """Print the accuracies and return the exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    told = logging.getLogger("pipeline.progress")
    level = told.level
    told.setLevel(logging.INFO)
    with stoppable():
        try:
            report(_parser().parse_args(argv))
        except ShardpressError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return error.exit_code
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 128 + stopped.number
        finally:
            told.setLevel(level)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See --help.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "--features",
        metavar="DIRECTORY",
        default="features",
        help="output directory of extract.py (default: %(default)s)",
    )
    parser.add_argument(
        "--test", metavar="DIRECTORY", help="the same with the features of test rows (default: hold out a fifth)"
    )
    parser.add_argument(
        "--labels", metavar="NAME", default="y", help="riding dataset with the labels (default: %(default)s)"
    )
    parser.add_argument(
        "--passes",
        metavar="N",
        type=_positive,
        default=2000,
        help="passes over the training rows, at most (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-budget",
        metavar="BYTES",
        type=_bytes,
        default=2 * 2**30,
        help="host memory for rows, like 4GiB (default: 2GiB)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="where all randomness starts (default: 0)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number, 1 or more")
    return int(text)


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def report(options: argparse.Namespace) -> None:
    """Train on three representations of the same rows and print how they compare."""
    directories = [options.features, *filter(None, [options.test])]
    runs, model = [_open(directory) for directory in directories], load_model(options.features)
    for directory, run in zip(directories, runs, strict=True):
        _check_model(directory, run, model, options.features)
    labels = [_labels(directory, run, options.labels) for directory, run in zip(directories, runs, strict=True)]
    present = [_present(run, options.labels) for run in runs]
    codes = np.full(sum(map(len, labels)), LEFT_OUT, dtype=np.int64)
    _, codes[np.concatenate(present)] = classes_of([y[mask] for y, mask in zip(labels, present, strict=True)])
    valid = np.concatenate([run.valid.compute() for run in runs])
    n_bad, n_unlabelled = int((~valid).sum()), int((codes[valid] == LEFT_OUT).sum())
    codes[~valid] = LEFT_OUT
    is_test = np.arange(len(codes)) >= len(labels[0]) if options.test else held_out(codes, options.seed)
    n_classes = _check_classes(options, codes, is_test)
    most_bytes = options.memory_budget // PIECES_A_BUDGET
    cut = pieces(runs[0], directories[0], most_bytes)
    for directory, run in zip(directories[1:], runs[1:], strict=True):
        cut += pieces(run, directory, most_bytes, len(labels[0]))
    rows = Rows(cut, model, codes, is_test)
    outcomes = compare(rows, int(codes.max()) + 1, options.memory_budget, options.passes, options.seed)
    where = f"the {len(rows.test)} rows of {options.test}" if options.test else f"{len(rows.test)} held-out rows"
    print(f"Accuracy of a logistic regression on {where}, {n_classes} classes, {len(rows.train)} training rows:")
    for name, found in outcomes.items():
        doubt = "" if found.converged else f" (not converged: raise --passes from {found.n_passes})"
        print(f"  {found.accuracy:.4f}  on {name}{doubt}")
    if n_bad or n_unlabelled:
        print(f"Left out: {counted(n_bad, 'bad row')}, {counted(n_unlabelled, 'row')} without a label.")


def _open(directory: str) -> Features:
    if Path(directory).is_file():
        raise DataError(
            f"features={shown(directory)}: a file, expected the output directory of a finished run, whose manifest "
            "says where the raw rows lie"
        )
    return open_features(directory)


def _check_model(directory: str, run: Features, model: Model, features: str) -> None:
    if run.manifest["model"] != model.fingerprint:
        raise DataError(
            f"features={shown(directory)}: {run.features.shape[1]} features of another model than that of "
            f"features={shown(features)}, which gives {model.n_features}. Encode these rows with extract.py --model "
            f"{shown(features)}."
        )


# -- labels --------------------------------------------------------------------------------------------------------


def _labels(directory: str, run: Features, name: str) -> np.ndarray:
    if name not in run.riders:
        left_out = run.manifest.get("left_out", {})
        why = f"{name} was left out ({shown(left_out[name])})" if name in left_out else f"left out: {sorted(left_out)}"
        raise DataError(
            f"features={shown(directory)}: no dataset {name!r} rides along, found {sorted(run.riders)}; {shown(why)}. "
            "Name the labels with --labels; extract.py --carry GROUP/NAME has others ride along."
        )
    found = run.riders[name].compute()
    if name in run.categories:
        found = _meant(found, run.categories[name])
    if found.dtype.kind not in "biufOSU":
        raise DataError(f"features={shown(directory)} dataset={name}: {found.dtype}, expected numbers or text")
    if found.dtype.kind == "f":
        odd = np.flatnonzero(np.isfinite(found) & (found != np.floor(found)) | np.isinf(found))
        if len(odd):
            raise DataError(
                f"features={shown(directory)} dataset={name}: {found[odd[0]]} in row {odd[0]}; "
                f"{counted(len(odd), 'row')} without a whole number, expected a number "
                "or text for each class. Name others with --labels."
            )
    return found


def _meant(codes: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """What codes stand for, since each run has its own codes; anything for -1, which `_present` leaves out."""
    if not len(categories):
        return codes
    is_whole = categories.dtype.kind in "biu"
    return (categories if is_whole else categories.astype(object))[codes]  # which holds each text once


def _present(run: Features, name: str) -> np.ndarray:
    """Which rows have a label: where some shards lack it, a mask rides along; of codes, -1 is none."""
    if name in run.categories:
        return np.asarray(run.riders[name].compute()) >= 0
    # Where there was a dataset of this name before, the mask's has an underscore more.
    beside = [each for other, each in run.riders.items() if other.rstrip("_") == f"{name}_present"]
    masks = [each.compute() for each in beside if each.dtype == bool]
    if masks:
        return np.asarray(np.logical_and.reduce(masks))
    found = run.riders[name]
    if found.dtype.kind != "i":
        return np.ones(len(found), dtype=bool)
    return np.asarray(found.compute() != missing_value(found.dtype))  # it stands for one that could not be read


def classes_of(labels: Sequence[np.ndarray]) -> tuple[list[object], np.ndarray]:
    """The classes in order, and each row's number among them: LEFT_OUT where the label is NaN or an empty text.

    Text of any storage is the same text, and a number the same number in any dtype.
    """
    numbers: dict[object, int] = {}
    places = []
    for values in labels:
        found, inverse = _distinct(values)
        places.append(np.array([numbers.setdefault(value, len(numbers)) for value in found], dtype=np.int64)[inverse])
    classes = [value for value in numbers if value is not None]
    rank = {value: i for i, value in enumerate(sorted(classes, key=lambda value: (str(type(value)), value)))}
    order = np.array([LEFT_OUT if value is None else rank[value] for value in numbers], dtype=np.int64)
    return sorted(rank, key=rank.__getitem__), order[np.concatenate(places)]


def _distinct(values: np.ndarray) -> tuple[list[object], np.ndarray]:
    """The values, plain ones, with None for a missing one, and which of them stands where."""
    if values.dtype.kind in "biuf":
        found, inverse = np.unique(values, return_inverse=True)
        return [None if value != value else int(value) for value in found.tolist()], inverse
    numbers: dict[object, int] = {}  # no array of text: its width would be that of the longest one
    inverse = np.fromiter((numbers.setdefault(value, len(numbers)) for value in values.tolist()), np.int64, len(values))
    texts = (value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in numbers)
    return [text.strip() or None for text in texts], inverse


def held_out(codes: np.ndarray, seed: int) -> np.ndarray:
    """Which rows test: a fifth of each class, one at least of a class of two or more, never all."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(codes != LEFT_OUT))
    order = order[np.argsort(codes[order], kind="stable")]
    sizes = np.bincount(codes[order])
    n_wanted = np.where(sizes > 1, np.maximum(1, np.round(HELD_OUT * sizes)), 0)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_test = np.zeros(len(codes), dtype=bool)
    is_test[order[place < n_wanted[codes[order]]]] = True
    return is_test


def _check_classes(options: argparse.Namespace, codes: np.ndarray, is_test: np.ndarray) -> int:
    """How many classes there are to learn."""
    where = f"features={shown(options.features)} dataset={options.labels}"
    train = codes[(codes != LEFT_OUT) & ~is_test]
    n_classes, n_test = len(np.unique(train)), int(((codes != LEFT_OUT) & is_test).sum())
    if n_classes < 2:
        raise DataError(f"{where}: {('no', 'one')[n_classes]} class only among the training rows, expected two or more")
    if 2 * n_classes > len(train):
        raise DataError(
            f"{where}: {n_classes} different values in {len(train)} training rows, expected a class to have a few "
            "rows. Name the labels with --labels."
        )
    if not n_test:
        raise DataError(f"features={shown(options.test)} dataset={options.labels}: no row with a label, expected some")
    if len(np.unique(codes[codes != LEFT_OUT])) > n_classes:
        log.warning("some test rows have labels that no training row has; they count as mistakes")
    return n_classes


if __name__ == "__main__":
    leave(main())
