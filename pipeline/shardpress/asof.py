"""Maps from the features of a run to those of another generation or output, as its manifest lists them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shardpress.alignment import LinearMap, load_map
from shardpress.errors import DataError, printable, short_list
from shardpress.output.records import INDEX, PUBLISHED, fault_of, read_manifest, result_entry

_NAMED = 10  # generations that a message names


def directory_of(path: str | Path) -> Path:
    """Return the output directory of a path, which is the directory itself, or its index or model."""
    found = Path(path)
    return output_of(found.parent) if found.name in (INDEX, "model.h5") else found


def plain_number(value: Any) -> Any:
    """Return an integer of NumPy as an int, and any other value unchanged."""
    return int(value) if isinstance(value, np.integer) else value


def find_map(
    path: str | Path, as_of: int | str | Path, encoder: str, manifest: Mapping[str, Any] | None = None
) -> LinearMap | None:
    """Return the map from the features of a finished run to those of another encoder.

    Return None if the run has this encoder itself.

    Parameters
    ----------
    path : str or Path
        Output directory.
    as_of : int, str or Path
        As in `open_features`.
    encoder : str
        Fingerprint of the encoder of the run.

    Raises
    ------
    NoInput, DataError
        If there is no such run or map, or if the map belongs to another encoder.
    """
    as_of = plain_number(as_of)
    if not isinstance(as_of, int) and Path(as_of).is_file():
        found: LinearMap | None = load_map(as_of)
    else:
        directory = directory_of(path)
        found = _map_of(directory, manifest or read_manifest(directory), as_of)
    if found is None or found.encoder_to == encoder:
        return None
    if found.encoder_from != encoder:
        raise DataError(
            f"as_of={printable(as_of)}: a map of the encoder {found.encoder_from}, expected {encoder} as in "
            f"{printable(path)}. Fit a map with shardpress compare --map."
        )
    return found


def _map_of(directory: Path, manifest: Mapping[str, Any], as_of: int | str | Path) -> LinearMap | None:
    """Return the map that a manifest lists, as `find_map` does."""
    if isinstance(as_of, int) and as_of == manifest.get("generation", 1):
        return None
    model = None if isinstance(as_of, int) else read_manifest(Path(as_of)).get("model")
    if model is not None and model == manifest.get("model"):
        return None
    try:
        line = _map_line(manifest, as_of, model, directory)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"features={printable(directory)}: its manifest has an invalid list of maps: {error!r}"
        ) from error
    entry = result_entry(directory, line)
    fault = fault_of(directory, entry)
    if fault is not None:
        raise DataError(f"{fault}. Fit another map with shardpress compare --map.")
    return load_map(directory / entry.file)


def _map_line(manifest: Mapping[str, Any], as_of: int | str | Path, model: object, directory: Path) -> dict[str, Any]:
    """Return the entry of a map in a manifest: to a generation, or to an encoder."""
    maps = manifest.get("maps", [])
    for each in maps:
        if each["model"] == model or each["generation"] == as_of:
            return dict(each["file"])
    known = [manifest.get("generation", 1), *(each["generation"] for each in maps)]
    other = "DIR" if isinstance(as_of, int) else printable(as_of)
    raise DataError(
        f"features={printable(directory)}: no map to as_of={printable(as_of)}, expected one of the generations "
        f"{short_list(map(str, sorted(known)), _NAMED)}, or an output directory with the features of one of them. For "
        f"other features, run shardpress compare {other} {printable(directory)} --map map.npz, and pass "
        "as_of='map.npz'."
    )


def output_of(directory: Path) -> Path:
    """Return the output directory of an index. `directory` contains the index, and can be below ``published/``."""
    return directory.parents[1] if directory.parent.name == PUBLISHED else directory
