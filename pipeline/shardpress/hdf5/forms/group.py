"""Rows in a group of datasets that are put side by side, such as the blocks of a frame of pandas in fixed format."""

from dataclasses import replace

import h5py
from h5py.h5g import GroupID

from shardpress.hdf5.child.find import Item, Rejection
from shardpress.hdf5.child.pandas import blocks_of, is_frame_of_blocks
from shardpress.hdf5.forms.form import Candidate, Form, RowDatasets, table


class ColumnGroup(Form):
    """Datasets with one or several columns each."""

    name = "columns"
    is_group = True
    words = "columns of several datasets, side by side"

    def candidate(self, item: Item) -> Candidate | None:
        return Candidate("table") if isinstance(item, h5py.h5g.GroupID) and is_frame_of_blocks(item) else None

    def describe(self, name: str, parent: GroupID, item: Item, orientation: str | None) -> RowDatasets | None:
        if not isinstance(item, h5py.h5g.GroupID) or not is_frame_of_blocks(item):
            return None
        if orientation == "columns":
            raise Rejection("a frame of pandas, whose rows are its rows. Omit --orientation columns.", name)
        parts, members = blocks_of(item, name)
        n_rows = (parts[0][1].shape or (0,))[0]
        return replace(table(name, item, self, parts, n_rows, members), is_mixed=True)
