"""Tests of results: they are restored exactly, and damaged, forged and other files are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.base.errors import DataError, NoInput, OtherVersion
from shardpress.hdf5.child import ask as ask_module
from shardpress.hdf5.sealed import FORMAT
from shardpress.interop.estimator import TiedAutoencoder
from shardpress.result.alignment import LinearMap
from shardpress.result.facts import Append, BadFile, ScanFacts
from shardpress.result.features import open_features
from shardpress.result.finished import Result, Use, load_model, result_bytes
from shardpress.result.records import (
    Entry,
    Generation,
    MapFacts,
    Outside,
    Part,
    Range,
    Request,
    ShardFacts,
    Stat,
    to_json,
)
from shardpress.shards.open import open_shards
from tests.support.cases import case, each, sample
from tests.support.child import plant
from tests.support.helpers import refused
from tests.support.hostilemodels import (
    FAILING_CHILD,
    changed,
    edit_json,
    forge,
    model_of,
    with_footer,
    without_footer,
    write_model,
)
from tests.support.parts import finished
from tests.support.runfacts import changed_facts, run_facts

RUN = "shardpress/run"
NAME = "shardpress-output/"
VERSION = int(FORMAT.removeprefix(NAME))
DIGEST = "0123456789abcdef" * 2
ODD_NAME = "größe \udcff.h5"  # bytes that are not UTF-8, as Python represents them

STAT = Stat(10, 2**62, 2**62, 2**63 - 1)
SHARDS = [ShardFacts("f" * 16, f"/in/{ODD_NAME}", "X", [9, 4], "f8", STAT, 3, "c" * 64, "d" * 32, "e" * 32)]
PARTS = [
    Part(Entry(f"parts/part-000000-000000000000-{DIGEST}.h5", 7, "b" * 64), 8, [Range(1, "f" * 16, 0, 5, n_bad=1)]),
    Part(
        Entry(f"parts/part-000000-000000000005-{DIGEST}.h5", 7, "b" * 64),
        4,
        [Range(0, "f" * 16, 5, 8, n_bad=2, outside=[Outside(1, np.inf, 0.0, 1.0, 3)]), Range(3, "f" * 16, 8, 9)],
        max_error=np.nan,
    ),
]
FACTS = run_facts(
    config={"input": [ODD_NAME], "epochs": 3},
    request=Request(SHARDS, {"scale": 1}, {"epochs": 2}, {"dtype": "float32"}),
    bad_shards=[BadFile(ODD_NAME, "truncated")],
    generation=3,
    generations=[Generation(2, "f" * 64, 9, "0" * 64)],
    maps=[MapFacts(2, "f" * 64, [0.5, None], 9, 3), MapFacts(1, "f" * 64)],
    appends=[Append(1, 0, 0, 9, 1, None)],
    scan=ScanFacts("range", {3: 0.5}),
    cost=float("nan"),
)
MODEL = model_of()
MAPS = {2: LinearMap(np.arange(6.0).reshape(3, 2), np.arange(2.0), "a" * 64, "b" * 64)}
STATISTICS = {"center": np.arange(3.0), "n_rows": np.array(3.0), "error/mean": np.full(2, np.nan)}


def write_result(folder: Path, **facts: Any) -> Path:
    """Write a result with a value in each field, and return its file."""
    folder.mkdir(exist_ok=True)
    data = result_bytes(lambda file: None, MODEL, changed_facts(FACTS, **facts), PARTS, MAPS, STATISTICS)
    (folder / "index.h5").write_bytes(data)
    return folder / "index.h5"


# -- restored ----------------------------------------------------------------------------------------------------------


def test_a_result_is_restored_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / ODD_NAME
    path = write_result(folder)
    for found in (Result.open(folder), Result.open(str(path))):
        # NaN differs from itself, so JSON is compared.
        assert to_json(found.facts) == to_json(FACTS)
        assert to_json(found.parts) == to_json(PARTS)
        assert (found.path, found.directory) == (path, folder)
        assert (found.n_rows, found.n_bad, found.n_features) == (9, 3, 3)
    assert found.facts.rows.request.shards == SHARDS
    assert found.parts[1].ranges[0].outside[0].distance == np.inf
    assert found.encoder == MODEL.fingerprint
    for name, array in MODEL.parameters.items():
        np.testing.assert_array_equal(found.model.parameters[name], array)
    linear = found.map_to(2)
    assert (linear.encoder_from, linear.encoder_to) == ("a" * 64, "b" * 64)
    np.testing.assert_array_equal(linear.W, MAPS[2].W)
    np.testing.assert_array_equal(linear.b, MAPS[2].b)
    statistics = found.statistics()
    assert statistics.keys() == STATISTICS.keys()
    for name, array in STATISTICS.items():
        np.testing.assert_array_equal(statistics[name], array)
        assert statistics[name].dtype == array.dtype


# -- damage ------------------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[Path], object]] = {
    "result": Result.open,
    "features": open_features,
    "model": load_model,
}


def assert_refused_by_all(path: Path, *errors: type[Exception]) -> None:
    for name, read in READERS.items():
        with case(name), pytest.raises(errors or DataError, match=r"index\.h5"):
            read(path)


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    path = finished(tmp_path / "out", 3, 4) / "index.h5"
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [*np.linspace(0, len(data) - 1, 100).astype(int), *range(len(data) - 64, len(data))]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with case(place):
            assert_refused_by_all(path, DataError, OtherVersion)  # a flipped bit can give the number of a version
    path.write_bytes(data)
    assert open_features(path).features.shape == (7, 2)


@pytest.mark.process
def test_other_contents_and_versions_are_refused(tmp_path: Path) -> None:
    path = write_result(tmp_path)
    data = path.read_bytes()
    n = len(data)
    with h5py.File(path, "a") as file:
        file.attrs["note"] = 1
    changed_by_h5py = path.read_bytes()
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros((3, 2))
    other = path.read_bytes()
    contents = [data[:stop] for stop in (0, 64, n // 2, n - 64, n - 1)]
    contents += [data + b"\0", data + data, changed_by_h5py, other, with_footer(other), with_footer(b""), b"text"]
    for content in contents:
        path.write_bytes(content)
        with case(content[:9], len(content)):
            assert_refused_by_all(path)
    for version in (VERSION - 1, VERSION + 1):
        path.write_bytes(with_footer(without_footer(data), f"{NAME}{version}"))
        with case(version):
            assert_refused_by_all(path, OtherVersion)


def test_a_missing_result_is_no_input(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    for path in (tmp_path, model, "a\0b", f"{tmp_path}/{'a' * 300}"):
        for read in (Result.open, open_features):
            with case(path), refused(66):
                read(path)
    with refused(66):
        load_model(tmp_path)


# -- forged ------------------------------------------------------------------------------------------------------------


def put(name: str, value: object) -> Callable[[h5py.Group], None]:
    """Return a change of the group of the run. JSON replaces a value other than an array or bytes."""

    def change(group: h5py.Group) -> None:
        del group[name]
        stored = value
        if not isinstance(value, (bytes, np.ndarray)):
            stored = json.dumps(value).encode()
        group[name] = np.frombuffer(stored, np.uint8) if isinstance(stored, bytes) else stored

    return change


def edit(name: str, change: Callable[[Any], object]) -> Callable[[h5py.Group], None]:
    """Return a change of the plain values in a JSON dataset."""
    return lambda group: edit_json(group, name, change)


def name_part(name: str) -> Callable[[h5py.Group], None]:
    return edit("parts", lambda parts: parts[1]["entry"].update(file=name))


def edit_range(**fields: Any) -> Callable[[h5py.Group], None]:
    """Return a change of the first range of the second part."""
    return edit("parts", lambda parts: parts[1]["ranges"][0].update(fields))


FORGERIES: dict[str, Callable[[h5py.Group], object]] = {
    **{
        f"part {name!r}": name_part(name)
        for name in ("", "/etc/passwd", "parts/../../a.h5", f"parts/part-{DIGEST}.h5\n")
    },
    "parts of another type": put("parts", [1]),
    "part without ranges": edit("parts", lambda parts: parts[1].update(ranges=[])),
    "range of another shard": edit_range(shard=1),
    "range that overlaps the one before it": edit_range(start=4),
    "range that overlaps the next one in its part": edit_range(first=1),
    "range without rows": edit_range(stop=5),
    "ranges in another order": edit("parts", lambda parts: parts[1]["ranges"].reverse()),
    "part with fewer rows than its ranges": edit("parts", lambda parts: parts[1].update(n_rows=3)),
    "shard with more rows than its parts": edit("shards", lambda shards: shards[0].update(shape=[10, 4])),
    "digest that is no number": edit_range(rows="x" * 32),
    "JSON that is cut": put("facts", b'{"config": {'),
    "no facts": lambda group: group.__delitem__("facts"),
    "group in place of text": lambda group: (group.__delitem__("shards"), group.create_group("shards")),
}


@pytest.mark.process
@pytest.mark.slow
@each("name", FORGERIES)
def test_forged_facts_are_refused(tmp_path: Path, name: str) -> None:
    path = forge(write_result(tmp_path), FORGERIES[name], RUN)
    for is_foreign in (False, True):
        with refused(65, "index.h5"):
            Result.open(path, is_foreign)
    (tmp_path / ".shardpress").touch()
    for read in (lambda path: open_shards([str(path.parent)]), open_features):
        with refused(65, "index.h5"):
            read(path)


def test_forged_maps_are_refused(tmp_path: Path) -> None:
    for name, array in (("W", np.zeros((3, 3))), ("b", np.full(2, np.nan))):
        path = forge(write_result(tmp_path), put(name, array), "shardpress/run/maps/2")
        with case(name), refused(65, "index.h5"):
            Result.open(path).map_to(2)
    with refused(65, "index.h5"):
        Result.open(write_result(tmp_path)).map_to(9)


def virtual(n_rows: int) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout((n_rows,), np.uint8)
    layout[:] = h5py.VirtualSource("parts/0.h5", "use", (n_rows,))
    return layout


FORGED_USES: dict[str, Callable[[h5py.File, int], object]] = {
    "too long": lambda file, n_rows: file.create_dataset("use", (2**62,), np.uint8, chunks=(1000,), compression="gzip"),
    "virtual": lambda file, n_rows: file.create_virtual_dataset("use", virtual(n_rows)),
    "an unknown number": lambda file, n_rows: file.create_dataset("use", data=np.full(n_rows, 4, np.uint8)),
}


@pytest.mark.process
def test_a_forged_use_of_rows_is_refused(tmp_path: Path) -> None:
    path = finished(tmp_path / "out", 3, 4) / "index.h5"
    intact = path.read_bytes()
    assert Result.open(path, is_foreign=True).use().tolist() == [Use.TRAINING] * 7
    for name, write in FORGED_USES.items():

        def forge_use(file: h5py.File, write: Callable[[h5py.File, int], object] = write) -> None:
            del file["use"]
            write(file, 7)

        path.write_bytes(changed(intact, forge_use))
        with case(name), refused(65, "index.h5"):
            Result.open(path).use()


@pytest.mark.process
def test_a_file_that_libhdf5_fails_on_harms_only_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = finished(tmp_path / "out", 3)
    ask_module.retire()
    plant(monkeypatch, tmp_path, FAILING_CHILD)
    try:
        for read in (load_model, TiedAutoencoder.from_run, lambda path: open_shards([str(path)])):
            with refused(65, "index.h5"):
                read(directory)
    finally:
        ask_module.retire()
    assert Result.open(directory).n_rows == 3, "the results of an own run need no child"


@pytest.mark.process
@pytest.mark.slow
def test_mutated_files_with_a_correct_footer_are_read_or_refused(tmp_path: Path) -> None:
    path = finished(tmp_path / "out", 3, 4) / "index.h5"
    content = without_footer(path.read_bytes())
    expected = Result.open(path).encoder
    seeds = sample(range(2000), 50)
    n_refused = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        mutant = bytearray(content)
        for place in rng.integers(len(content), size=int(rng.integers(1, 20))):
            mutant[place] = int(rng.integers(256))
        path.write_bytes(with_footer(bytes(mutant)))
        with case(seed):
            try:
                assert Result.open(path, is_foreign=True).encoder == expected
            except (DataError, NoInput):  # the group of the run can get another name
                n_refused += 1
    assert 0.2 < n_refused / len(seeds) < 0.95
