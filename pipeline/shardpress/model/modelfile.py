"""Reading of a model from an HDF5 group.

Users receive models from other people. Shapes, dtypes and values are therefore checked against the network that the
group describes, before they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import msgspec
import numpy as np

from shardpress.base.errors import short_list
from shardpress.base.formats import parse_bounded
from shardpress.hdf5.columns import NO_COLUMNS, Columns
from shardpress.model.about import About
from shardpress.model.encoder import ABOUT, COLUMNS, Model
from shardpress.model.preparation import Preparation, preparation_of
from shardpress.model.scaler import Scaler
from shardpress.settings.kinds import ROW_SCALES, TRANSFORMS
from shardpress_kernels.activations import CODES, HIDDEN
from shardpress_kernels.network import OUTPUT_LAYERS, Network

_INDICATORS = "indicators"
_MOST_WIDTHS = 300
_MAX_NAMES = 10  # maximum number of arrays that a message lists

_Shapes = dict[str, tuple[tuple[int, ...], type]]
"""Shape and dtype of each array."""


def read_model(group: h5py.Group) -> Model:
    """Return the model in a group. Raise `ValueError` if it is not one that `Model.write` has written."""
    network = _network(group.attrs)
    preparation = _preparation(group.attrs)
    arrays = _arrays(group, network)
    n_columns = network.n_inputs - len(arrays.get(_INDICATORS, ()))
    _check_values(arrays, n_columns)
    columns = NO_COLUMNS
    if COLUMNS in group:
        columns = Columns.from_json(group[COLUMNS][()].tobytes(), n_columns)
    model = Model(
        scaler=Scaler(
            arrays["minimum"],
            arrays["maximum"],
            arrays.get("fill"),
            bool(arrays.get("clips", False)),
            arrays.get("center"),
            arrays.get("factor"),
            arrays.get(_INDICATORS),
        ),
        network=network,
        parameters={name: arrays[name] for name in network.shapes},
        about=_about(group),
        offset=arrays.get("offset"),
        columns=columns,
        preparation=preparation,
    )
    if model.fingerprint != _text(group.attrs, "fingerprint"):
        raise ValueError(f"its network and arrays have the fingerprint {model.fingerprint}, but it states another one")
    return model


def _about(group: h5py.Group) -> About:
    try:
        return msgspec.convert(parse_bounded(group[ABOUT][()].tobytes()), About)
    except msgspec.ValidationError as error:
        raise ValueError(f"{ABOUT} is invalid: {error}") from error


def _text(attributes: Mapping[str, Any], name: str) -> str:
    value = attributes[name]
    if not isinstance(value, str):
        raise ValueError(f"attribute {name} is {value!r}, expected a string")
    return value


def _network(attributes: Mapping[str, Any]) -> Network:
    widths = np.asarray(attributes["widths"])
    gain = np.asarray(attributes["gain"])
    if widths.ndim != 1 or widths.dtype.kind not in "iu" or gain.shape or gain.dtype.kind != "b":
        raise ValueError(f"attributes widths {widths} and gain {gain} are invalid, expected integers and a bool")
    activation = _text(attributes, "activation")
    code = _text(attributes, "code")
    output_layer = _text(attributes, "output_layer") if "output_layer" in attributes else "code"
    network = Network(tuple(widths.tolist()), activation, code, bool(gain), output_layer=output_layer)
    known = activation in HIDDEN and code in CODES and output_layer in OUTPUT_LAYERS
    if not known or not 2 <= len(widths) <= _MOST_WIDTHS or min(network.widths) < 1:
        raise ValueError(
            f"expected 2 to {_MOST_WIDTHS} widths of at least 1, an activation in {HIDDEN}, a code in {CODES} and an "
            f"output_layer in {OUTPUT_LAYERS}, found {network}"
        )
    if output_layer == "hidden" and len(widths) < 3:
        raise ValueError(f"its output_layer is hidden, but its network has only the widths {list(network.widths)}")
    return network


def _preparation(attributes: Mapping[str, Any]) -> Preparation | None:
    values: dict[str, str] = {}
    for name, known in (("row_scale", ROW_SCALES), ("transform", TRANSFORMS)):
        values[name] = _text(attributes, name) if name in attributes else "none"
        if values[name] not in ("none", *known):
            expected = ", ".join(("none", *known))
            raise ValueError(f"expected attribute {name} to be one of {expected}, found {values[name]!r}")
    return preparation_of(values["row_scale"], values["transform"])


def _arrays(group: h5py.Group, network: Network) -> dict[str, np.ndarray]:
    """Return all arrays, after checking that shapes and dtypes match the network."""
    expected = _expected_arrays(group, network)
    for name, (shape, dtype) in expected.items():
        dataset = group[name]
        if dataset.shape != shape or dataset.dtype != dtype:
            raise ValueError(
                f"array {name} is {dataset.dtype} of shape {dataset.shape}, expected {np.dtype(dtype)} of shape {shape}"
            )
    return {name: np.asarray(group[name][()]) for name in expected}


def _expected_arrays(group: h5py.Group, network: Network) -> _Shapes:
    """Return the shape and dtype of each array that a network requires, and of each optional array in the group."""
    n_indicators = _n_indicators(group, network)
    each_input = ((network.n_inputs,), np.float64)
    each_column = ((network.n_inputs - n_indicators,), np.float64)
    required: _Shapes = {"minimum": each_input, "maximum": each_input}
    for name, shape in network.shapes.items():
        required[name] = (shape, np.float32)
    if "center" in group or "factor" in group:
        required |= {"center": each_input, "factor": each_input}
    if n_indicators:
        required |= {"fill": each_column, _INDICATORS: ((n_indicators,), np.int64)}
    missing = [name for name in required if name not in group]
    if missing:
        raise ValueError(
            f"arrays {short_list(missing, _MAX_NAMES)} are missing, expected {short_list(required, _MAX_NAMES)}"
        )
    optional: _Shapes = {"fill": each_column, "clips": ((), np.bool_), "offset": each_column}
    return required | {name: kind for name, kind in optional.items() if name in group}


def _n_indicators(group: h5py.Group, network: Network) -> int:
    """Return the number of missing indicators. Each column has at most one."""
    if _INDICATORS not in group:
        return 0
    shape = group[_INDICATORS].shape
    most = network.n_inputs // 2
    if len(shape) != 1 or not 1 <= shape[0] <= most:
        raise ValueError(f"array {_INDICATORS} has the shape {shape}, expected 1 to {most} columns")
    return int(shape[0])


def _check_values(arrays: Mapping[str, np.ndarray], n_columns: int) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"array {name} contains NaN or Inf, expected finite {array.dtype}")
    indicators = arrays.get(_INDICATORS)
    if indicators is None:
        return
    if indicators[0] < 0 or indicators[-1] >= n_columns or not (indicators[1:] > indicators[:-1]).all():
        raise ValueError(f"array {_INDICATORS} is invalid, expected increasing numbers of the {n_columns} columns")
