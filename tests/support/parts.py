"""Parts, and whole output directories of them, without a run."""

import numpy as np

from pipeline.encoding.index import index_bytes
from pipeline.encoding.partfile import part_bytes
from pipeline.output.lock import locked
from tests.support.helpers import numbered

RIDERS = {
    "y": np.array([3, 1, 2], np.uint8),
    "weight": np.array([0.5, np.nan, 1], ">f8"),
    "code": np.array([b"a", b"bc", b""], "S2"),
    "name": np.array([b"one", "zwölf".encode(), b""], object),
}


def feature_rows(n_rows, first=0, n_features=2):
    return numbered(n_rows, n_features, first, np.float32)


def part(n_rows=3, first=0, riders=None, about=None, **how):
    valid = np.arange(first, first + n_rows) % 5 != 1
    return part_bytes(feature_rows(n_rows, first, **how), valid, riders or {}, about or {})


def finished(directory, *sizes, riders=None):
    """Make a finished output directory with parts of these sizes, a rider called y in each."""
    with locked(directory) as ledger:
        lines = []
        for i, size in enumerate(sizes):
            first = sum(sizes[:i])
            beside = {"y": np.arange(first, first + size), **(riders or {}).get(i, {})}
            lines.append({"file": f"parts/part-{i:05d}.h5", "n_rows": size})
            ledger.replace(lines[-1]["file"], part(size, first, beside))
        ledger.replace("index.h5", index_bytes(directory, [line["file"] for line in lines], {}))
        ledger.finish({}, {"parts": lines})
    return directory


def same(arrays, expected):
    assert set(arrays) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values)
