"""What an autoencoder looks like: a plain description that graph, C code, NumPy reference and files all follow.

Layers 1 to n go from the columns to the features; each one's way back, its mirror, has the same weights, transposed::

    a_0 = x
    a_l = f_l(a_(l-1) . W_l + b_hidden_l)                    a_n = h, the features
    s_n = h, or (h - center) * gain
    s_(l-1) = g_l(s_l . W_l^T + b_output_l)                  s_0 = y, the reconstruction

where every f and g is the hidden layers' activation, but for ``f_n``, which is the code's, and ``g_1``, which is
linear. Nothing here needs Theano, so whoever describes a network may import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from kernels.activations import ACTIVATIONS

__all__ = ["Network"]


@dataclass(frozen=True)
class Network:
    """An autoencoder with tied weights.

    Attributes
    ----------
    widths : tuple of int
        Columns in, each hidden layer's units, features out: one layer of weights between each two.
    activation : str
        Of the hidden layers and their mirrors, one of `kernels.activations.HIDDEN`.
    code : str
        Of the features, one of `kernels.activations.CODES`.
    gain : bool
        Whether the decoder learns a factor for each feature, so that the encoder's size is its own: a sigmoid need not
        saturate to reach the range of the data.
    """

    widths: tuple[int, ...]
    activation: str = "relu"
    code: str = "sigmoid"
    gain: bool = False

    @property
    def n_inputs(self) -> int:
        """Columns in."""
        return self.widths[0]

    @property
    def n_features(self) -> int:
        """Columns out."""
        return self.widths[-1]

    @property
    def n_layers(self) -> int:
        """Matrices of weights."""
        return len(self.widths) - 1

    @property
    def center(self) -> float:
        """What the gain takes as the middle of a feature: the code's output for the input 0."""
        return ACTIVATIONS[self.code].middle

    @property
    def activations(self) -> tuple[str, ...]:
        """Of each layer on the way in: ``f_1`` to ``f_n``."""
        return (*[self.activation] * (self.n_layers - 1), self.code)

    @property
    def mirrors(self) -> tuple[str, ...]:
        """Activations of each layer's mirror on the way back: ``g_1`` to ``g_n``."""
        return ("linear", *[self.activation] * (self.n_layers - 1))

    @property
    def n_weights(self) -> int:
        """Entries of all matrices: a row takes two operations for each, in its layer and again in the mirror."""
        return sum(n * m for n, m in pairwise(self.widths))

    @property
    def layers(self) -> tuple[tuple[str, str, str], ...]:
        """Of each layer the names of its weights, of its bias on the way in and of its mirror's bias.

        Stacked layers have their numbers behind them, from 1 on, which keeps them apart in graphs and files.
        """
        ends = [""] if self.n_layers == 1 else [f"_{i + 1}" for i in range(self.n_layers)]
        return tuple((f"W{end}", f"b_hidden{end}", f"b_output{end}") for end in ends)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each parameter by its name, layer after layer, and the gain last. All are float32."""
        found: dict[str, tuple[int, ...]] = {}
        for names, (n, m) in zip(self.layers, pairwise(self.widths), strict=True):
            found |= zip(names, ((n, m), (m,), (n,)), strict=True)
        return found | ({"gain": (self.n_features,)} if self.gain else {})
