"""What a master file stacks: which rows of which other files. The child tells it, and follows nothing.

Only `server` runs this. What it answers is a claim that `shards.master` checks.
"""

from itertools import islice
from typing import Any

import h5py

from pipeline.errors import some
from pipeline.hdf5.child.find import LISTED, Refused, first_names, locate, objects
from pipeline.hdf5.forms import PREFERRED, split, text
from pipeline.hdf5.limits import MOST_OBJECTS, MOST_PIECES

__all__ = ["is_stack", "stacked", "virtual_shape"]

_ENDLESS = 2**63  # what is selected without end, as a dataset grows, has 2**64 - 1


def stacked(file: h5py.File, dataset: str | None) -> tuple[dict[str, Any] | None, list[Any]]:
    """Where the rows lie that a file stacks.

    Parameters
    ----------
    file : h5py.File
    dataset : str, optional
        A virtual dataset, an external link, or a group of external links. With none: ``X``, else the only one of these.

    Returns
    -------
    dict or None
        ``dataset``; the ``shape`` of a virtual one and its ``blocks``, each a file, a dataset in it, the box that it
        fills and the box of it that is taken, as `_box` gives them; else the ``links``, each a name, a file and a
        dataset; and ``beside``, the names of what may belong to the rows and lies in the master. None when the rows
        are the file's own.
    list
        Empty: no arrays.
    """
    if dataset is None:
        dataset = PREFERRED if file.id.links.exists(PREFERRED.encode()) else _only(file)
    return None if dataset is None else _stack(file, dataset), []


def _only(file: h5py.File) -> str | None:
    """The only virtual dataset of rank 2 or more, or group of external links."""
    names = [name for name, item in (("/", file.id), *objects(file.id)) if is_stack(item)]
    if len(names) > 1:
        raise Refused(
            f"candidates {some(names, LISTED)} stack rows of other files, expected one. Name it with --dataset."
        )
    return names[0] if names else None


def is_stack(item: Any) -> bool:
    """Whether an object is a group of external links, or a virtual dataset of rank 2 or more."""
    if isinstance(item, h5py.h5g.GroupID):
        return bool(_external_links(item))
    return isinstance(item, h5py.h5d.DatasetID) and len(virtual_shape(item) or ()) >= 2


def _stack(file: h5py.File, dataset: str) -> dict[str, Any] | None:
    above, last = split(dataset)
    # The group first: a link's own name is asked for what it says, and nothing is opened at its other end.
    group, name = locate(file, above)[1], last.encode("utf-8", "surrogateescape")
    if isinstance(group, h5py.h5g.GroupID) and name in _external_links(group):
        return {"dataset": dataset, "links": [_link(group, name)], "beside": []}
    parent, item = locate(file, dataset)
    if isinstance(item, h5py.h5g.GroupID):
        links = [_link(item, name) for name in _external_links(item)]
        return {"dataset": dataset, "links": links, "beside": _beside(item, None)} if links else None
    shape = virtual_shape(item) if isinstance(item, h5py.h5d.DatasetID) else None
    if shape is None:
        return None
    return {"dataset": dataset, "shape": shape, "blocks": _blocks(item), "beside": _beside(parent, shape[:1])}


def _external_links(group: Any) -> list[bytes]:
    names = first_names(group, MOST_PIECES, h5py.h5l.TYPE_EXTERNAL)
    if len(names) > MOST_PIECES:
        raise Refused(f"a group of more than {MOST_PIECES} external links, expected fewer. Stack larger files.")
    return names


def _link(group: Any, name: bytes) -> list[str]:
    return [text(name), *map(text, group.links.get_val(name))]


def virtual_shape(item: Any) -> tuple[int, ...] | None:
    """A virtual dataset's shape; None of any other. HDF5 itself would look into the files that it is made of."""
    properties = item.get_create_plist()
    if properties.get_layout() != h5py.h5d.VIRTUAL:
        return None
    return properties.get_virtual_vspace(0).shape if properties.get_virtual_count() else ()


def _blocks(item: Any) -> list[Any]:
    properties = item.get_create_plist()
    n_blocks = properties.get_virtual_count()
    if n_blocks > MOST_PIECES:
        raise Refused(f"a virtual dataset of {n_blocks} blocks, expected {MOST_PIECES} at most. Stack larger files.")
    try:
        names = [(properties.get_virtual_filename(i), properties.get_virtual_dsetname(i)) for i in range(n_blocks)]
    except UnicodeDecodeError as error:
        raise Refused("a virtual dataset over a file whose name is not UTF-8. Give that file itself.") from error
    boxes = [
        (_box(properties.get_virtual_vspace(i)), _box(properties.get_virtual_srcspace(i))) for i in range(n_blocks)
    ]
    return [[*named, *taken] for named, taken in zip(names, boxes, strict=True)]


def _box(space: Any) -> list[list[int]] | None:
    """First and last element but one of what is selected; empty where it is everything; None where it is no box."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return []
    if space.get_select_type() != h5py.h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return None
    box = []
    for first, stride, count, block in zip(*space.get_regular_hyperslab(), strict=True):
        if count >= _ENDLESS or block >= _ENDLESS or (count > 1 and stride != block):
            return None
        box.append([first, first + count * block])
    return box


def _beside(group: Any, shape: tuple[int, ...] | None) -> list[str]:
    """Some names of one-dimensional datasets in a group: of this shape, where there is one."""
    names = first_names(group, MOST_OBJECTS, h5py.h5l.TYPE_HARD)
    those = (text(each) for each in names if _is_beside(h5py.h5o.open(group, each), shape))
    return [*islice(those, LISTED + 1)]  # from which it can be told that there are more


def _is_beside(item: Any, shape: tuple[int, ...] | None) -> bool:
    if not isinstance(item, h5py.h5d.DatasetID):
        return False
    its = virtual_shape(item) or h5py.Dataset(item).shape or ()  # in this order: the second may open other files
    return its == shape if shape is not None else len(its) == 1
