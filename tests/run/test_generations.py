"""Tests of generations: ``--retrain`` publishes the next one, and maps lead back to the features of earlier ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.base.errors import DataError, NoInput
from shardpress.commands.registry import main
from shardpress.report.page.build import page_of, text_of
from shardpress.report.summary import report_of
from shardpress.report.verify import verify
from shardpress.result.features import open_features
from shardpress.result.finished import Result
from tests.support.helpers import features_in
from tests.support.hostilemodels import write_model
from tests.support.interruptions import flip
from tests.support.protocol import invalid_entries, leftovers
from tests.support.standin import Workspace

pytestmark = pytest.mark.slow

RETRAIN = ("--retrain", "--seed", "1")


@pytest.fixture
def runs(empty: Workspace) -> Workspace:
    """Return a data set whose four columns depend on two causes, which two features can represent."""
    add(empty, "0.h5", n_rows=40)
    add(empty, "1.h5", n_rows=30)
    return empty


@pytest.fixture
def first(runs: Workspace, out: Path) -> Path:
    """Return the output directory of the first generation."""
    assert runs.run(out) == 0
    return out


def add(runs: Workspace, name: str, n_rows: int = 12) -> Path:
    causes = np.random.default_rng(n_rows).uniform(size=(n_rows, 2))
    rows = causes @ np.array([[1.0, 0.5, -0.5, 0.0], [0.0, 0.5, 0.5, 1.0]])
    return runs.add_shard(name, rows.astype(np.float32))


def residual(mapped: np.ndarray, expected: np.ndarray) -> float:
    """Return the unexplained share of the variance."""
    return float(np.square(mapped - expected).sum() / np.square(expected - expected.mean(axis=0)).sum())


def test_a_new_model_becomes_the_next_generation(runs: Workspace, first: Path) -> None:
    add(runs, "2.h5", n_rows=8)
    assert runs.run(first, "--append") == 0
    encoder = Result.open(first).encoder
    before = features_in(first)
    copy = shutil.copytree(first, runs.folder / "copy")

    assert runs.run(first, *RETRAIN) == 0
    result = Result.open(first)
    assert (result.facts.model.generation, result.facts.appends) == (2, [])
    np.testing.assert_array_equal(features_in(first, generation=1), before)
    assert features_in(first, generation=1, appends=1).shape == (8, 2)
    assert residual(features_in(first), before) > 0.5
    mapped = features_in(first, as_of=1)
    assert residual(mapped, before) < 0.1
    assert open_features(first, as_of=1).manifest["model"] == encoder
    np.testing.assert_array_equal(features_in(first, as_of=2), features_in(first))
    np.testing.assert_array_equal(features_in(first, as_of=copy), mapped)

    add(runs, "3.h5", n_rows=9)
    assert runs.run(first, *RETRAIN[1:], "--append") == 0
    result = Result.open(first)
    assert (result.facts.model.generation, len(result.facts.appends)) == (2, 1)
    np.testing.assert_array_equal(features_in(first, generation=1), before)
    np.testing.assert_array_equal(features_in(first, as_of=1)[: len(mapped)], mapped)
    assert features_in(first, as_of=1).shape == (87, 2)
    assert invalid_entries(first) == leftovers(first) == []


def test_old_generations_are_removed_but_maps_lead_to_them(runs: Workspace, first: Path) -> None:
    expected = features_in(first)
    for seed in ("1", "2"):
        assert runs.run(first, "--retrain", "--seed", seed) == 0
    assert [each.generation for each in Result.open(first).facts.model.generations] == [2]
    assert len(features_in(first, generation=2)) == 70
    with pytest.raises(DataError, match="generation=1"):
        open_features(first, generation=1)
    assert residual(features_in(first, as_of=1), expected) < 0.2
    n_parts = len(list((first / "parts").iterdir()))
    assert runs.run(first, "--retrain", "--seed", "3", "--keep-generations", "1") == 0
    assert Result.open(first).facts.model.generations == []
    assert len(list((first / "parts").iterdir())) == n_parts // 2
    assert features_in(first, as_of=2).shape == (70, 2)


def test_without_a_map_earlier_features_are_refused(
    runs: Workspace, first: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A classifier of the first model must not get features of another one under the same number."""
    overwritten = shutil.copytree(first, runs.folder / "overwritten")
    assert runs.run(overwritten, "--overwrite", "--seed", "1") == 0
    assert len(features_in(overwritten, as_of=2)) == 70
    for path in list(runs.shards.iterdir()):
        path.unlink()
    add(runs, "new.h5", n_rows=50)  # without common rows, there is no map
    assert runs.run(first, *RETRAIN, "--drop-missing") == 0
    assert any(record.levelname == "WARNING" and "no map" in record.message for record in caplog.records)
    for output in (overwritten, first):
        with pytest.raises(DataError, match="as_of=1"):
            open_features(output, as_of=1)


