"""The fitted model: named arrays, and an encoder in NumPy.

``encoder.npz`` stores one affine map per layer, and the first map includes the scaling. The README contains a short
NumPy loop that applies these maps. A result stores the scaling and the weights separately.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import h5py
import msgspec
import numpy as np

from shardpress.base.errors import DataError
from shardpress.hdf5.columns import NO_COLUMNS, Columns
from shardpress.hdf5.sealed import sealed, write_json
from shardpress.model.about import NOTHING_KNOWN, About, TargetFacts
from shardpress.model.preparation import Preparation
from shardpress.model.scaler import Cleaning, Scaler
from shardpress_kernels.activations import ACTIVATIONS
from shardpress_kernels.hostmath import activated, code_of
from shardpress_kernels.network import Network

ABOUT = "about"
"""Name of the dataset with the facts about a model, as JSON."""
COLUMNS = "columns"
"""Name of the dataset that describes the columns, as JSON."""


@dataclass(frozen=True)
class Model:
    """A fitted autoencoder.

    Attributes
    ----------
    scaler : Scaler
        Scaling of the rows.
    network : Network
        Layers and activations.
    parameters : mapping of str to ndarray, float32
        Parameters of the network, with the names and shapes in ``network.shapes``.
    about : About
        Description of how the model was made, as plain values that JSON can represent.
    offset : ndarray of shape (n_columns,), float64, or None
        Integers to subtract from integer rows before `encode`, in the dtype of the rows: see
        `shardpress.shards.conversion`. None if float64 represents all values of the columns exactly.
    preparation : Preparation or None
        Preparation of rows before they are scaled.
    columns : Columns
        Names, numbers or positions of the columns, in order, if they are known. The fingerprint does not include them,
        because features do not depend on the names of columns.
    """

    scaler: Scaler
    network: Network
    parameters: Mapping[str, np.ndarray]
    about: About = NOTHING_KNOWN
    offset: np.ndarray | None = None
    columns: Columns = NO_COLUMNS
    preparation: Preparation | None = None

    @property
    def n_inputs(self) -> int:
        """Number of inputs of the network: columns of the rows, and missing indicators."""
        return self.network.n_inputs

    @property
    def n_columns(self) -> int:
        """Number of columns of the rows."""
        return self.scaler.n_columns

    @property
    def n_features(self) -> int:
        """Number of features that are written."""
        return self.network.n_outputs

    @property
    def is_nested(self) -> bool:
        """Whether the first features can be used without the others (``--nested``)."""
        return self.about.config.get("nested") is True

    @property
    def target(self) -> TargetFacts | None:
        """The extra whose values trained the features, if there is one."""
        return None if self.about.training is None else self.about.training.target

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 digest of the network and the arrays. Models with equal fingerprints compute equal features."""
        # `about` is not included: equal weights compute equal features, even if two training runs made them.
        digest = sha256()
        digest.update(json.dumps(self._attributes()).encode())
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def with_first_features(self, n_features: int) -> Model:
        """Return a nested model that computes only the first features of the code, and decodes them.

        Raises
        ------
        DataError
            If the model is not nested, or has fewer features.
        """
        if not self.is_nested:
            raise DataError(
                f"the model was trained without --nested, so its first {n_features} features cannot be used without "
                "the others. Train with --nested, or omit n_features."
            )
        if not 1 <= n_features <= self.network.n_features:
            raise DataError(f"the model has {self.network.n_features} features, found n_features {n_features}")
        network = replace(self.network, widths=(*self.network.widths[:-1], n_features))
        weights, bias, _ = network.layers[-1]
        parameters = dict(self.parameters)
        for name in (weights, bias, "gain"):
            if name in parameters:  # the last axis is that of the features
                parameters[name] = np.ascontiguousarray(parameters[name][..., :n_features])
        return replace(self, network=network, parameters=parameters)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Return the features (n_rows, n_features) of rows (n_rows, n_columns) of any real dtype, as they are stored.

        All computations are in float64. Tests compare the results of devices with this reference.
        """
        prepared = rows if self.preparation is None else self.preparation.apply(rows)
        return self.encode_cleaned(Cleaning(self.scaler).cleaned(prepared))

    def encode_cleaned(self, rows: np.ndarray) -> np.ndarray:
        """Return the features (n_rows, n_features), float64, of cleaned rows (n_rows, n_inputs)."""
        a = self.scaler.scaled(rows).astype(np.float64)
        for W, b_hidden, kind in self.network.feature_layers:
            a = activated(kind, a @ self._wide(W) + self._wide(b_hidden))
        return a

    def decode(self, features: np.ndarray) -> np.ndarray:
        """Decode features (n_rows, n_features). Return scaled rows (n_rows, n_inputs) in float64."""
        network = self.network
        s = code_of(network, features.astype(np.float64), self.parameters)
        if network.gain:
            s = (s - network.center) * self._wide("gain")
        for (W, _, b_output), kind in reversed(list(zip(network.layers, network.mirrors, strict=True))):
            s = activated(kind, s @ self._wide(W).T + self._wide(b_output))
        return s

    def row_errors(self, rows: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return the mean squared error (n_rows,), float64, of rows that are reconstructed from features, scaled.

        The rows (n_rows, n_inputs) are filled, but not clipped: see `Cleaning.filled`.
        """
        with np.errstate(over="ignore"):  # values far outside the range
            difference = self.decode(features) - self.scaler.scaled(rows)
            return np.asarray(np.square(difference).mean(axis=1))

    def folded(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the affine map of each layer that computes features: a matrix and a vector, in float64.

        The activation follows the map. The first map includes the scaling, so its input is unscaled rows.
        """
        maps = [(self._wide(W), self._wide(b_hidden)) for W, b_hidden, _ in self.network.feature_layers]
        W = self.scaler.scale[:, None] * maps[0][0]
        return [(W, maps[0][1] - self.scaler.shift @ W), *maps[1:]]

    def to_hdf5(self) -> bytes:
        """Return the content of a file that `load_model` and ``shardpress run --model`` read."""
        return sealed(lambda group: self.write(group.create_group("model")))

    def write(self, group: h5py.Group) -> None:
        """Write the model to an empty group, which `shardpress.model.modelfile` reads."""
        group.attrs["fingerprint"] = self.fingerprint
        group.attrs.update(self._attributes())
        for name, array in self._arrays().items():
            group[name] = array
        write_json(group, ABOUT, json.dumps(msgspec.to_builtins(self.about)).encode())
        if self.columns.has_names:
            write_json(group, COLUMNS, self.columns.to_json())

    def _attributes(self) -> dict[str, Any]:
        """Return the attributes that describe the network and the preparation."""
        attributes = _network_attributes(self.network)
        if self.preparation is not None:
            attributes |= _preparation_attributes(self.preparation)
        return attributes

    def to_npz(self, to_other: tuple[np.ndarray, np.ndarray] | None = None, source: str | None = None) -> bytes:
        """Return the bytes of ``encoder.npz``.

        The arrays ``W_1``, ``b_1`` and so on are the maps of `folded`. The other arrays describe how to apply them:

        - ``offset`` (n_columns,), if present, is subtracted from integer rows first.
        - ``row_scale`` and ``transform``, if present, describe the preparation that follows: see `Preparation`. The
          array ``fill`` is then called ``fill_prepared``, so that programs without this preparation fail.
        - ``fill`` (n_columns,) then replaces NaN. It is NaN itself if the model does not impute values.
        - ``indicators`` (n_indicators,), if present, are the numbers of the columns whose masks of NaN are appended to
          the filled rows. Programs that do not append them fail, because the rows are then too short.
        - ``low`` and ``high`` (n_inputs,) are the limits for clipping values. They are infinite if the model
          does not clip values.
        - ``slopes`` (n_layers,) are the slopes of the activations for negative inputs, and 1 for linear layers.
        - ``is_sigmoid`` states whether the features are outputs of a sigmoid.

        If a layer has another activation, the array ``activations`` (n_layers,) with the names of all activations
        replaces ``slopes`` and ``is_sigmoid``. Programs that expect slopes then fail instead of computing wrong values.

        The array ``encoder`` is the fingerprint of the model.

        Parameters
        ----------
        to_other : (ndarray, ndarray), optional
            Matrix and constant of a map to the features of another model, which become the last layer.
        source : str, optional
            What the file is exported from, which becomes the array ``exported_from``.
        """
        arrays = self._encoder_arrays(to_other)
        if source is not None:
            arrays["exported_from"] = np.array(source)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    def _encoder_arrays(self, to_other: tuple[np.ndarray, np.ndarray] | None) -> dict[str, Any]:
        scaler = self.scaler
        low = np.full(self.n_inputs, -np.inf)
        high = np.full(self.n_inputs, np.inf)
        if scaler.clips:
            low = scaler.minimum
            high = scaler.maximum
        fill = np.full(self.n_columns, np.nan) if scaler.fill is None else scaler.fill
        arrays = {"low": low, "high": high, "fill": fill}
        if self.preparation is not None:
            arrays = {"low": low, "high": high, "fill_prepared": fill}
            arrays |= {name: np.array(value) for name, value in _preparation_attributes(self.preparation).items()}
        maps = self.folded()
        if to_other is not None:
            maps.append(to_other)
        for i, (W, b) in enumerate(maps, 1):
            arrays[f"W_{i}"] = W
            arrays[f"b_{i}"] = b
        arrays |= self._shared_arrays() | self._activations(to_other is not None)
        return {**arrays, "encoder": np.array(self.fingerprint)}

    def _activations(self, has_map: bool) -> dict[str, np.ndarray]:
        """Return the arrays of ``encoder.npz`` that describe the activations."""
        activations = [activation for _, _, activation in self.network.feature_layers]
        if has_map:
            activations.append("linear")
        *hidden, last = [ACTIVATIONS[activation].slope for activation in activations]
        is_sigmoid = activations[-1] == "sigmoid"
        if is_sigmoid:
            last = 1.0  # the input of the sigmoid is linear
        slopes = [*hidden, last]
        if None in slopes:
            return {"activations": np.array(activations)}
        return {"slopes": np.array(slopes), "is_sigmoid": np.array(is_sigmoid)}

    def _arrays(self) -> dict[str, np.ndarray]:
        weights = {name: self.parameters[name] for name in self.network.shapes}
        scaling = {"minimum": self.scaler.minimum, "maximum": self.scaler.maximum}
        if self.scaler.fill is not None:
            scaling["fill"] = self.scaler.fill
        if self.scaler.clips:
            scaling["clips"] = np.array(True)
        if self.scaler.center is not None and self.scaler.factor is not None:
            scaling["center"] = self.scaler.center
            scaling["factor"] = self.scaler.factor
        return {**scaling, **self._shared_arrays(), **weights}

    def _shared_arrays(self) -> dict[str, np.ndarray]:
        """Return the optional arrays that a result and ``encoder.npz`` store under the same names."""
        arrays = {}
        if self.offset is not None:
            arrays["offset"] = self.offset
        if self.scaler.indicators is not None:
            arrays["indicators"] = self.scaler.indicators
        return arrays

    def _wide(self, name: str) -> np.ndarray:
        return np.asarray(self.parameters[name], dtype=np.float64)


def finite_errors(errors: np.ndarray) -> np.ndarray:
    """Return the errors of good rows as float32. Errors that overflow, or are NaN, become its largest number."""
    return np.asarray(np.fmin(errors, np.finfo(np.float32).max).astype(np.float32))


def _network_attributes(network: Network) -> dict[str, Any]:
    """Return the attributes of a model file that describe a network."""
    attributes = {
        "widths": list(network.widths),
        "activation": network.activation,
        "code": network.code,
        "gain": network.gain,
    }
    if network.output_layer != "code":
        attributes["output_layer"] = network.output_layer
    return attributes


def _preparation_attributes(preparation: Preparation) -> dict[str, str]:
    """Return the attributes of a model file that describe a preparation."""
    attributes = {"row_scale": preparation.row_scale, "transform": preparation.transform}
    return {name: value for name, value in attributes.items() if value is not None}
