"""Functions of the child that find the dataset or group with the rows, or explain why none can be used.

The pickles that pandas writes into some attributes are never opened.
"""

from collections.abc import Mapping, Sequence

import h5py
from h5py.h5f import FileID
from h5py.h5g import GroupID

from shardpress.base.errors import short_list
from shardpress.hdf5.child.elsewhere import is_master
from shardpress.hdf5.child.find import (
    LISTED,
    Dataset,
    Item,
    Rejection,
    listing,
    locate,
    member,
    objects,
    own_dataset,
    resolve,
    short_text,
)
from shardpress.hdf5.child.spread import could_be_samples, groups_of, is_line
from shardpress.hdf5.forms.form import WRITE_ROWS, Candidate, RowDatasets
from shardpress.hdf5.forms.known import FORMS
from shardpress.hdf5.forms.sparse import is_matlab_sparse
from shardpress.hdf5.names import PREFERRED, split, text, under

_MASTER = "(rows of other files)"


# -- searching ---------------------------------------------------------------------------------------------------


def choose(root: FileID, orientation: str | None) -> tuple[str, GroupID, Item]:
    """Return the path, the parent group and the object of ``X`` in the root group, or of the only candidate.

    Candidates are numeric datasets of rank 2 or more; without them, sparse matrices and tables of one type; without
    them, other tables. The last choice is a group with one dataset for each sample or column.
    """
    parent, preferred = resolve(root, PREFERRED)
    if preferred is not None and _candidate(preferred):
        return PREFERRED, parent, preferred
    candidates, lines, first = _candidates_below(root)
    likely = _likely_candidates(candidates, orientation)
    if len(likely) > 1:
        likely = _plotted_masters(root, candidates, likely) or likely
    if first is not None and likely == [first[0]]:
        return first
    if len(likely) == 1:
        return likely[0], *locate(root, likely[0])
    place = _group_with_rows({name: candidates[name].shape for name in likely}, lines)
    if place is not None:
        return place, *locate(root, place)
    if likely:
        raise _no_choice({name: candidate for name, candidate in candidates.items() if candidate.form != "none"})
    if preferred is not None:
        return PREFERRED, parent, preferred
    # No object can be used. Return the one whose refusal is most helpful to the user.
    unfit = [name for name, candidate in candidates.items() if candidate.form == "none"] or list(candidates)
    if len(unfit) == 1:
        return unfit[0], *locate(root, unfit[0])
    raise _no_choice(candidates, listing(root))


def _candidates_below(
    group: GroupID,
) -> tuple[dict[str, Candidate], dict[str, tuple[int, ...]], tuple[str, GroupID, Item] | None]:
    """Return the candidates below a group, the shapes of datasets that can be a column or a sample, and the first one.

    The first candidate, with its path and its parent, is often the only one, and need not be opened again.
    """
    candidates: dict[str, Candidate] = {}
    lines = {}
    first = None
    skipped = "/"  # prefix of the parts of a frame of pandas, which begins no path
    for name, parent, item in objects(group):
        if name.startswith(skipped):
            continue
        candidate = _candidate(item)
        if candidate is not None:
            first = first or (name, parent, item)
            candidates[name] = candidate
        if isinstance(item, GroupID) and h5py.h5a.exists(item, b"pandas_type"):
            skipped = f"{name}/meta/" if candidate is None else f"{name}/"
        if isinstance(item, Dataset) and is_line(item):
            lines[name] = item.shape or ()
    return candidates, lines, first


def _plotted_masters(root: FileID, candidates: Mapping[str, Candidate], names: Sequence[str]) -> list[str]:
    """Return the candidates with rows of other files that NeXus marks as data, and not as masks or calibration."""
    plotted = []
    for name in names:
        if candidates[name].form == _MASTER:
            parent, item = locate(root, name)
            group = item if isinstance(item, GroupID) else parent
            if short_text(group, b"NX_class") == "NXdata":
                plotted.append(name)
    return plotted


