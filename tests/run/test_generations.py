"""Tests of generations: ``--retrain`` publishes the next one, and maps lead back to the features of earlier ones."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.commands.table import main
from shardpress.errors import DataError
from shardpress.features import open_features
from shardpress.interop.estimator import TiedAutoencoder
from shardpress.interop.export import export
from shardpress.report.page.build import page_of, text_of
from shardpress.report.verify import verify
from shardpress.result import INDEX, Result, result_bytes
from tests.support.faulty import RecordingDisk
from tests.support.helpers import write_shard
from tests.support.interruptions import flip, stamps
from tests.support.soak_protocol import invalid_entries, leftovers, run_seen_by_readers
from tests.support.standin import Workspace

pytestmark = pytest.mark.slow

RETRAIN = ("--retrain", "--seed", "1")


@pytest.fixture
def runs(make_workspace: Callable[..., Workspace]) -> Workspace:
    """Return a data set whose four columns depend on two causes, which two features can represent."""
    runs = make_workspace()
    add(runs, "0.h5", n_rows=40)
    add(runs, "1.h5", n_rows=30)
    return runs


@pytest.fixture
def first(runs: Workspace, out: Path) -> Path:
    """Return the output directory of the first generation."""
    assert runs.run(out) == 0
    return out


def add(runs: Workspace, name: str, n_rows: int = 12) -> Path:
    causes = np.random.default_rng(n_rows).uniform(size=(n_rows, 2))
    rows = causes @ np.array([[1.0, 0.5, -0.5, 0.0], [0.0, 0.5, 0.5, 1.0]])
    return runs.add_shard(name, rows.astype(np.float32))


def features(output: Path, **options: object) -> np.ndarray:
    return np.asarray(open_features(output, **options).features.compute())  # type: ignore[arg-type]


def residual(mapped: np.ndarray, expected: np.ndarray) -> float:
    """Return the unexplained share of the variance."""
    return float(np.square(mapped - expected).sum() / np.square(expected - expected.mean(axis=0)).sum())


def test_a_new_model_becomes_the_next_generation(runs: Workspace, first: Path) -> None:
    before = features(first)
    model = Result.open(first).encoder
    add(runs, "2.h5")
    assert runs.run(first, *RETRAIN) == 0
    result = Result.open(first)
    assert result.facts.generation == 2
    assert result.encoder != model
    assert features(first).shape == (82, 2)
    np.testing.assert_array_equal(features(first, generation=1), before)
    np.testing.assert_array_equal(features(first, generation=2), features(first))
    assert run_seen_by_readers(first) is not None
    assert invalid_entries(first) == leftovers(first) == []


def test_features_can_be_read_as_those_of_an_earlier_generation(runs: Workspace, first: Path) -> None:
    before = features(first)
    assert runs.run(first, *RETRAIN) == 0
    assert residual(features(first), before) > 0.5
    assert residual(features(first, as_of=1), before) < 0.1
    np.testing.assert_array_equal(features(first, as_of=2), features(first))
    assert open_features(first, as_of=1).manifest["model"] == open_features(first, generation=1).manifest["model"]


def test_numbers_may_be_integers_of_numpy(runs: Workspace, first: Path) -> None:
    assert runs.run(first, *RETRAIN) == 0
    one = np.int64(1)
    expected = open_features(first, as_of=1)
    found = open_features(first, as_of=one)
    assert type(found.manifest["generation"]) is int
    assert found.manifest == expected.manifest
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(features(first, generation=one), features(first, generation=1))
    mapped = TiedAutoencoder.from_run(first, as_of=one).get_feature_names_out()
    assert len(mapped) == expected.features.shape[1]
    add(runs, "2.h5")
    assert runs.run(first, *RETRAIN[1:], "--append") == 0
    np.testing.assert_array_equal(features(first, appends=one), features(first, appends=1))


def test_the_same_command_again_changes_nothing(runs: Workspace, first: Path) -> None:
    assert runs.run(first, *RETRAIN) == 0
    before = stamps(first)
    recording = RecordingDisk()
    assert runs.run(first, *RETRAIN, disk=recording) == 0
    assert recording.calls == []
    assert stamps(first) == before


def test_without_results_a_run_trains_the_first_generation(runs: Workspace, out: Path) -> None:
    assert runs.run(out, "--retrain") == 0
    assert Result.open(out).facts.generation == 1


def test_old_generations_are_removed_but_maps_lead_to_them(runs: Workspace, first: Path) -> None:
    expected = features(first)
    for seed in ("1", "2"):
        assert runs.run(first, "--retrain", "--seed", seed) == 0
    result = Result.open(first)
    assert [each.generation for each in result.facts.generations] == [2]
    assert len(features(first, generation=2)) == 70
    with pytest.raises(DataError, match="generation=1"):
        open_features(first, generation=1)
    assert residual(features(first, as_of=1), expected) < 0.2
    assert invalid_entries(first) == leftovers(first) == []
    n_parts = len(list((first / "parts").iterdir()))
    assert runs.run(first, "--retrain", "--seed", "3", "--keep-generations", "1") == 0
    assert Result.open(first).facts.generations == []
    assert len(list((first / "parts").iterdir())) == n_parts // 2
    assert features(first, as_of=2).shape == (70, 2)


def test_a_composed_map_applies_one_after_the_other(runs: Workspace, first: Path) -> None:
    to_first = []
    for seed in ("1", "2"):
        assert runs.run(first, "--retrain", "--seed", seed) == 0
        result = Result.open(first)
        to_first.append(result.map_to(1))
    to_second = result.map_to(2)
    rows = features(first)
    np.testing.assert_allclose(to_first[1].apply(rows), to_first[0].apply(to_second.apply(rows)), atol=1e-5)


def test_more_generations_are_kept_if_requested(runs: Workspace, first: Path) -> None:
    for seed in ("1", "2"):
        assert runs.run(first, "--retrain", "--seed", seed, "--keep-generations", "4") == 0
    assert [each.generation for each in Result.open(first).facts.generations] == [1, 2]


def test_appends_belong_to_the_new_generation(runs: Workspace, first: Path) -> None:
    assert runs.run(first, *RETRAIN) == 0
    earlier = features(first, generation=1)
    mapped = features(first, as_of=1)
    add(runs, "2.h5")
    assert runs.run(first, *RETRAIN[1:], "--append") == 0
    result = Result.open(first)
    assert result.facts.generation == 2
    assert len(result.facts.appends) == 1
    np.testing.assert_array_equal(features(first, generation=1), earlier)
    np.testing.assert_array_equal(features(first, as_of=1)[:70], mapped)
    assert features(first, as_of=1).shape == (82, 2)
    assert invalid_entries(first) == leftovers(first) == []


def test_appends_of_an_earlier_generation_are_kept(runs: Workspace, first: Path) -> None:
    add(runs, "2.h5")
    assert runs.run(first, "--append") == 0
    assert runs.run(first, *RETRAIN) == 0
    assert Result.open(first).facts.appends == []
    assert open_features(first, generation=1, appends=1).features.shape == (12, 2)


def test_moved_files_are_common_rows_in_the_order_of_the_input(runs: Workspace, first: Path) -> None:
    """They are recognized by their contents, so that the map can be fitted."""
    before = features(first)
    add(runs, "2.h5")
    assert runs.run(first, "--append") == 0
    for old, new in (("0.h5", "9.h5"), ("2.h5", "00.h5")):
        (runs.shards / old).rename(runs.shards / new)
    assert runs.run(first, *RETRAIN) == 0
    sizes = [shard.shape[0] for shard in Result.open(first).facts.request.shards]
    assert sizes == [12, 30, 40]
    found = features(first, as_of=1)
    assert residual(np.concatenate([found[42:], found[12:42]]), before) < 0.1


def test_missing_files_are_refused_unless_they_are_dropped(runs: Workspace, first: Path) -> None:
    before = stamps(first)
    (runs.shards / "0.h5").unlink()
    assert runs.run(first, *RETRAIN) == 78
    assert stamps(first) == before
    assert runs.run(first, *RETRAIN, "--drop-missing") == 0
    assert len(features(first)) == 30
    assert len(features(first, generation=1)) == 70


def test_overwritten_results_have_another_number_and_no_map(runs: Workspace, first: Path) -> None:
    """A classifier of the first model must not get features of the second one under the same number."""
    assert runs.run(first, "--overwrite", "--seed", "1") == 0
    with pytest.raises(DataError, match="as_of=1"):
        open_features(first, as_of=1)
    assert len(features(first, as_of=2)) == 70


def test_too_few_common_rows_give_no_map(runs: Workspace, first: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in list(runs.shards.iterdir()):
        path.unlink()
    add(runs, "new.h5", n_rows=50)
    assert runs.run(first, *RETRAIN, "--drop-missing") == 0
    assert any(record.levelname == "WARNING" and "no map" in record.message for record in caplog.records)
    with pytest.raises(DataError, match="as_of=1"):
        open_features(first, as_of=1)


# -- other output directories --------------------------------------------------------------------------------------


def test_features_can_be_read_as_those_of_another_output(runs: Workspace, first: Path) -> None:
    other = runs.folder / "other"
    path = runs.folder / "map.npz"
    assert runs.run(other, "--seed", "1") == 0
    assert main(["compare", str(first), str(other), "--map", str(path)]) == 0
    assert residual(features(other), features(first)) > 0.5
    assert residual(features(other, as_of=path), features(first)) < 0.1
    np.testing.assert_array_equal(features(first, as_of=path), features(first))
    np.testing.assert_array_equal(features(first, as_of=first), features(first))
    add(runs, "2.h5")
    assert runs.run(other, "--seed", "1", "--append") == 0
    n_before = len(features(first))
    assert open_features([first, other], as_of=path).features.shape == (n_before + 82, 2)


def test_an_output_with_the_features_of_a_generation_names_it(runs: Workspace, first: Path) -> None:
    copy = runs.folder / "copy"
    shutil.copytree(first, copy, symlinks=True)
    assert runs.run(first, *RETRAIN) == 0
    np.testing.assert_array_equal(features(first, as_of=copy), features(first, as_of=1))


def test_outputs_without_a_map_are_refused(runs: Workspace, first: Path) -> None:
    other = runs.folder / "other"
    assert runs.run(other, "--seed", "1") == 0
    command = re.escape(f"shardpress compare {first} {other} --map ")
    with pytest.raises(DataError, match=command):
        open_features(other, as_of=first)
    with pytest.raises(DataError, match=command):
        open_features([first, other], as_of=first)


# -- the same encoder again ----------------------------------------------------------------------------------------


def test_a_generation_with_an_earlier_encoder_has_its_features(runs: Workspace, first: Path) -> None:
    before = features(first)
    assert runs.run(first, *RETRAIN, "--keep-generations", "3") == 0
    assert runs.run(first, "--retrain", "--keep-generations", "3") == 0
    result = Result.open(first)
    assert result.facts.generation == 3
    assert result.encoder == result.generation(1).encoder != result.generation(2).encoder
    np.testing.assert_array_equal(features(first), before)
    np.testing.assert_array_equal(features(first, as_of=1), before)  # without a map
    with h5py.File(runs.shards / "0.h5") as file:
        rows = file["X"][()]
    expected = TiedAutoencoder.from_run(first, as_of=3).transform(rows)
    np.testing.assert_array_equal(TiedAutoencoder.from_run(first, as_of=1).transform(rows), expected)

    path = add(runs, "0.h5", n_rows=35)  # replaces the rows of this file
    assert runs.run(first, "--append") == 0
    assert len(features(first)) == 65
    np.testing.assert_array_equal(features(first, generation=1), before)
    np.testing.assert_array_equal(features(first, as_of=1), features(first))
    path.unlink()  # even if the input files are gone
    assert not verify(str(first)).faults
    assert invalid_entries(first) == leftovers(first) == []


# -- damaged files -------------------------------------------------------------------------------------------------


def test_a_damaged_earlier_result_harms_only_readers_of_it(runs: Workspace, first: Path) -> None:
    assert runs.run(first, *RETRAIN) == 0
    before = features(first)
    flip(first / "generation-1.h5")
    with pytest.raises(DataError):
        open_features(first, generation=1)
    assert [fault.file for fault in verify(str(first)).faults] == ["generation-1.h5"]
    add(runs, "2.h5")
    n_parts = len(list((first / "parts").iterdir()))
    assert runs.run(first, *RETRAIN[1:], "--append") == 0
    np.testing.assert_array_equal(features(first)[:70], before)
    assert len(list((first / "parts").iterdir())) > n_parts, "parts that the damaged file may name stay"


# -- features name their encoder -----------------------------------------------------------------------------------


def test_a_part_of_another_encoder_is_a_fault(runs: Workspace, first: Path) -> None:
    """Its digest in the index is right, as if a program had copied the part and its line from another output."""
    other = runs.folder / "other"
    assert runs.run(other, "--seed", "1") == 0
    result = Result.open(first)
    foreign = Result.open(other).parts[0]
    shutil.copy(other / foreign.file, first / foreign.file)
    parts = [foreign, *result.parts[1:]]
    data = result_bytes(lambda file: None, result.model, result.facts, parts, {}, {})
    (first / INDEX).write_bytes(data)
    assert [fault.file for fault in verify(str(first)).faults] == [foreign.file]


def test_damaged_parts_of_an_earlier_generation_are_a_fault(runs: Workspace, first: Path) -> None:
    part = Result.open(first).parts[0].file
    assert runs.run(first, *RETRAIN) == 0
    assert not verify(str(first)).faults
    flip(first / part)
    assert [fault.file for fault in verify(str(first)).faults] == [part]


def test_exported_files_name_the_encoder(runs: Workspace, first: Path) -> None:
    assert runs.run(first, *RETRAIN) == 0
    result = Result.open(first)
    export(first, "npz")
    with np.load(first / "encoder.npz", allow_pickle=False) as encoder:
        assert encoder["encoder"] == result.encoder
    earlier = result.facts.generations[0].model
    for as_of, expected in ((None, result.encoder), (1, earlier)):
        export(first, "anndata", as_of=as_of)
        with h5py.File(first / "features.h5ad") as file:
            assert file["uns/shardpress_encoder"].asstr()[()] == expected
            np.testing.assert_array_equal(file["obsm/X_shardpress"], features(first, as_of=as_of))


def write_categories(path: Path, codes: np.ndarray) -> None:
    """Write a categorical column, as AnnData does."""
    with h5py.File(path, "r+") as file:
        group = file.create_group("obs/y")
        group.attrs["encoding-type"] = "categorical"
        group["codes"] = codes.astype(np.int8)
        group["categories"] = np.array([b"no", b"yes"])


UNLABELLED = {
    "missing": None,
    "NaN": np.full(300, np.nan),
    "text": np.full(300, b""),
    "code": np.full(300, -1),
}


@pytest.mark.process
@pytest.mark.parametrize("name", UNLABELLED)
def test_rows_without_a_label_are_no_class(make_workspace: Callable[..., Workspace], out: Path, name: str) -> None:
    """Half of the files has random labels. The others are far away, so that their rows are easily recognized."""
    runs = make_workspace()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    missing = UNLABELLED[name]
    first = labels.astype(missing.dtype) if missing is not None else labels
    for i, values in enumerate((first, missing)):
        rows = rng.normal(size=(300, 4)).astype(np.float32) + 8 * i
        extras = {} if values is None or name == "code" else {"y": values}
        path = Path(write_shard(runs.shards / f"{i}.h5", rows, extras=extras))
        if name == "code":
            assert values is not None
            write_categories(path, values)
    include = ("--include", "obs/y") if name == "code" else ()
    assert runs.run(out, *include) == 0
    assert runs.run(out, *include, *RETRAIN) == 0
    (found,) = Result.open(out).facts.maps
    assert found.classifier is not None
    assert found.classifier["n_test"] == pytest.approx(100, abs=5)
    for score in ("accuracy", "mapped"):
        assert found.classifier[score] == pytest.approx(0.5, abs=0.15)  # three standard errors


@pytest.mark.parametrize("fit_on", [(), ("--fit-on", "y == 1"), ("--fit-on", "t == 1")])
def test_supervised_features_are_judged_on_rows_that_did_not_train_them(
    make_workspace: Callable[..., Workspace], out: Path, fit_on: tuple[str, ...]
) -> None:
    """Features that were trained with targets of all rows, or of almost all, have no such rows."""
    runs = make_workspace()
    rng = np.random.default_rng(0)
    extras = {"kind": rng.integers(0, 2, 300), "y": np.arange(300) % 2, "t": np.arange(300) % 20 > 0}
    write_shard(runs.shards / "0.h5", rng.normal(size=(300, 4)).astype(np.float32), extras=extras)
    flags = ("--target", "kind", "--optimizer", "momentum", *fit_on)
    assert runs.run(out, *flags) == 0
    assert runs.run(out, *flags, *RETRAIN) == 0
    (found,) = Result.open(out).facts.maps
    has_rows = fit_on == ("--fit-on", "y == 1")
    assert (found.classifier is not None) == has_rows
    assert found.classifier is None or found.classifier["n_test"] == found.n_held_out


def test_the_report_says_what_a_classifier_keeps(runs: Workspace, out: Path) -> None:
    for name, n_rows in (("0.h5", 140), ("1.h5", 130)):
        path = add(runs, name, n_rows)
        with h5py.File(path, "r+") as file:
            file["y"][...] = file["X"][:, 0] > 0.5
    assert runs.run(out) == 0
    assert runs.run(out, *RETRAIN) == 0
    (found,) = Result.open(out).facts.maps
    assert found.classifier is not None
    assert found.classifier["labels"] == "y"
    assert found.classifier["mapped"] > 0.95 * found.classifier["accuracy"] > 0.8
    assert "accuracy of mapped features" in text_of(page_of(Result.open(out).report()))
