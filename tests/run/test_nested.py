"""Tests of `--nested`: the first features can be read and used without the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from shardpress import cli
from shardpress.commands.table import main
from shardpress.errors import DataError
from shardpress.features import open_features
from shardpress.result import load_model
from tests.support.helpers import write_shard

pytestmark = [pytest.mark.compiler, pytest.mark.process, pytest.mark.slow]

NESTED = ["--nested", "yes", "--n-features", "24", "--epochs", "10", "--scale", "range"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a shard of digits, and the features of a nested run."""
    folder = tmp_path_factory.mktemp("nested")
    write_shard(folder / "digits.h5", load_digits().data, extras={"y": load_digits().target})
    assert run(folder, "out", *NESTED) == 0
    return folder


def run(folder: Path, output: str, *flags: str) -> int:
    return cli.main("", ["--input", str(folder / "digits.h5"), "--output", str(folder / output), *flags])


def test_first_features_reconstruct_rows_better_than_components(folder: Path) -> None:
    model = load_model(folder / "out")
    assert (model.is_nested, model.network.nested, model.network.code) == (True, False, "linear")
    scaled = model.scaler.transform(load_digits().data).astype(np.float64)
    features = open_features(folder / "out").features.compute().astype(np.float64)
    pca = PCA(24).fit(scaled)
    scores = pca.transform(scaled)
    for n in (8, 16, 24):
        first = np.where(np.arange(24) < n, features, 0)
        error = np.square(model.decode(first) - scaled).mean()
        of_components = np.square(scores[:, :n] @ pca.components_[:n] + pca.mean_ - scaled).mean()
        assert error < 0.97 * of_components


def test_first_features_can_be_read_or_written_alone(folder: Path) -> None:
    whole = open_features(folder / "out")
    first = open_features(folder / "out", n_features=8)
    np.testing.assert_array_equal(first.features.compute(), whole.features.compute()[:, :8])
    assert first.extras.keys() == whole.extras.keys()
    assert run(folder, "first", "--model", str(folder / "out"), "--n-features", "8") == 0
    written = open_features(folder / "first").features.compute()
    np.testing.assert_allclose(written, first.features.compute(), atol=1e-5)
    assert main(["verify", str(folder / "first")]) == 0
    both = open_features([folder / "out", folder / "out"], n_features=8)
    assert both.features.shape == (2 * len(load_digits().data), 8)
    with pytest.raises(DataError, match="24"):
        open_features(folder / "out", n_features=25)
    assert run(folder, "more", "--model", str(folder / "out"), "--n-features", "25") == 78


def test_first_features_of_another_model_are_refused(folder: Path) -> None:
    assert run(folder, "plain", "--n-features", "24", "--epochs", "1") == 0
    with pytest.raises(DataError, match="--nested"):
        open_features(folder / "plain", n_features=8)
    assert run(folder, "less", "--model", str(folder / "plain"), "--n-features", "8") == 78
