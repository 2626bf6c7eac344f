"""Rows in a group of datasets that are put side by side: one for each column, or the blocks of a frame of pandas."""

from collections.abc import Sequence
from dataclasses import replace

import h5py
from h5py.h5g import GroupID

from shardpress.hdf5.child.find import Item, Rejection
from shardpress.hdf5.child.pandas import blocks_of, is_frame_of_blocks
from shardpress.hdf5.child.spread import Piece, Spread, extras_of, spread_in
from shardpress.hdf5.forms.form import Candidate, Form, Member, RowDatasets, table
from shardpress.hdf5.forms.samples import Samples
from shardpress.hdf5.limits import MOST_LEFT_OUT
from shardpress.hdf5.shard import LeftOut


class ColumnGroup(Form):
    """Datasets with one or several columns each. A group of samples is recognized here as well."""

    name = "columns"
    words = "stored in the blocks of a frame of pandas"
    words_if_transposed = "stored in one dataset for each column"

    def candidate(self, item: Item) -> Candidate | None:
        return Candidate("table") if isinstance(item, h5py.h5g.GroupID) and is_frame_of_blocks(item) else None

    def describe(self, name: str, parent: GroupID, item: Item, orientation: str | None) -> RowDatasets | None:
        if not isinstance(item, h5py.h5g.GroupID):
            return None
        if is_frame_of_blocks(item):
            return self._frame(name, item, orientation)
        spread = spread_in(item, name, orientation)
        if spread is None:
            return None
        own_names = frozenset(piece.owner for piece in (*spread.pieces, *spread.others))
        rows = _samples(name, item, spread) if spread.are_samples else self._columns(name, item, spread)
        return replace(rows, own_names=own_names, left_out=tuple(_left_out(spread.others, spread.pieces[0].shape)))

    def _frame(self, name: str, frame: GroupID, orientation: str | None) -> RowDatasets:
        if orientation == "columns":
            raise Rejection("a frame of pandas, whose rows are its rows. Omit --orientation columns.", name)
        parts, members = blocks_of(frame, name)
        n_rows = (parts[0][1].shape or (0,))[0]
        return replace(table(name, frame, self, parts, n_rows, members), is_mixed=True)

    def _columns(self, name: str, group: GroupID, spread: Spread) -> RowDatasets:
        parts = [(piece.path, piece.open()) for piece in spread.pieces]
        members = [Member((piece.name,), piece.dtype, part=i) for i, piece in enumerate(spread.pieces)]
        rows = table(name, group, self, parts, spread.pieces[0].shape[0], members)
        return replace(rows, is_mixed=True, is_transposed=True)


def _samples(name: str, group: GroupID, spread: Spread) -> RowDatasets:
    first = spread.pieces[0]
    shape = (len(spread.pieces), *first.shape)
    extras = tuple(extras_of(spread, name))
    others = [(piece.path, piece.open) for piece in spread.pieces[1:]]
    return RowDatasets(
        name, group, Samples(), [(first.path, first.open())], shape, first.dtype, extras=extras, others=others
    )


def _left_out(pieces: Sequence[Piece], expected: tuple[int, ...]) -> list[LeftOut]:
    words = f"expected shape {expected} and the dtype of most others"
    return [
        LeftOut(piece.name, f"{piece.dtype} of shape {piece.shape}, {words}", is_missed=True)
        for piece in pieces[:MOST_LEFT_OUT]
    ]
