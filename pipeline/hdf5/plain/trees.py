"""Trees of names and of chunks (B-trees of version 1)."""

import struct
from typing import Any

import numpy as np

from pipeline.hdf5.plain.metadata import NOWHERE, Metadata, expect

__all__ = ["HALVES", "leaves"]

_NODE = struct.Struct("<4sBBHQQ")
HALVES = {0: 16, 1: 32}  # of what a node of a tree of names, and of one of chunks, can hold


def leaves(file: Metadata, top: int, kind: int, n_key: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and children of a tree's lowest level (III.A.1).

    Parameters
    ----------
    file : Metadata
    top : int
        Address of its one node at the highest level.
    kind : int
        0 of names, 1 of chunks.
    n_key : int
        Words of 8 bytes in a key.

    Returns
    -------
    keys : ndarray of shape (n + 1, n_key), uint64
    children : ndarray of shape (n,), uint64
    """
    children, level = np.array([top], dtype=np.uint64), -1
    keys = np.empty(0, dtype=np.uint64)
    while level:
        addresses = children.tolist()
        nodes = [_node(file, address, kind, n_key) for address in addresses]
        for i, (signature, its_kind, its_level, _, left, right) in enumerate(head for head, _ in nodes):
            expect(signature == b"TREE", its_kind == kind, level in (-1, its_level + 1))
            # With their neighbours as they must be, no node is there twice, and nothing is left out.
            expect(left == (addresses[i - 1] if i else NOWHERE))
            expect(right == (addresses[i + 1] if i + 1 < len(addresses) else NOWHERE))
        words = [words for _, words in nodes]
        entries = np.concatenate([each[:-n_key].reshape(-1, n_key + 1) for each in words])
        bounds = np.stack([each[:n_key] for each in words] + [words[-1][-n_key:]])
        expect(level < 0 or (keys[:, kind:] == bounds[:, kind:]).all())  # a chunk's size may differ
        keys = np.concatenate([entries[:, :n_key], bounds[-1:]])
        children, level = entries[:, n_key], nodes[0][0][2]
    return keys, children


def _node(file: Metadata, address: int, kind: int, n_key: int) -> tuple[tuple[Any, ...], np.ndarray]:
    """A node's head, and keys and children in turn."""
    most = 2 * HALVES[kind]
    block = file.at(address, _NODE.size + 8 * (most * (n_key + 1) + n_key))
    head = _NODE.unpack_from(block)
    expect(0 < head[3] <= most)
    return head, np.frombuffer(block, "<u8", head[3] * (n_key + 1) + n_key, _NODE.size)
