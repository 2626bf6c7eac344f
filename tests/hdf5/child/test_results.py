"""Tests of the check of an index or a model, which refuses everything that shardpress would not write."""

from io import BytesIO

import h5py
import numpy as np
import pytest

from shardpress.hdf5.check import check_in_child
from shardpress.hdf5.child import results
from shardpress.hdf5.child.find import Refused
from shardpress.hdf5.child.results import check_result
from tests.support.child import plant
from tests.support.helpers import refused
from tests.support.hostilemodels import FAILING_CHILD

pytestmark = pytest.mark.process

FOOTER = bytes(range(64))


def image(*fills, **options):
    """Return the bytes of a file after each of `fills` has written to it, followed by a footer."""
    with h5py.File.in_memory(**options) as file:
        for fill in fills:
            fill(file)
        file.flush()
        return bytes(file.id.get_file_image()) + FOOTER


def add_model(file):
    group = file.create_group("shardpress/model")
    group.attrs["format"] = "shardpress-model/4"
    group.attrs["widths"] = [4, 6, 3]
    group.attrs["gain"] = True
    group.attrs["names"] = ["a", "ü"]
    for dtype in ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
        group[dtype] = np.ones((4, 6), dtype)
    group["scalar"] = 1.0
    group["none"] = np.zeros((0, 3))
    file["shardpress/run/tables/shards"] = np.frombuffer(b"[]", np.uint8)


def virtual(name, *sources, source_name=None, n_rows=6):
    """Return a function that writes a virtual dataset with `n_rows` of each source."""

    def fill(file):
        layout = h5py.VirtualLayout((n_rows * len(sources), 2), "f4")
        for i, source in enumerate(sources):
            rows = h5py.VirtualSource(source, source_name or name.replace("%", "%%"), (n_rows, 2))
            layout[n_rows * i : n_rows * (i + 1)] = rows
        file.create_virtual_dataset(name, layout, fillvalue=np.nan)

    return fill


def add_rows(file):
    virtual("features", "parts/a.h5", "parts/part-0.b.h5")(file)
    virtual("100 %b", "parts/a.h5")(file)
    file["features"].attrs["categories"] = "x" * 2**17
    file.attrs["format"] = "shardpress-features/1"
    file["empty"] = np.zeros((0, 2))
    file["strings"] = ["a", "ü"]
    file["enumeration"] = np.zeros(3, h5py.enum_dtype({"a": 0}))
    file["records"] = np.zeros(3, [("a", "i4"), ("b", "S3"), ("c", "c8", 2)])
    file.create_dataset("numbers", (2**20,), "i4", chunks=True, compression="gzip", shuffle=True)


@pytest.mark.parametrize("fills", [(add_model,), (add_model, add_rows), (add_rows,)])
@pytest.mark.parametrize("libver", ["earliest", "v110", "latest"])
def test_index_and_model_pass(fills, libver):
    check_in_child(image(*fills, libver=libver), "x")


# -- refusals ----------------------------------------------------------------------------------------------------------


def put(path, value):
    return lambda file: file.__setitem__(path, value)


def create(path, *arguments, **options):
    return lambda file: file.create_dataset(path, *arguments, **options)


def compact(file):
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((3,))
    h5py.h5d.create(file["shardpress"].id, b"bad", h5py.h5t.NATIVE_FLOAT, space, dcpl=properties)


def unlimited(name, source, source_name):
    """Return a function that maps blocks of 6 rows in one source, or in one source for each number in its name."""

    def fill(file):
        most = h5py.h5s.UNLIMITED
        space = h5py.h5s.create_simple((6, 2), (most, 2))
        space.select_hyperslab((0, 0), (most, 1), (6, 2), (6, 2))
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.VIRTUAL)
        source_space = space
        if "%b" in source + source_name:
            source_space = h5py.h5s.create_simple((6, 2))
        properties.set_virtual(space, source.encode(), source_name.encode(), source_space)
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.NATIVE_FLOAT, space, dcpl=properties)

    return fill


def strided(file):
    layout = h5py.VirtualLayout((6, 2), "f4")
    layout[::2] = h5py.VirtualSource("parts/a.h5", "bad", (3, 2))
    file.create_virtual_dataset("bad", layout)


def cyclic(file):
    file["shardpress/bad"] = file["shardpress"]


def shared(file):
    """Write 100 names for an array of 100 kB."""
    file["shardpress/bad"] = np.zeros(100_000, np.uint8)
    for i in range(100):
        file[f"shardpress/bad {i}"] = file["shardpress/bad"]


def with_attribute(path, value):
    return lambda file: file[path].attrs.__setitem__("bad", value)


REFERENCE = h5py.ref_dtype
INTEGERS = h5py.vlen_dtype(np.int32)