def _group_with_rows(likely: Mapping[str, tuple[int, ...]], lines: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the only group with a dataset for each sample or column, or None. It holds all `likely` candidates.

    The arguments are the shapes of those, and of datasets in one dimension.
    """
    places = groups_of(likely or lines)
    if len(places) > 1 and not likely:
        listed = short_list(places, LISTED)
        raise Rejection(f"several groups hold one dataset for each column or sample ({listed}). Choose with --dataset.")
    if len(places) != 1 or (likely and not could_be_samples(places[0], list(likely))):
        return None
    return places[0]


def _no_choice(candidates: dict[str, Candidate], contents: str = "") -> Rejection:
    choice = f"no candidate among {contents}"
    if candidates:
        choice = "candidates " + short_list((f"{name} {candidate}" for name, candidate in candidates.items()), LISTED)
    return Rejection(
        f"{choice}, expected a dataset {PREFERRED!r} or exactly one numeric dataset of rank 2 or more. Choose "
        "one with --dataset."
    )


def _candidate(item: Item) -> Candidate | None:
    if is_master(item):  # checked first, because the only array stored in a detector file itself may be a pixel mask
        return Candidate(_MASTER)
    return next((candidate for form in FORMS.values() if (candidate := form.candidate(item))), None)


def _likely_candidates(candidates: dict[str, Candidate], orientation: str | None) -> list[str]:
    """Return the candidates that may be the rows: only dense ones, if one of these has several columns.

    A single column is regarded as an extra if its group contains a wider candidate with the same number of rows. Single
    numbers and records are ignored.
    """
    oriented = {name: candidate.oriented(orientation) for name, candidate in candidates.items()}
    wider = {(split(name)[0], candidate.n_rows) for name, candidate in oriented.items() if candidate.n_inputs > 1}
    likely = [name for name, candidate in oriented.items() if _may_be_meant(name, candidate, wider)]
    dense = [name for name in likely if oriented[name].form in ("dense", _MASTER)]
    if any(oriented[name].n_inputs != 1 for name in dense):
        return dense
    return [name for name in likely if oriented[name].form != "table"] or likely


def _may_be_meant(name: str, candidate: Candidate, wider: set[tuple[str, int]]) -> bool:
    """Return whether a candidate may be the rows, given the groups and numbers of rows of `wider` ones."""
    if candidate.form == "none":
        return False
    is_extra = candidate.n_inputs == 1 and (split(name)[0], candidate.n_rows) in wider
    return not (candidate.is_single or is_extra)


# -- the rows at a path --------------------------------------------------------------------------------------------


def find(name: str, parent: GroupID, item: Item, orientation: str | None) -> RowDatasets:
    """Return the rows in a dataset, a group with a sparse matrix, or a pandas frame, given the path and the parent.

    The rows are along the first axis, or along the last axis if the orientation is ``columns``.
    """
    for form in FORMS.values():
        rows = form.describe(name, parent, item, orientation)
        if rows is not None:
            return rows
    if not isinstance(item, h5py.h5g.GroupID):
        raise Rejection("a named datatype, expected a dataset. Choose one with --dataset.", name)
    frame = _frame(item)
    if frame is None:
        raise Rejection(_no_rows_in_group(item, name), name)
    return find(under(name, text(frame)), item, member(item, frame), orientation)


# -- groups --------------------------------------------------------------------------------------------------------


def _frame(group: GroupID) -> bytes | None:
    """Return the name of the dataset with the rows of a pandas frame: a table, or its only block of columns."""
    return next((name for name in (b"table", b"block0_values") if own_dataset(group, name) is not None), None)


def _no_rows_in_group(group: GroupID, name: str) -> str:
    candidates, _, _ = _candidates_below(group)
    listed = short_list((f"{under(name, path)} {candidate}" for path, candidate in candidates.items()), LISTED)
    if is_matlab_sparse(group):
        return f"a sparse matrix of MATLAB, expected a full matrix. {WRITE_ROWS} (full(X))."
    if not candidates:
        listed = "no dataset that could hold rows"
    return f"a group, expected a dataset; it holds {listed}"
