"""Tests of the check of an index or a model, which refuses everything that shardpress would not write."""

from io import BytesIO

import h5py
import numpy as np
import pytest

from shardpress.hdf5.sealed import check_in_child
from tests.support.cases import each
from tests.support.helpers import refused

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


@each("libver", ["earliest", "v110", "latest"])
@each("fills", [(add_model,), (add_model, add_rows)])
def test_index_and_model_pass(fills, libver):
    check_in_child(image(*fills, libver=libver), "x")


# -- refusals ----------------------------------------------------------------------------------------------------------


def put(path, value):
    return lambda file: file.__setitem__(path, value)


def create(path, *arguments, **options):
    return lambda file: file.create_dataset(path, *arguments, **options)


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


def many_attributes(file):
    group = file.create_group("shardpress/bad", track_order=True)
    for i in range(1001):
        group.attrs[str(i)] = i


def with_attribute(path, value):
    return lambda file: file[path].attrs.__setitem__("bad", value)


REFERENCE = h5py.ref_dtype
INTEGERS = h5py.vlen_dtype(np.int32)

REFUSALS = {
    "soft link": put("bad", h5py.SoftLink("/features")),
    "external link": put("bad", h5py.ExternalLink("parts/a.h5", "features")),
    "external storage": create("bad", (6,), "u1", external=[("/etc/passwd", 0, 6)]),
    "absolute source": virtual("bad", "parts/a.h5", "/parts/a.h5"),
    "source out of parts": virtual("bad", "parts/../a.h5"),
    "source in this file": virtual("bad", ".", source_name="features"),
    "source with a pattern": virtual("bad", "parts/%%b.h5"),
    "source with two lines": virtual("bad", "parts/a.h5\n"),
    "source after a file of parts": virtual("bad", "parts/a.h5/../../b.h5"),
    "another dataset": virtual("bad", "parts/a.h5", source_name="valid"),
    "mapping of every other row": strided,
    "chunks": create("shardpress/bad", data=np.zeros(6), chunks=(2,)),
    "virtual dataset in a group": virtual("shardpress/bad", "parts/a.h5"),
    "other filter": create("bad", data=np.zeros(6), compression="lzf"),
    "huge chunk": create("bad", (2**30,), "u1", chunks=(2**27,)),
    "shape without values": create("shardpress/bad", (2**50,), "f4"),
    "shared values": shared,
    "reference in a record": create("bad", (3,), [("a", "f4"), ("b", REFERENCE)]),
    "lists": create("bad", (3,), INTEGERS),
    "strings in a group": put("shardpress/bad", ["a", "b"]),
    "half precision in a group": put("shardpress/bad", np.zeros(3, np.float16)),
    "no dataspace": put("shardpress/bad", h5py.Empty("f4")),
    "another group": lambda file: file.create_group("bad"),
    "dtype": put("bad", np.dtype("f4")),
    "nested groups": put("shardpress/2/3/4/bad/x", 1.0),
    "cycle of groups": cyclic,
    "many attributes": many_attributes,
    "huge attribute": with_attribute("shardpress/model", "x" * (2**16 + 1)),
    "attribute of references": lambda file: file.attrs.create("bad", file.ref, dtype=REFERENCE),
    "attribute of two dimensions": with_attribute("shardpress", np.zeros((2, 2))),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_other_content_is_refused(name):
    with refused(65, "model=x", "bad", "do not use it"):
        check_in_child(image(add_model, add_rows, REFUSALS[name]), "model=x")


# -- failures of libhdf5 -----------------------------------------------------------------------------------------------


def with_user_block():
    with BytesIO() as content:
        with h5py.File(content, "w", userblock_size=512) as file:
            add_model(file)
        return content.getvalue() + FOOTER


@pytest.mark.parametrize("data", [b"", image(add_model)[:5000], with_user_block()])
def test_other_files_are_refused(data):
    with refused(65, "model=x"):
        check_in_child(data, "model=x")