REFUSALS = {
    "soft link": put("bad", h5py.SoftLink("/features")),
    "external link": put("bad", h5py.ExternalLink("parts/a.h5", "features")),
    "external link in a group": put("shardpress/model/bad", h5py.ExternalLink("parts/a.h5", "features")),
    "external storage": create("bad", (6,), "u1", external=[("/etc/passwd", 0, 6)]),
    "absolute source": virtual("bad", "parts/a.h5", "/parts/a.h5"),
    "source in the parent directory": virtual("bad", "../a.h5"),
    "source out of parts": virtual("bad", "parts/../a.h5"),
    "source in this file": virtual("bad", ".", source_name="features"),
    "source with a pattern": unlimited("bad", "parts/%b.h5", "bad"),
    "source with two lines": virtual("bad", "parts/a.h5\n"),
    "source after a file of parts": virtual("bad", "parts/a.h5/../../b.h5"),
    "another dataset": virtual("bad", "parts/a.h5", source_name="valid"),
    "another dataset by a pattern": unlimited("bad %b", "parts/a.h5", "bad %b"),
    "unlimited mapping": unlimited("unlimited", "parts/a.h5", "unlimited"),
    "mapping of every other row": strided,
    "chunks": create("shardpress/bad", data=np.zeros(6), chunks=(2,)),
    "values in the metadata": compact,
    "virtual dataset in a group": virtual("shardpress/bad", "parts/a.h5"),
    "other filter": create("bad", data=np.zeros(6), compression="lzf"),
    "huge chunk": create("bad", (2**30,), "u1", chunks=(2**27,)),
    "huge shape": create("shardpress/bad", (2**50,), "f4"),
    "small shape without values": create("shardpress/bad", (3,), "f4"),
    "shared values": shared,
    "reference": create("bad", (3,), REFERENCE),
    "reference in a record": create("bad", (3,), [("a", "f4"), ("b", REFERENCE)]),
    "lists": create("bad", (3,), INTEGERS),
    "strings in a group": put("shardpress/bad", ["a", "b"]),
    "half precision in a group": put("shardpress/bad", np.zeros(3, np.float16)),
    "no dataspace": put("shardpress/bad", h5py.Empty("f4")),
    "another group": lambda file: file.create_group("bad"),
    "dataset called shardpress": lambda file: file.move("shardpress", "bad"),
    "dtype": put("bad", np.dtype("f4")),
    "nested groups": put("shardpress/2/3/4/bad/x", 1.0),
    "cycle of groups": cyclic,
    "huge attribute": with_attribute("shardpress/model", "x" * (2**16 + 1)),
    "huge attribute of rows": with_attribute("features", "x" * (2**24 + 1)),
    "attribute of references": lambda file: file.attrs.create("bad", file.ref, dtype=REFERENCE),
    "attribute of two dimensions": with_attribute("shardpress", np.zeros((2, 2))),
    "attribute without a dataspace": with_attribute("shardpress", h5py.Empty("f4")),
}


PLACES = {"dataset called shardpress": "/bad", "unlimited mapping": "libhdf5"}


@pytest.mark.parametrize("name", REFUSALS)
def test_other_content_is_refused(name):
    with refused(65, "model=x", PLACES.get(name, "bad"), "do not use it"):
        check_in_child(image(add_model, add_rows, REFUSALS[name]), "model=x")


@pytest.mark.parametrize(
    ("limit", "most", "place"),
    [
        ("_MOST_DATASETS", 7, "^/ has"),
        ("_MOST_MAPPINGS", 3, "mappings"),
        ("_MOST_OBJECTS", 17, "/tables"),
        ("_MOST_DEPTH", 3, "/tables"),
        ("_MOST_ATTRIBUTES", 4, "/shardpress/model"),
    ],
)
def test_limits_are_the_largest_allowed_numbers(monkeypatch, limit, most, place):
    """The file has exactly these numbers of objects."""
    with h5py.File(BytesIO(image(add_model, add_rows))) as file:
        monkeypatch.setattr(results, limit, most)
        check_result(file.id)
        monkeypatch.setattr(results, limit, most - 1)
        with pytest.raises(Refused, match=place):
            check_result(file.id)


# -- failures of libhdf5 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "exit_code"),
    [
        ("ctypes.string_at(0)", 65),
        ("raise OSError(5, 'I/O error')", 65),
        ("os.kill(os.getpid(), 9)", 71),
    ],
)
def test_failure_of_the_child_is_an_error_of_its_kind(fresh, monkeypatch, tmp_path, act, exit_code):
    plant(monkeypatch, tmp_path, FAILING_CHILD.format(act=act))
    with refused(exit_code, "model=x"):
        check_in_child(image(add_model), "model=x")


def with_user_block():
    with BytesIO() as content:
        with h5py.File(content, "w", userblock_size=512) as file:
            add_model(file)
        return content.getvalue() + FOOTER


@pytest.mark.parametrize("data", [b"", image(add_model)[:5000], with_user_block()])
def test_other_files_are_refused(data):
    with refused(65, "model=x"):
        check_in_child(data, "model=x")
