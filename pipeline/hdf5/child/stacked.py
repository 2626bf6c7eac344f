"""Functions of the child for master files, which stack the rows of other files. No link is followed.

Only `server` calls these. An answer is a claim that `shards.master` checks.
"""

from itertools import islice
from typing import Any

import h5py

from pipeline.errors import short_list
from pipeline.hdf5.child.find import LISTED, Refused, first_names, locate, objects
from pipeline.hdf5.forms import PREFERRED, split, text
from pipeline.hdf5.limits import MOST_OBJECTS, MOST_PIECES

__all__ = ["is_stack", "stacked", "virtual_shape"]

_ENDLESS = 2**63  # unlimited selections, which grow with a dataset, have 2**64 - 1


def stacked(file: h5py.File, dataset: str | None) -> tuple[dict[str, Any] | None, list[Any]]:
    """Return the locations of the rows that a file stacks.

    Parameters
    ----------
    file : h5py.File
    dataset : str, optional
        A virtual dataset, an external link, or a group of external links. By default ``X``, or the only one of these.

    Returns
    -------
    dict or None
        ``dataset``, its path, and ``neighbours``, names of datasets in the master that may belong to the rows. A
        virtual dataset has ``shape`` and ``blocks``: each block is a file, a dataset in it, and two results of
        `_box`: the box that it fills, and the box that it is read from. Otherwise there are ``links``: each is a name,
        a file and a dataset. None if the rows are stored in the file itself.
    list
        Empty: no arrays.
    """
    if dataset is None and file.id.links.exists(PREFERRED.encode()):
        dataset = PREFERRED
    if dataset is None:
        dataset = _only_stack(file)
    if dataset is None:
        return None, []
    return _stack(file, dataset), []


def _only_stack(file: h5py.File) -> str | None:
    """Return the path of the only virtual dataset of rank 2 or more, or group of external links."""
    names = [name for name, item in (("/", file.id), *objects(file.id)) if is_stack(item)]
    if len(names) > 1:
        raise Refused(
            f"candidates {short_list(names, LISTED)} stack rows of other files, expected one. Choose one with "
            "--dataset."
        )
    return names[0] if names else None


def is_stack(item: Any) -> bool:
    """Return whether an object is a group of external links, or a virtual dataset of rank 2 or more."""
    if isinstance(item, h5py.h5g.GroupID):
        return bool(_external_links(item))
    return isinstance(item, h5py.h5d.DatasetID) and len(virtual_shape(item) or ()) >= 2


def _stack(file: h5py.File, dataset: str) -> dict[str, Any] | None:
    group_path, last = split(dataset)
    # The group first: only the text of an external link is read, and its target is not opened.
    _, group = locate(file, group_path)
    name = last.encode("utf-8", "surrogateescape")
    if isinstance(group, h5py.h5g.GroupID) and name in _external_links(group):
        return {"dataset": dataset, "links": [_link(group, name)], "neighbours": []}
    parent, item = locate(file, dataset)
    if isinstance(item, h5py.h5g.GroupID):
        return _stack_of_links(item, dataset)
    if isinstance(item, h5py.h5d.DatasetID):
        return _stack_of_blocks(parent, item, dataset)
    return None


def _stack_of_blocks(parent: Any, item: Any, dataset: str) -> dict[str, Any] | None:
    shape = virtual_shape(item)
    if shape is None:
        return None
    return {"dataset": dataset, "shape": shape, "blocks": _blocks(item), "neighbours": _neighbours(parent, shape[:1])}


def _stack_of_links(group: Any, dataset: str) -> dict[str, Any] | None:
    links = [_link(group, name) for name in _external_links(group)]
    if not links:
        return None
    return {"dataset": dataset, "links": links, "neighbours": _neighbours(group, None)}


def _external_links(group: Any) -> list[bytes]:
    names = first_names(group, MOST_PIECES, h5py.h5l.TYPE_EXTERNAL)
    if len(names) > MOST_PIECES:
        raise Refused(f"a group of more than {MOST_PIECES} external links, expected fewer. Stack larger files.")
    return names


def _link(group: Any, name: bytes) -> list[str]:
    return [text(name), *map(text, group.links.get_val(name))]


def virtual_shape(item: Any) -> tuple[int, ...] | None:
    """Return the shape of a virtual dataset, None for others, without opening its source files."""
    properties = item.get_create_plist()
    if properties.get_layout() != h5py.h5d.VIRTUAL:
        return None
    if not properties.get_virtual_count():
        return ()
    return properties.get_virtual_vspace(0).shape


def _blocks(item: Any, most: int = MOST_PIECES) -> list[Any]:
    """Return the blocks of a virtual dataset, as `stacked` does; refuse more than `most`."""
    properties = item.get_create_plist()
    n_blocks = properties.get_virtual_count()
    if n_blocks > most:
        raise Refused(f"a virtual dataset of {n_blocks} blocks, expected at most {most}. Stack larger files.")
    try:
        names = [(properties.get_virtual_filename(i), properties.get_virtual_dsetname(i)) for i in range(n_blocks)]
    except UnicodeDecodeError as error:
        raise Refused("a virtual dataset with a file whose name is not UTF-8. Give that file itself.") from error
    blocks = []
    for i, (file, dataset) in enumerate(names):
        target = _box(properties.get_virtual_vspace(i))
        source = _box(properties.get_virtual_srcspace(i))
        blocks.append([file, dataset, target, source])
    return blocks


def _box(space: Any) -> list[list[int]] | None:
    """Return the first index and the end of a selection along each axis; empty for all, None if it is not a box."""
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


def _neighbours(group: Any, shape: tuple[int, ...] | None) -> list[str]:
    """Return names of the first one-dimensional datasets in a group, or of datasets with a given shape."""
    names = first_names(group, MOST_OBJECTS, h5py.h5l.TYPE_HARD)
    matches = (text(each) for each in names if _is_neighbour(h5py.h5o.open(group, each), shape))
    return list(islice(matches, LISTED + 1))  # one more shows that the list is not complete


def _is_neighbour(item: Any, shape: tuple[int, ...] | None) -> bool:
    if not isinstance(item, h5py.h5d.DatasetID):
        return False
    found = virtual_shape(item) or h5py.Dataset(item).shape or ()  # in this order: the second may open other files
    if shape is None:
        return len(found) == 1
    return found == shape