# -- other output directories --------------------------------------------------------------------------------------


def test_features_can_be_read_as_those_of_another_output(runs: Workspace, first: Path) -> None:
    other = runs.folder / "other"
    path = runs.folder / "map.npz"
    assert runs.run(other, "--seed", "1") == 0
    for outputs in (other, [first, other]):
        with pytest.raises(DataError, match=re.escape(f"shardpress compare {first} {other} --map ")):
            open_features(outputs, as_of=first)
    assert main(["compare", str(first), str(other), "--map", str(path)]) == 0
    assert residual(features_in(other), features_in(first)) > 0.5
    assert residual(features_in(other, as_of=path), features_in(first)) < 0.1
    np.testing.assert_array_equal(features_in(first, as_of=path), features_in(first))
    np.testing.assert_array_equal(features_in(first, as_of=first), features_in(first))
    assert open_features([first, other], as_of=path).features.shape == (140, 2)


# -- damaged files -------------------------------------------------------------------------------------------------


def test_a_damaged_earlier_result_harms_only_readers_of_it(runs: Workspace, first: Path) -> None:
    part = Result.open(first).parts[0].file
    assert runs.run(first, *RETRAIN) == 0
    assert not verify(str(first)).faults
    before = features_in(first)
    flip(first / part)
    assert [fault.file for fault in verify(str(first)).faults] == [part]
    flip(first / part)
    flip(first / "generation-1.h5")
    with pytest.raises(DataError):
        open_features(first, generation=1)
    assert [fault.file for fault in verify(str(first)).faults] == ["generation-1.h5"]
    add(runs, "2.h5")
    n_parts = len(list((first / "parts").iterdir()))
    assert runs.run(first, *RETRAIN[1:], "--append") == 0
    np.testing.assert_array_equal(features_in(first)[:70], before)
    assert len(list((first / "parts").iterdir())) > n_parts, "parts that the damaged file may name stay"


def test_another_earlier_result_is_refused_and_all_parts_stay(
    runs: Workspace, first: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = features_in(first)
    for seed in ("1", "2"):
        assert runs.run(first, "--retrain", "--seed", seed, "--keep-generations", "5") == 0
    path = first / "generation-1.h5"
    whole = path.read_bytes()
    files = set((first / "parts").iterdir())
    for other in (first / "generation-2.h5", write_model(runs.folder)):
        shutil.copy(other, path)
        with pytest.raises((DataError, NoInput), match=re.escape(str(path))):
            open_features(first, generation=1)
        assert [fault.file for fault in verify(str(first)).faults] == [path.name]
        caplog.clear()
        add(runs, f"new {other.name}")
        assert runs.run(first, "--append") == 0
        assert any(record.levelname == "WARNING" and str(path) in record.message for record in caplog.records)
        assert files <= set((first / "parts").iterdir())
    path.write_bytes(whole)
    np.testing.assert_array_equal(features_in(first, generation=1), before)


# -- what a classifier keeps ---------------------------------------------------------------------------------------


def test_the_report_says_what_a_classifier_keeps(runs: Workspace, out: Path) -> None:
    """Rows of a file without labels belong to no class."""
    for name, n_rows in (("0.h5", 140), ("1.h5", 130)):
        with h5py.File(add(runs, name, n_rows), "r+") as file:
            file["y"][...] = file["X"][:, 0] > 0.5
    with h5py.File(add(runs, "2.h5", 120), "r+") as file:
        del file["y"]
    assert runs.run(out) == 0
    assert runs.run(out, *RETRAIN) == 0
    (found,) = Result.open(out).facts.model.maps
    assert found.classifier is not None
    assert found.classifier.labels == "y"
    assert found.classifier.n_test == pytest.approx(90, abs=10)  # a third of the rows with a label
    assert found.classifier.mapped > 0.95 * found.classifier.accuracy > 0.8
    assert "accuracy of mapped features" in text_of(page_of(report_of(Result.open(out))))
