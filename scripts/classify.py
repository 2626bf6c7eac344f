"""Train classifiers of scikit-learn on features, and print their accuracies. Copy what you need from this example.

    python scripts/classify.py features                        labels in the extra y; a fifth of the rows are test rows
    python scripts/classify.py features --labels cell_type     other labels
    python scripts/classify.py features --test features-test   test rows of another run, which used --model features

The same classifier is also trained on the raw columns of the same rows, and on the same number of principal components.
If the labels are numbers with fractions, or the numbers of --target, ridge regressions are trained, and R2 is printed.
If the run had --fit-on, the rows that it left out are the test rows; with --target alone, the validation rows are. All
rows are held in memory.
"""

import sys
from pathlib import Path

# So that any Python finds the modules below. Your own scripts do not need these lines.
sys.path += [str(Path(__file__).resolve().parents[1] / name) for name in ("pipeline", "kernels")]
import shardpress.setup.installed  # noqa: F401  ends the process with a message if packages are missing

# isort: split

import argparse

import h5py
import numpy as np
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from shardpress import open_features
from shardpress.base.errors import ShardpressError
from shardpress.model.labels import has_label
from shardpress.report.baselines import MIN_TEST_ROWS
from shardpress.result.features import Features, rows_with_value
from shardpress.result.finished import Use
from shardpress.result.records import with_digests


def labels_of(run: Features, name: str, missing: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the label of each row, and the numbers of the rows that have a label and features.

    Rows with the label `missing` have none.
    """
    if name not in run.extras:
        raise SystemExit(f"The run has no extra {name}. Name one of {sorted(run.extras)} with --labels.")
    labels = run.extras[name].compute()
    categories = run.categories.get(name)
    is_usable = run.valid.compute() & rows_with_value(run, name) & has_label(labels, missing, categories)
    if categories is not None:
        labels = categories[labels]
    return labels, np.flatnonzero(is_usable)


def raw_columns(run: Features, numbers: np.ndarray) -> np.ndarray | None:
    """Read rows of the input files, float32 (n_rows, n_columns). None if a dataset is not dense with the rows first."""
    config = run.manifest["config"]
    if config["orientation"] == "columns" or config["match_columns"] == "name":
        return None
    pieces = []
    for _, used in run.result.ranges:
        shard = run.result.by_id[used.shard]
        with h5py.File(shard.path) as file:
            dataset = file[shard.dataset]
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "biuf":
                return None
            rows = dataset[shard.first_row + used.start : shard.first_row + used.stop]
        pieces.append(rows.reshape(len(rows), -1).astype(np.float32))
    raw = np.concatenate(pieces)[numbers]
    if config["missing_value"] is not None:
        raw[raw == np.float32(config["missing_value"])] = np.nan
    return raw


def read(run: Features, labels: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return the features, the raw columns (see `raw_columns`) and the labels of some rows."""
    return run.features[numbers].compute(), raw_columns(run, numbers), labels[numbers]


def are_numbers(run: Features, name: str, labels: np.ndarray) -> bool:
    """Return whether labels are numbers for a regression, not classes."""
    target = run.manifest.get("target")
    if target is not None and target["name"] == name:
        return bool(target["kind"] == "numbers")
    return labels.dtype.kind == "f" and bool((labels % 1).any())


def split(run: Features, classes: np.ndarray | None, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the training rows and of the test rows. Labels of test rows never trained the features."""
    target = run.manifest.get("target")
    if target is not None or run.manifest["config"]["fit_on"] is not None:
        use = run.result.use()[numbers]
        is_test = use > Use.VALIDATION
        if target is not None and not is_test.any():
            is_test = use == Use.VALIDATION  # their labels decide at most which epoch is the best
            if is_test.sum() < MIN_TEST_ROWS:
                raise SystemExit(
                    f"No honest test is possible: the labels {target['name']} of these rows may have trained the "
                    "features. Train on some rows with --fit-on, or encode other rows with --model, and name them with "
                    "--test."
                )
        if is_test.any():
            return numbers[~is_test], numbers[is_test]
    train, test = train_test_split(numbers, test_size=0.2, stratify=classes, random_state=0)
    return np.sort(train), np.sort(test)


def open_test_rows(directory: str, run: Features) -> Features:
    """Open features of other rows, encoded with the model of a run."""
    other = open_features(directory)
    known = shard_digests(run) | set(run.result.facts.model.trained)
    is_same_model = other.manifest["model"] == run.manifest["model"]
    if not is_same_model or other.manifest["config"]["model"] is None or known & shard_digests(other):
        raise SystemExit(f"{directory}: expected features of other rows, encoded with --model and the same model.")
    return other


def shard_digests(run: Features) -> set[str]:
    """Return the digests of the rows of each input file, which are the same for a copy of the file."""
    result = run.result
    shards = with_digests(result.shards, result.parts)
    return {shard.rows for shard in shards if shard.rows is not None}


def classifier(*steps: object) -> Pipeline:
    """Return a logistic regression on standardized columns, after other steps."""
    return make_pipeline(*steps, StandardScaler(), LogisticRegression(max_iter=2000, tol=1e-3))


def regression(*steps: object) -> Pipeline:
    """Return a ridge regression on standardized columns, after other steps."""
    return make_pipeline(*steps, StandardScaler(), RidgeCV(np.logspace(-3, 4, 8)))


def main(argv: list[str] | None = None) -> None:
    """Train the classifiers, and print their accuracies on the test rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", metavar="DIR", nargs="?", default="features", help="output directory of a run")
    parser.add_argument("--test", metavar="DIR", help="output directory with the test rows")
    parser.add_argument("--labels", metavar="NAME", default="y", help="extra with the labels (default: y)")
    options = parser.parse_args(argv)

    run = open_features(options.features)
    missing = run.manifest["config"].get("missing_label")
    labels, numbers = labels_of(run, options.labels, missing)
    is_regression = are_numbers(run, options.labels, labels[numbers])
    model = regression if is_regression else classifier
    if options.test:
        other = open_test_rows(options.test, run)
        x, raw, y = read(run, labels, numbers)
        x_test, raw_test, y_test = read(other, *labels_of(other, options.labels, missing))
    else:
        train_numbers, test_numbers = split(run, None if is_regression else labels[numbers], numbers)
        x, raw, y = read(run, labels, train_numbers)
        x_test, raw_test, y_test = read(run, labels, test_numbers)
    print(f"{'R2' if is_regression else 'Accuracy'} on {len(y_test)} test rows, after training on {len(y)} other rows:")

    def report(name: str, pipeline: Pipeline, rows: np.ndarray, test_rows: np.ndarray) -> None:
        if sys.stdout.isatty():  # this can take a minute; the score replaces the dots
            print(f"  ......  on {name}", end="\r", flush=True)
        score = pipeline.fit(rows, y).score(test_rows, y_test)
        print(f"  {score:.4f}  on {name}", flush=True)

    report(f"{x.shape[1]} features", model(), x, x_test)
    if raw is None or raw_test is None:
        print("Raw columns are not compared: this example reads only dense datasets with the rows first.")
        return
    n = min(x.shape[1], *raw.shape)
    fill = SimpleImputer(keep_empty_features=True)
    pca = PCA(n, random_state=0)
    report(f"{n} principal components", model(fill, pca), raw, raw_test)
    report(f"{n} components of standardized columns", model(fill, StandardScaler(), pca), raw, raw_test)
    report(f"{raw.shape[1]} raw columns", model(fill), raw, raw_test)


if __name__ == "__main__":
    try:
        main()
    except ShardpressError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
