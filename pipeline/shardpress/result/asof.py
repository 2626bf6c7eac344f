"""Maps from the features of a run to those of another generation or output, as its index contains them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np

from shardpress.base.errors import DataError, printable, short_list
from shardpress.result.alignment import LinearMap, load_map
from shardpress.result.finished import Result

T = TypeVar("T")

_NAMED = 10  # generations that a message names


def plain_number(value: T) -> T | int:
    """Return an integer of NumPy as an int, and any other value unchanged."""
    return int(value) if isinstance(value, np.integer) else value


def find_map(path: str | Path, as_of: int | str | Path, encoder: str, result: Result | None = None) -> LinearMap | None:
    """Return the map from the features of a finished run to those of another encoder.

    Return None if the run has this encoder itself.

    Parameters
    ----------
    path : str or Path
        Output directory, or its index.
    as_of : int, str or Path
        As in `open_features`.
    encoder : str
        Fingerprint of the encoder of the run.
    result : Result, optional
        The result at `path`, if it is open.

    Raises
    ------
    NoInput, DataError
        If there is no such run or map, or if the map belongs to another encoder.
    """
    as_of = plain_number(as_of)
    if not isinstance(as_of, int) and Path(as_of).is_file():
        to_other: LinearMap | None = load_map(as_of)
    else:
        to_other = _map_of(result or Result.open(path), as_of)
    if to_other is None or to_other.encoder_to == encoder:
        return None
    if to_other.encoder_from != encoder:
        raise DataError(
            f"as_of={printable(as_of)}: a map of the encoder {to_other.encoder_from}, expected {encoder} as in "
            f"{printable(path)}. Fit a map with shardpress compare --map."
        )
    return to_other


def _map_of(result: Result, as_of: int | str | Path) -> LinearMap | None:
    """Return the map to the features of a generation or of another result; None if these are the same features."""
    facts = result.facts
    if isinstance(as_of, int):
        # Two generations can have the same encoder.
        models = {earlier.generation: earlier.model for earlier in facts.model.generations}
        models |= {earlier.generation: earlier.model for earlier in facts.model.maps}
        model = models.get(as_of, result.encoder if as_of == facts.model.generation else None)
    else:
        model = Result.open(as_of).encoder
    if model == result.encoder:
        return None
    for earlier in facts.model.maps:
        if earlier.model == model:
            return result.map_to(earlier.generation)
    known = sorted([facts.model.generation, *(earlier.generation for earlier in facts.model.maps)])
    other = "DIR" if isinstance(as_of, int) else printable(as_of)
    raise DataError(
        f"features={printable(result.path)}: no map to as_of={printable(as_of)}, expected one of the generations "
        f"{short_list(map(str, known), _NAMED)}, or an output directory with the features of one of them. For "
        f"other features, run shardpress compare {other} {printable(result.directory)} --map map.npz, and pass "
        "as_of='map.npz'."
    )
