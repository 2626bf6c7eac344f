"""Read the outputs of scenarios with the code of a tree, whatever format it stores them in.

The golden set starts this program with the interpreter of each tree, so it must import only names that both trees have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shardpress import TiedAutoencoder, open_features

_DATA_ERROR = 65  # exit code of the error about unexpected data


def arrays_of(output: Path, reads: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return all arrays of an output directory by name, for the arguments of each call of ``open_features``."""
    arrays: dict[str, np.ndarray] = {}
    for arguments in reads:
        prefix = "".join(f"{name}={value}/" for name, value in arguments.items())
        opened = open_features(output, **arguments)
        arrays[f"{prefix}features"] = opened.features.compute()
        arrays[f"{prefix}valid"] = opened.valid.compute()
        for name, values in opened.extras.items():
            arrays[f"{prefix}extras/{name}"] = _plain(values.compute())
        for name, categories in opened.categories.items():
            arrays[f"{prefix}categories/{name}"] = _plain(categories)
    return arrays


def arrays_of_model(output: Path) -> dict[str, np.ndarray]:
    """Return what the model of a run computes for some rows. Every weight contributes to it."""
    try:
        estimator = TiedAutoencoder.from_run(output)
    except Exception as error:  # an estimator would round the rows of this model
        # Other commits may have the class of this error in another module.
        if getattr(error, "exit_code", None) != _DATA_ERROR:
            raise
        return {"model/is_refused": np.array(True)}
    arrays = {"model/n_features_in": np.array(estimator.n_features_in_)}
    if hasattr(estimator, "feature_names_in_"):
        arrays["model/feature_names_in"] = _plain(estimator.feature_names_in_)
    rows = np.random.default_rng(0).random((16, estimator.n_features_in_))
    arrays["model/transform"] = estimator.transform(rows)
    arrays["model/score_samples"] = estimator.score_samples(rows)
    if estimator.get_params()["output_layer"] == "code":
        arrays["model/inverse_transform"] = estimator.inverse_transform(arrays["model/transform"])
    return arrays


def _plain(values: np.ndarray) -> np.ndarray:
    """Return strings as an array that can be stored without pickles."""
    return values.astype(str) if values.dtype == object else values


def main(output: str, reads: str, target: str) -> None:
    """Write the arrays to a file of NumPy. `reads` is JSON."""
    folder = Path(output)
    np.savez(target, **arrays_of(folder, json.loads(reads)), **arrays_of_model(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
