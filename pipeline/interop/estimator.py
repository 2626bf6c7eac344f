"""The autoencoder as a transformer of scikit-learn's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.columns import Columns
from pipeline.doctor.packages import HOW_TO_GET_IT
from pipeline.errors import ConfigError, DataError, DeviceError, shown
from pipeline.interop.applying import computed, decoded, encoded, errors, has_theano, is_lazy
from pipeline.model import Model, load_model
from pipeline.settings.config import Config
from pipeline.settings.flags import converted

try:
    import sklearn.callback as _callback
except ImportError:  # scikit-learn before 1.9; training needs 1.9, applying a model does not
    _callback = None

__all__ = ["TiedAutoencoder"]

_CallbackSupportMixin: Any = _callback.CallbackSupportMixin if _callback else object
_with_callbacks: Any = _callback.with_callbacks if _callback else lambda method: method

# What rows may be, as in files; of any other the first is made.
_CODES = ("f8", "f4", "f2", "?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
_DTYPES = [np.dtype(order + code) for order in "=<>" for code in _CODES]


@dataclass(eq=False, repr=False)
class TiedAutoencoder(_CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """An autoencoder with tied weights, which makes compact features of rows: the very model of ``shardpress run``.

    Rows that are fitted with it give, for the same settings and seed, the bits that a run on a shard of them has.
    It is trained by Theano, on the device that ``THEANO_FLAGS`` names; where there is no Theano, a fitted one still
    transforms, in NumPy. It pickles as arrays.

    Parameters
    ----------
    n_features : int, optional
        Columns out; 64, or half the columns where there are fewer than 128.
    hidden : tuple of int, optional
        Units of each hidden layer; one of 512 by default, of fewer for narrow data or few rows. ``()`` for none.
    activation : str
        Activation of the hidden layers; ``shardpress run --help`` lists the values.
    code_activation : str, optional
        Activation of the features; by default "sigmoid", or "linear" for fewer than 256 columns.
    decoder_gain : bool, optional
        Whether the decoder learns a factor for each feature; with a sigmoid code it does.
    start : {"components", "random"}
        Start of the weights: the rows' principal components, or random.
    epochs : int, optional
        Passes over the rows, at most; 20, or as many as make 2,000 steps.
    batch_size : int, optional
        Rows of one step; 128, or a fiftieth of the rows, at least 16.
    optimizer : str
        Update rule; ``shardpress run --help`` lists the values.
    learning_rate : float, optional
        Size of a step; the update rule's own.
    schedule : {"linear", "constant"}
        Of the learning rate; `partial_fit`, which does not know the end, has a constant one.
    biases : {"mean", "zero"}
        Start of the biases of random weights.
    momentum : float
        Decay of the update rule's running average.
    corruption : float, optional
        Share of the entries that training hides; 0.0625 with a hidden layer and 256 columns or more, else 0.
    weight_decay : float
        By how much a step shrinks the weights, times its learning rate.
    replicas : int, optional
        Copies of the model that train apart and meet many times an epoch; 1, or 8 where one device would take hours.
        `partial_fit` has one.
    validation_fraction : float
        Share of the rows that are kept out of training to watch its progress.
    patience : int
        Stop after so many epochs without a better validation cost; 0 for never.
    impute : {"mean", "median"}, optional
        Fill in NaN, which is refused by default.
    clip_quantile : float
        Share of each column's values, at either end, that its range leaves out and that are moved to its edge.
    shuffle_window, memory_budget, device_memory_budget : int or str
        Bytes of rows that are shuffled together, held in the host's memory and in a device's own (half of what is free
        there). Texts like ``"4GiB"`` do as well.
    random_state : int, RandomState instance or None
        Where all randomness starts; an integer is the ``seed`` of a run.

    Attributes
    ----------
    model_ : Model
        Scaling, network, parameters, and in ``about["training"]`` the cost of every epoch.
        ``Path("model.h5").write_bytes(model_.to_hdf5())`` is what ``shardpress run --model model.h5`` takes.
    n_iter_ : int
        Epochs that were made.
    complaints_ : list of str
        What a run would warn of, such as features that say less than principal components.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Where all columns had names that are texts.

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
    decoder_gain: bool | None = None
    start: str = "components"
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str = "adam"
    learning_rate: float | None = None
    schedule: str = "linear"
    biases: str = "mean"
    momentum: float = 0.9
    corruption: float | None = None
    weight_decay: float = 0.0
    replicas: int | None = None
    validation_fraction: float = 0.05
    patience: int = 5
    impute: str | None = None
    clip_quantile: float = 0.0
    shuffle_window: int = 256 * 2**20
    memory_budget: int = 2 * 2**30
    device_memory_budget: int | None = None
    random_state: Any = 0

    # -- learning --

    @_with_callbacks
    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from rows, and forget what was learnt before.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_inputs)
            Of NumPy or pandas, in their own dtype; or of Dask: each block is computed once, and what does not fit in
            half the memory budget lies in a temporary file (``TMPDIR``) meanwhile.
        y : object
            Not looked at.

        Raises
        ------
        ValueError
            For parameters or rows that cannot work; when the training diverges.
        DeviceError
            Where there is no Theano, or the device or a compiler cannot be used.
        """
        _check_for_theano()
        from pipeline.interop.fitting import Epochs, begin

        with _as_scikit_learns():
            config = self._config()
            rows = self._rows(computed(X, config.machine.memory_budget // 2), reset=True, least=2)
            fit = begin(rows, config)
            return self._take(fit, Epochs(self, fit, {"X": X, "y": y}).run())

    @_with_callbacks
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn from one more pass over some rows, at a constant rate.

        The first rows decide the network and the range that columns are scaled by. So many calls with all rows are as
        many epochs of `fit` at a constant rate without validation, bit for bit. Parameters are as `fit` or `from_run`
        has left them, if they have.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_inputs)
            Two rows at least in the first call.
        y : object
            Not looked at.
        """
        _check_for_theano()
        from pipeline.interop.fitting import Epochs, go_on
        from pipeline.training.checkpoint import Checkpoint

        given: Model | None = getattr(self, "model_", None)
        with _as_scikit_learns():
            is_first = given is None
            rows = self._rows(computed(X), reset=is_first, least=2 if is_first else 1)
            state = getattr(self, "_checkpoint", None)
            checkpoint = None if state is None else Checkpoint.from_npz(state)
            fit = go_on(rows, self._config(), given, checkpoint)
            self._take(fit, Epochs(self, fit, {"X": X, "y": y}).run())
            self._checkpoint = fit.training.checkpoint().to_npz()
        return self

    @classmethod
    def from_run(cls, path: str | Path) -> Self:
        """The model of a finished run, or a ``model.h5``, as a fitted estimator; no Theano is needed.

        A value that a run takes for a missing one (``--missing-value``) must be NaN here.

        Raises
        ------
        NoInput, DataError
            When there is no model, or none that can be read.
        """
        model = load_model(path)
        if model.offset is not None:
            raise DataError(
                f"model={shown(path)}: trained on whole numbers above 2^53, which an estimator would round. Encode "
                "such rows with `shardpress run --model`."
            )
        network = model.network
        config = model.about.get("config", {})
        known = {name: config[name] for name in cls().get_params() if name in config}
        of_network = {
            "n_features": network.n_features,
            "hidden": network.widths[1:-1],
            "activation": network.activation,
            "code_activation": network.code,
            "decoder_gain": network.gain,
        }
        estimator = cls(**{**known, **of_network, "random_state": config.get("seed", 0)})
        estimator._set(**estimator._learned(model), n_features_in_=model.n_inputs)
        if model.columns.names:  # scikit-learn compares them with those of a data frame
            estimator._set(feature_names_in_=np.array(model.columns.names, dtype=object))
        return estimator

    # -- what was learnt --

    def transform(self, X: Any) -> Any:
        """Features of rows.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_inputs)
            An array of Dask is encoded block by block, when the result is computed.

        Returns
        -------
        array of shape (n_rows, n_features), float32
        """
        return self._applied(encoded, X)

    def inverse_transform(self, X: Any) -> Any:
        """Rows (n_rows, n_inputs), float64, that features (n_rows, n_features) stand for; of Dask, lazily."""
        check_is_fitted(self)
        features = X
        if not is_lazy(X):
            features = check_array(X, dtype=[np.float32, np.float64], input_name="X")
        expected = self.model_.n_features
        if features.shape[1] != expected:
            raise ValueError(f"X has {features.shape[1]} columns, expected the {expected} features of transform")
        return decoded(self.model_, features)

    def score_samples(self, X: Any) -> Any:
        """How well each row is told by its features: minus the mean squared error of its scaled columns, (n_rows,)."""
        return -self._applied(errors, X)

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`: 0 at best."""
        return float(np.mean(self.score_samples(X), dtype=np.float64))

    # -- inside --

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn may expect."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.impute is not None
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(self.model_.n_features)

    def _config(self) -> Config:
        """The parameters as the settings of a run, read as a configuration file's are."""
        given = self.get_params(deep=False)
        seed = given.pop("random_state")
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
        return Config.of(**converted({**plain, "seed": seed}, "", ConfigError))

    def _rows(self, X: Any, reset: bool, least: int = 1) -> Any:
        if is_lazy(X):  # its values are checked block by block
            return validate_data(self, X, reset=reset, skip_check_array=True)
        return validate_data(
            self,
            X,
            reset=reset,
            dtype=_DTYPES,
            ensure_all_finite="allow-nan" if self._fills(reset) else True,
            ensure_min_samples=least,
            ensure_min_features=2 if reset else 1,  # a single column cannot be compressed
        )

    def _fills(self, reset: bool) -> bool:
        if reset:
            return self.impute is not None
        return self.model_.scaler.fill is not None

    def _applied(self, apply: Any, X: Any) -> Any:
        check_is_fitted(self)
        with _as_scikit_learns():
            return apply(self.model_, self._rows(X, reset=False))

    def _learned(self, model: Model) -> dict[str, Any]:
        history = model.about.get("training", {}).get("history", [])
        return {"model_": model, "n_iter_": len(history)}

    def _take(self, fit: Any, model: Model) -> Self:
        names = getattr(self, "feature_names_in_", None)
        if names is not None:
            model = replace(model, columns=Columns(tuple(names), "feature_names_in_"))
        if hasattr(self, "_checkpoint"):  # of another training
            del self._checkpoint
        return self._set(**self._learned(model), complaints_=fit.complaints(model))

    def _set(self, **learned: Any) -> Self:
        for name, value in learned.items():
            setattr(self, name, value)
        return self


def _check_for_theano() -> None:
    if not has_theano():
        raise DeviceError(
            f"TiedAutoencoder learns by Theano, which is not installed here; one that is fitted transforms without. "
            f"{HOW_TO_GET_IT}"
        )


@contextmanager
def _as_scikit_learns() -> Iterator[None]:
    """Errors about parameters and rows as the `ValueError` that its users expect, flags by their parameters' names."""
    try:
        yield
    except (ConfigError, DataError) as error:
        words = re.sub(r"--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), str(error))
        raise ValueError(words) from error
