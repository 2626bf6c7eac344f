"""Presets: values of several settings under one name, given with ``--preset``."""

from __future__ import annotations

from collections.abc import Mapping

# Each setting that changes the model has its value here, even if it is the default, because defaults can change.
_REFERENCE = {
    "row_scale": "none",
    "transform": "none",
    "scale": "range",
    "clip_quantile": 0.0,
    "n_features": 2,
    "hidden": (),
    "output_layer": "code",
    "activation": "relu",
    "code_activation": "sigmoid",
    "decoder_gain": False,
    "nested": False,
    "start": "random",
    "biases": "zero",
    "optimizer": "momentum",
    "learning_rate": 0.1,
    "schedule": "constant",
    "corruption": 0.0,
    "replicas": 1,
    "validation_fraction": 0.0,
}

PRESETS: Mapping[str, Mapping[str, object]] = {"reference": _REFERENCE}
"""Values of settings by the names of presets and settings.

The values of ``reference`` never change: its model is the one of the published table that ``scripts/reference.py``
reproduces.
"""


def values_of_preset(name: object) -> Mapping[str, object]:
    """Return the values of a preset by the names of the settings; nothing for None."""
    if name is None:
        return {}
    return PRESETS[str(name)]
