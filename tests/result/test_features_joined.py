"""Tests of `open_features` with several runs: one table if they have one encoder, otherwise an error."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import pytest

from shardpress.result import features as module
from shardpress.result.features import Features, open_features
from shardpress_kernels.network import Network
from tests.support.cases import case
from tests.support.helpers import refused
from tests.support.hostilemodels import model_of
from tests.support.parts import feature_rows, finished, part_paths


def run(
    extras: dict[str, np.ndarray],
    categories: dict[str, list[object]] | None = None,
    masks: dict[str, str] | None = None,
) -> Features:
    n_rows = max(map(len, extras.values()))
    arrays = {name: da.from_array(values, chunks=2) for name, values in extras.items()}
    names = {name: np.array(values) for name, values in (categories or {}).items()}
    features = da.zeros((n_rows, 2), dtype=np.float32)
    manifest = {"model": "m", "n_bad": 1, "masks": masks or {}}
    return Features(features, da.ones(n_rows, dtype=bool), arrays, manifest, names)


def joined(*runs: Features) -> Features:
    return module._joined([(str(i), each) for i, each in enumerate(runs)])


@pytest.mark.process
def test_rows_of_several_runs_are_concatenated(tmp_path: Path) -> None:
    paths = [finished(tmp_path / f"{i}", *sizes) for i, sizes in enumerate([(3, 4), (2,)])]
    for order in ([1, 0], [0, 0]):
        with case(order):
            found = open_features([paths[i] for i in order], block_rows=2)
            single = [open_features(paths[i]) for i in order]
            np.testing.assert_array_equal(found.features, np.concatenate([feature_rows((7, 2)[i]) for i in order]))
            np.testing.assert_array_equal(found.valid, np.concatenate([each.valid for each in single]))
            np.testing.assert_array_equal(found.extras["y"], np.concatenate([each.extras["y"] for each in single]))
            assert found.manifest["runs"] == [each.manifest for each in single]
            assert found.manifest["n_rows"] == len(found.features)
    assert max(found.features.chunks[0]) <= 2


@pytest.mark.process
def test_different_encoders_are_refused_with_both_runs(tmp_path: Path) -> None:
    one = finished(tmp_path / "one", 3)
    other = finished(tmp_path / "other", 3, model=model_of(Network((4, 2)), seed=1))
    unknown = part_paths(one)[0]
    for path in (other, unknown):
        with refused(65, f"features={one}", f"features={path}", "--model"):
            open_features([one, path])
        with refused(65, f"features={one}", f"features={path}"):
            open_features([str(path), str(one)])
    with refused(65, "no paths"):
        open_features([])


def test_codes_refer_to_the_categories_of_all_runs() -> None:
    lists: list[list[object]] = [["b", "a"], ["a", "c"], ["b", "a"], ["c"]]
    codes = [np.array(each, "i1") for each in ([1, -1, 0], [1, 0, -1], [0], [-1])]
    runs = [run({"kind": each}, {"kind": names}) for each, names in zip(codes, lists, strict=True)]
    found = joined(*runs)
    expected = ["a", None, "b", "c", "a", None, "b", None]
    frame = found.to_pandas()
    assert [None if pd.isna(each) else each for each in frame["kind"]] == expected
    assert found.categories["kind"].tolist() == ["b", "a", "c"]
    same = joined(runs[0], runs[2])
    assert same.categories["kind"].tolist() == ["b", "a"]
    assert same.extras["kind"].compute().tolist() == [1, -1, 0, 0]


def test_extras_of_different_kinds_are_left_out() -> None:
    number = np.zeros(2, "i4")
    codes = run({"y": number}, {"y": ["a"]})
    for one, other, expected in [
        (run({"y": number}), run({"y": number.astype("i8")}), {"y"}),
        (run({"y": number}), run({"y": np.array(["a", "b"], object)}), set()),
        (codes, run({"y": number}), set()),
        (codes, run({"y": number}, {"y": [0.5]}), set()),
        (run({"y": np.zeros((2, 3))}), run({"y": np.zeros((2, 2))}), set()),
    ]:
        with case(one.extras, other.extras):
            found = joined(one, other)
            assert set(found.extras) == expected
            assert found.manifest["n_bad"] == 2


def test_masks_of_lacking_values_stay() -> None:
    numbers = np.arange(3)
    is_known = np.array([True, False, True])
    whole = run({"y": numbers})
    masked = run({"y": numbers, "y_present": is_known}, masks={"y": "y_present"})
    renamed = run({"y": numbers, "y_present_": is_known}, masks={"y": "y_present_"})
    without = run({"z": numbers})
    all_known = [True] * 3
    for runs, name, expected in [
        ((whole, masked), "y_present", [*all_known, *is_known]),
        ((masked, whole), "y_present", [*is_known, *all_known]),
        ((masked, masked), "y_present", [*is_known, *is_known]),
        ((masked, whole, renamed), "y_present_", [*is_known, *all_known, *is_known]),
    ]:
        with case(name, len(runs)):
            found = joined(*runs)
            assert set(found.extras) == {"y", name}
            assert found.extras[name].compute().tolist() == expected
            assert found.extras["y"].compute().tolist() == [0, 1, 2] * len(runs)
    assert not joined(masked, without).extras
