"""Functions of the child for master files, which refer to rows in other files. No link is followed.

Only `server` calls these functions. `shards.master` checks their answers.
"""

from itertools import islice
from typing import Any

import h5py

from shardpress.errors import short_list
from shardpress.hdf5.child.find import LISTED, Refused, first_names, locate, objects
from shardpress.hdf5.forms import PREFERRED, split, text
from shardpress.hdf5.limits import MOST_OBJECTS, MOST_PIECES

__all__ = ["is_stack", "stacked", "virtual_shape"]

_ENDLESS = 2**63  # unlimited selections, which grow with the dataset, have 2**64 - 1


def stacked(file: h5py.File, dataset: str | None) -> tuple[dict[str, Any] | None, list[Any]]:
    """Return the locations of the rows that a master file refers to.

    Parameters
    ----------
    file : h5py.File
    dataset : str, optional
        Path of a virtual dataset, an external link, or a group of external links. The default is ``X``, or the only
        such object.

    Returns
    -------
    dict or None
        ``dataset`` is the path, and ``neighbours`` has the names of datasets in the master file that may belong to the
        rows. For a virtual dataset, ``shape`` and ``blocks`` follow. Each block has a file, a dataset in that file, the
        target box and the source box (see `_box`). For external links, ``links`` follows. Each link has a name, a file
        and a dataset. None if the rows are stored in the file itself.
    list
        Empty, because there are no arrays.
    """
    if dataset is None and file.id.links.exists(PREFERRED.encode()):
        dataset = PREFERRED
    if dataset is None:
        dataset = _only_stack(file)
    if dataset is None:
        return None, []
    return _stack(file, dataset), []


def _only_stack(file: h5py.File) -> str | None:
    """Return the path of the only object that refers to rows in other files, or None if there is no such object."""
    names = [name for name, item in (("/", file.id), *objects(file.id)) if is_stack(item)]
    if len(names) > 1:
        raise Refused(
            f"{len(names)} candidates refer to rows in other files ({short_list(names, LISTED)}), expected one. Choose "
            "one with --dataset."
        )
    return names[0] if names else None


def is_stack(item: Any) -> bool:
    """Return whether an object is a group of external links, or a virtual dataset of rank 2 or more."""
    if isinstance(item, h5py.h5g.GroupID):
        return bool(_external_links(item))
    return isinstance(item, h5py.h5d.DatasetID) and len(virtual_shape(item) or ()) >= 2


def _stack(file: h5py.File, dataset: str) -> dict[str, Any] | None:
    group_path, last = split(dataset)
    # Open the group first, to read only the text of an external link without opening its target.
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
        raise Refused(f"a group with more than {MOST_PIECES} external links, expected fewer. Use larger files.")
    return names


def _link(group: Any, name: bytes) -> list[str]:
    return [text(name), *map(text, group.links.get_val(name))]


def virtual_shape(item: Any) -> tuple[int, ...] | None:
    """Return the shape of a virtual dataset without opening source files. Return None for other datasets."""
    properties = item.get_create_plist()
    if properties.get_layout() != h5py.h5d.VIRTUAL:
        return None
    if not properties.get_virtual_count():
        return ()
    return properties.get_virtual_vspace(0).shape


def _blocks(item: Any, most: int = MOST_PIECES) -> list[Any]:
    """Return the blocks of a virtual dataset in the format of `stacked`. Refuse more than `most` blocks."""
    properties = item.get_create_plist()
    n_blocks = properties.get_virtual_count()
    if n_blocks > most:
        raise Refused(f"a virtual dataset with {n_blocks} blocks, expected at most {most}. Use larger files.")
    try:
        names = [(properties.get_virtual_filename(i), properties.get_virtual_dsetname(i)) for i in range(n_blocks)]
    except UnicodeDecodeError as error:
        raise Refused("a virtual dataset with a file whose name is not UTF-8. Pass that file as input.") from error
    blocks = []
    for i, (file, dataset) in enumerate(names):
        target = _box(properties.get_virtual_vspace(i))
        source = _box(properties.get_virtual_srcspace(i))
        blocks.append([file, dataset, target, source])
    return blocks


def _box(space: Any) -> list[list[int]] | None:
    """Return the start and stop of a selection along each axis.

    Return an empty list if everything is selected, and None if the selection is not a box.
    """
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
    """Return the names of the first datasets in a group with this shape, or with one dimension if it is None."""
    names = first_names(group, MOST_OBJECTS, h5py.h5l.TYPE_HARD)
    matches = (text(each) for each in names if _is_neighbour(h5py.h5o.open(group, each), shape))
    return list(islice(matches, LISTED + 1))  # one extra name shows that the list is incomplete


def _is_neighbour(item: Any, shape: tuple[int, ...] | None) -> bool:
    if not isinstance(item, h5py.h5d.DatasetID):
        return False
    # Call `virtual_shape` first, because reading `shape` may open source files.
    found = virtual_shape(item) or h5py.Dataset(item).shape or ()
    if shape is None:
        return len(found) == 1
    return found == shape
