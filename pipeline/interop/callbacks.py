"""scikit-learn's callbacks, where its version has them: told of a training and of each of its epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.interop.fitting import Fit

try:
    import sklearn.callback as _known
except ImportError:  # before 1.9, which a training needs: beside others models are only applied
    _known = None

__all__ = ["CallbackSupportMixin", "Epochs", "Stop", "with_callbacks"]

CallbackSupportMixin: Any = _known.CallbackSupportMixin if _known else object
with_callbacks: Any = _known.with_callbacks if _known else lambda method: method


class Stop(Exception):
    """Somebody who was told of an epoch wants no more of them."""


class Epochs:
    """Tells an estimator's callbacks of the training that its `fit` does.

    Parameters
    ----------
    data : dict
        ``X`` and ``y`` as the user gave them.
    """

    def __init__(self, estimator: Any, fit: Fit, data: dict[str, Any]) -> None:
        self._estimator, self._fit, self._data = estimator, fit, data
        n_epochs = fit.training.settings.epochs - fit.training.standing.epoch
        self._context = estimator._init_callback_context(max_subtasks=n_epochs)
        self._epoch: Any = None  # the context of the one under way

    def run(self) -> Any:
        """Train, and return the model."""
        self._context.call_on_fit_task_begin(estimator=self._estimator, **self._data)
        self._begin_epoch()
        model = self._fit.run(self._advance)
        self._end(self._context)
        return model

    def _advance(self, n_rows: int, standing: object) -> None:
        if n_rows:  # else no step, but an epoch has ended
            return
        if self._end(self._epoch):
            raise Stop
        if not self._fit.training.is_over:
            self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._epoch = self._context.subcontext(task_name="epoch")
        self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def _end(self, context: Any) -> bool:
        """Whether a callback wants to stop."""

        def fitted() -> Any:  # made only for a callback that looks at it
            return self._estimator._learned(self._fit.model())

        ended = context.call_on_fit_task_end(estimator=self._estimator, **self._data, reconstruction_attributes=fitted)
        return bool(ended)
