"""Autoencoder as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from shardpress.base.errors import ConfigError, DataError, DeviceError, printable
from shardpress.base.packages import missing_theano, unsuitable_python
from shardpress.hdf5.columns import Columns, row_shape_of
from shardpress.interop.applying import (
    compute,
    decode,
    encode,
    flattened,
    has_theano,
    is_lazy,
    mapped,
    reconstruction_errors,
)
from shardpress.model.encoder import Model
from shardpress.result.alignment import LinearMap
from shardpress.result.asof import find_map
from shardpress.result.finished import load_model
from shardpress.settings.config import Config
from shardpress.settings.flags import convert_settings

# Dtypes of rows that are supported, as in files. Rows of other dtypes are converted to the first one.
_CODES = ("f8", "f4", "f2", "?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
_DTYPES = [np.dtype(order + code) for order in "=<>" for code in _CODES]
# Parameters that are not named like the settings: scikit-learn has `random_state`, and the method `transform`.
_PARAMETERS = {"seed": "random_state", "transform": "value_transform"}


@dataclass(eq=False, repr=False)
class TiedAutoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Autoencoder with tied weights that computes compact features of rows.

    ``shardpress run`` trains the same model. With the same settings and seed, `fit` gives the same bits as a run on one
    shard with the same rows. Theano trains the model on the device in ``THEANO_FLAGS``. A fitted estimator can also
    transform rows without Theano, in NumPy. Its pickles contain plain arrays.

    Parameters
    ----------
    n_features : int, optional
        Number of features of the code. The default is 64, or half the number of columns if there are fewer than 128
        columns.
    hidden : tuple of int, optional
        Number of units in each hidden layer. The default is one layer with 512 units, or fewer for narrow data or few
        rows. Use ``()`` for no hidden layer.
    activation : str
        Activation of the hidden layers. ``shardpress run --help-all`` lists the values.
    code_activation : str, optional
        Activation of the features. The default is "linear", or "sigmoid" for 256 columns or more without a hidden
        layer.
    nested : bool
        Whether the first 8, 16, 32, ... features can be used without the others. The features are then linear.
    output_layer : {"code", "hidden"}, optional
        Layer whose outputs are the features: the code with `n_features` features (the default), or the last hidden
        layer, which is usually wider.
    epochs : int, optional
        Maximum number of passes over the rows. The default is 20, or more if 20 passes have fewer than 2,000 steps.
    batch_size : int, optional
        Number of rows per step. The default is a fiftieth of the rows, but at least 16 and at most 128.
    optimizer : str
        Update rule. ``shardpress run --help-all`` lists the values.
    learning_rate : float, optional
        Largest learning rate. The default depends on the update rule. `partial_fit` uses it in all steps, because it
        does not know the last step.
    corruption : float, optional
        Fraction of the entries to hide during training. The default is 0.0625 for networks with a hidden layer and at
        least 256 columns, otherwise 0.
    target_weight : float, optional
        If it is set, `fit` also trains a linear function of the features to predict `y`: classes (strings or whole
        numbers) or numbers (floats). It is the weight of its loss compared with the reconstruction; 1 suits most data.
        The default is to ignore `y`.
    missing_label : int, float or str, optional
        Value in `y` of rows without a target. scikit-learn's semi-supervised estimators use -1: pass
        ``missing_label=-1`` for their targets. By default, -1 is a class like any other. NaN, None, `pandas.NA` and an
        empty string always mean that a row has no target.
    replicas : int, optional
        Number of copies of the model that train separately and are averaged many times per epoch. The default is 1, or
        8 if one device would take hours. `partial_fit` always uses 1.
    validation_fraction : float
        Fraction of the rows to hold out from training, to measure the validation cost.
    patience : int
        Number of epochs without a lower validation cost after which training stops. If it is 0, training never stops
        early.
    impute : {"mean", "median"}, optional
        Column statistic that replaces NaN. By default, NaN raises an error.
    missing_indicator : bool
        Whether to add a column for each column with NaN, which is 1 where the value is NaN and 0 elsewhere. This
        requires `impute`.
    row_scale : {"auto", "none", "total", "median", "norm", "max"}
        Size by which each row is divided before the columns are scaled. With "total", each row gets a total of 10,000.
        "auto" chooses "total" for rows that look like counts, "median" for spectra of different brightness, and "none"
        for all others.
    value_transform : {"auto", "none", "log1p"}
        Transformation of all values before the columns are scaled: ``sign(x) * log(1 + abs(x))``. "auto" chooses
        "log1p" for counts and for values with heavy tails.
    scale : {"auto", "range", "std", "common", "none"}
        Scaling of the columns: each to [0, 1], each to the same variance, all divided by one number, or none. "auto"
        chooses one of the first three.
    clip_quantile : float
        Fraction of each column's values to clip at either end, so that outliers do not widen the range.
    memory_budget : int or str
        Host memory for rows and features, in bytes. Strings like ``"4GiB"`` are allowed.
    device_memory_budget : int or str, optional
        Device memory for rows, in bytes. The default is half of the free memory.
    random_state : int, RandomState instance or None
        Seed of all random numbers. An integer has the same effect as the ``seed`` of a run.

    Attributes
    ----------
    model_ : Model
        Model with the scaling, the network and the parameters. ``model_.about.training.history`` contains the cost of
        each epoch. ``Path("model.h5").write_bytes(model_.to_hdf5())`` writes a file for ``shardpress run --model
        model.h5``.
    n_iter_ : int
        Number of training epochs.
    complaints_ : list of str
        Warnings that a run would log, for example about features that are worse than principal components.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, if all of them are strings.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from shardpress import TiedAutoencoder
    >>> features = TiedAutoencoder(n_features=16).fit_transform(load_digits().data)
    """

    n_features: int | None = None
    hidden: tuple[int, ...] | None = None
    activation: str = "relu"
    code_activation: str | None = None
    nested: bool = False
    output_layer: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str = "adam"
    learning_rate: float | None = None
    corruption: float | None = None
    target_weight: float | None = None
    missing_label: float | str | None = None
    replicas: int | None = None
    validation_fraction: float = 0.05
    patience: int = 5
    impute: str | None = None
    missing_indicator: bool = False
    row_scale: str = "auto"
    value_transform: str = "auto"
    scale: str = "auto"
    clip_quantile: float = 0.0
    memory_budget: int = 2 * 2**30
    device_memory_budget: int | None = None
    random_state: Any = 0

    # -- training --

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train a new model.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_rows, n_inputs) or (n_rows, ...)
            Rows, for example a NumPy array, a pandas DataFrame, a SciPy sparse matrix or a Dask array. Rows with
            several axes, such as images, are flattened here and in all other methods, as in a run. Sparse rows are made
            dense block by block. Each block of a Dask array is computed once. A Dask array that exceeds half the memory
            budget is stored in a temporary file (in ``TMPDIR``).
        y : array-like of shape (n_rows,), optional
            Targets. They are ignored unless `target_weight` is set. Rows without a target (see `missing_label`), and
            masked ones, are used for the reconstruction only.

        Raises
        ------
        ValueError
            If parameters, rows or targets are invalid, or if the training diverges.
        DeviceError
            If Theano is not installed, or if the device or a compiler cannot be used.
        """
        _check_for_theano()
        from shardpress.interop.fitting import prepare_fit

        with _as_value_errors():
            config = self._config()
            row_shape = row_shape_of(getattr(X, "shape", ()))
            rows = self._rows(compute(X, config.machine.memory_budget // 2), reset=True, min_rows=2)
            self._train(prepare_fit(rows, config, self._targets(y, rows.shape[0]), row_shape))
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Train the model with one more pass over some rows, at a constant learning rate.

        The rows of the first call determine the network and the ranges of the columns. If all rows are passed to each
        of `n` calls, the result has the same bits as `fit` with `n` epochs, a constant learning rate and no validation.
        After `fit` or `from_run`, training continues with the parameters of the existing model.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_rows, n_inputs)
            Rows. The first call needs at least two rows.
        y : object
            Ignored, because later rows could have other classes.
        """
        _check_for_theano()
        from shardpress.interop.fitting import prepare_partial_fit
        from shardpress.training.checkpoint import Checkpoint

        model: Model | None = getattr(self, "model_", None)
        with _as_value_errors():
            is_first = model is None
            rows = self._rows(compute(X), reset=is_first, min_rows=2 if is_first else 1)
            state = getattr(self, "_checkpoint", None)
            checkpoint = None if state is None else Checkpoint.from_npz(state)
            config = self._config().changed(target_weight=None)
            fit = prepare_partial_fit(rows, config, model, checkpoint)
            self._train(fit)
            self._checkpoint = fit.training.checkpoint().to_npz()
        return self

    @classmethod
    def from_run(cls, path: str | Path, as_of: int | str | Path | None = None) -> Self:
        """Return a fitted estimator with the model of a finished run or of a file that contains a model.

        This does not require Theano. If the run used ``--missing-value``, rows for the estimator must contain NaN
        instead of that value.

        Parameters
        ----------
        path : str or Path
            An output directory or a model file.
        as_of : int, str or Path, optional
            `transform` maps the features to those of this generation, other output directory or map file, as
            `open_features` does. `path` must then be an output directory.

        Raises
        ------
        NoInput, DataError
            If the model does not exist or cannot be read, or if there is no such map.
        """
        model = load_model(path)
        if model.offset is not None:
            raise DataError(
                f"model={printable(path)}: the model was trained on whole numbers above 2^53, which an estimator would "
                "round. "
                "Encode such rows with `shardpress run --model`."
            )
        estimator = cls(**_parameters_of(model, cls().get_params()))
        estimator._set_model(model)
        estimator.n_features_in_ = model.n_columns
        if as_of is not None:
            estimator.map_ = find_map(path, as_of, model.fingerprint)
        if model.columns.names:  # scikit-learn compares these names with the columns of a data frame
            estimator.feature_names_in_ = np.array(model.columns.names, dtype=object)
        return estimator

    # -- applying the model --

    def transform(self, X: Any) -> Any:
        """Return the features of rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_rows, n_inputs)
            Rows. A Dask array is encoded block by block when the result is computed.

        Returns
        -------
        array of shape (n_rows, n_features), float32
        """
        features = self._apply(encode, X)
        to_other = self._map()
        return features if to_other is None else mapped(to_other, features)

    def inverse_transform(self, X: Any) -> Any:
        """Return the float64 rows (n_rows, n_inputs) that the model reconstructs from features (n_rows, n_features).

        Missing values are not restored, even if the model has missing indicators.
        For a Dask array, the result is lazy.
        """
        check_is_fitted(self)
        if self._map() is not None:
            raise ValueError("as_of was given, so transform returns the features of another model. Omit as_of.")
        features = X
        if not is_lazy(X):
            features = check_array(X, dtype=[np.float32, np.float64], input_name="X")
        expected = self.model_.n_features
        if features.shape[1] != expected:
            raise ValueError(
                f"X has {features.shape[1]} columns, expected the {expected} features that transform returns"
            )
        return decode(self.model_, features)

    def score_samples(self, X: Any) -> Any:
        """Return the negative reconstruction error of rows. Rows with low scores are unlike the training rows.

        The error is the mean over the scaled columns of the squared differences from the reconstruction. It compares
        values before they are clipped, as ``shardpress run --row-error`` does.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_rows, n_inputs)
            Rows. For a Dask array, the result is lazy.

        Returns
        -------
        array of shape (n_rows,), float32
        """
        return -self._apply(reconstruction_errors, X)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of `score_samples`. It is 0 if the reconstructions are perfect."""
        return float(np.mean(self.score_samples(X), dtype=np.float64))

    # -- private methods --

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = self.impute is not None
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        to_other = self._map()
        return int(self.model_.n_features if to_other is None else to_other.W.shape[1])

    def _map(self) -> LinearMap | None:
        return getattr(self, "map_", None)

    def _config(self) -> Config:
        """Convert the parameters to the settings of a run, with the rules for values in a configuration file."""
        parameters = self.get_params(deep=False)
        seed = parameters.pop("random_state")
        parameters["transform"] = parameters.pop("value_transform")
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}
        return Config.of(**convert_settings({**plain, "seed": seed}, "", ConfigError, _parameter))

    def _targets(self, y: Any, n_rows: int) -> Any:
        """Return the targets of `fit`; None if they are ignored."""
        if self.target_weight is None:
            return None
        if y is None:
            raise ValueError("target_weight is set, but y is None. Pass the targets as y, or remove target_weight.")
        targets = compute(y)
        if not np.ma.isMaskedArray(targets):
            targets = np.asarray(targets)
        if targets.shape not in ((n_rows,), (n_rows, 1)):
            raise ValueError(f"y has the shape {targets.shape}, expected ({n_rows},), one target for each row of X")
        return targets.reshape(n_rows)

    def _rows(self, X: Any, reset: bool, min_rows: int = 1) -> Any:
        X = flattened(X)
        if is_lazy(X):  # the values are checked later, block by block
            return validate_data(self, X, reset=reset, skip_check_array=True)
        rows = validate_data(
            self,
            X,
            reset=reset,
            accept_sparse="csr",  # other sparse matrices are converted
            dtype=_DTYPES,
            ensure_all_finite="allow-nan",  # the message of scikit-learn about NaN recommends other estimators
            ensure_min_samples=min_rows,
            ensure_min_features=2 if reset else 1,  # a single column cannot be compressed
        )
        values = rows.data if issparse(rows) else rows
        fills = self.impute is not None if reset else self.model_.scaler.fill is not None
        if not fills and values.dtype.kind == "f" and np.isnan(values.min(initial=0)):
            raise ValueError(
                'Input X contains NaN, expected finite numbers. Fit with impute="median" (or "mean"), which fills in '
                "missing values in all rows, or remove such rows."
            )
        return rows

    def _apply(self, function: Any, X: Any) -> Any:
        check_is_fitted(self)
        with _as_value_errors():
            return function(self.model_, self._rows(X, reset=False))

    def _set_model(self, model: Model) -> None:
        self.model_ = model
        self.n_iter_ = 0 if model.about.training is None else len(model.about.training.history)

    def _train(self, fit: Any) -> None:
        """Train, and set the fitted attributes."""
        from shardpress.training.complaints import complaints

        model = fit.run()
        names = getattr(self, "feature_names_in_", None)
        if names is not None:
            model = replace(model, columns=Columns(tuple(names), "feature_names_in_"))
        if hasattr(self, "map_"):  # it belongs to the model of `from_run`
            del self.map_
        if hasattr(self, "_checkpoint"):  # it belongs to an earlier call of `partial_fit`
            del self._checkpoint
        self._set_model(model)
        self.complaints_ = list(complaints(model.about, fit.config.training, model.network))
        if fit.targets is not None and fit.targets.remark:
            self.complaints_.append(fit.targets.remark)


def _parameter(name: str) -> str:
    """Return the name of the parameter for a setting."""
    return _PARAMETERS.get(name, name)


def _parameters_of(model: Model, names: Iterable[str]) -> dict[str, Any]:
    network = model.network
    config = model.about.config
    stored = {name: config[name] for name in names if name in config}
    return {
        **stored,
        "n_features": network.n_features,
        "hidden": network.widths[1:-1],
        "activation": network.activation,
        "code_activation": network.code,
        "output_layer": network.output_layer,
        "value_transform": config.get("transform"),
        "random_state": config.get("seed", 0),
    }


def _check_for_theano() -> None:
    if not has_theano():
        raise DeviceError(
            "TiedAutoencoder needs Theano for training. A fitted estimator can transform without Theano. "
            f"{unsuitable_python() or missing_theano()}"
        )


@contextmanager
def _as_value_errors() -> Iterator[None]:
    """Convert errors about parameters and rows to `ValueError`, with the names of parameters."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise ValueError(error.text(_parameter)) from error
