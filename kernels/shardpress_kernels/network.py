"""The description of an autoencoder, which the graph, the C code, the NumPy reference and model files use.

Layers 1 to n lead from the columns to the features. Each layer has a mirror in the decoder, with the same weights,
transposed::

    a_0 = x
    a_l = f_l(a_(l-1) . W_l + b_hidden_l)                    a_n = h, the features
    s_n = h, or (h - center) * gain
    s_(l-1) = g_l(s_l . W_l^T + b_output_l)                  s_0 = y, the reconstruction

Every f and g is the activation of the hidden layers, with two exceptions: ``f_n`` is the activation of the features,
and ``g_1`` is linear.

The features that are written are a_n, or the outputs a_(n-1) of the last hidden layer, which are usually more numerous.

In a nested network, the first features can be used without the others. In training, s_n then keeps only the first k
features of a row, and the others are 0. k differs between rows and steps, and is often the number of features.
Source: Rippel, Gelbart and Adams, "Learning ordered representations with nested dropout", 2014.

A network can have a linear head, which predicts the target t of a row during training, and is not part of the model
that encodes rows::

    z = scale (h . W_head + b_head)
    loss = log(sum_j exp(z_j)) - z_t                         if the targets are numbers of classes
    loss = (z - t)^2 / 2                                     if the targets are numbers

The loss of a row without a target is 0. Such a row has the class -1, or the number NaN. The scale is a constant for
which weights of about 1 are suitable, so that they can be learned at the same rate as all others.
This module does not load Theano, so every package can import it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from shardpress_kernels.activations import ACTIVATIONS

OUTPUT_LAYERS = ("code", "hidden")
"""Layers whose outputs can be written: the last layer of the encoder, or the last hidden layer."""


@dataclass(frozen=True)
class Head:
    """A linear head on the features."""

    kind: str  # ``classes`` for a softmax with cross entropy, or ``numbers`` for a squared error
    n_outputs: int  # number of classes; 1 for numbers


class TargetLoss(NamedTuple):
    """Numbers that determine the loss of the targets."""

    weight: float  # factor of the mean loss, which is added to the mean squared error of the reconstruction
    scale: float  # scale of the head's outputs


@dataclass(frozen=True)
class Network:
    """An autoencoder with tied weights."""

    widths: tuple[int, ...]  # columns, units of each hidden layer, features; weights connect adjacent widths
    activation: str = "relu"  # activation of the hidden layers and their mirrors, one of `HIDDEN`
    code: str = "sigmoid"  # activation of the features, one of `CODES`
    # the decoder learns a factor per feature, so that sigmoids need not saturate to reach the data's range
    gain: bool = False
    head: Head | None = None  # head that predicts targets during training
    nested: bool = False  # the decoder gets only the first features of some rows during training
    output_layer: str = "code"  # layer whose outputs are written as features, one of `OUTPUT_LAYERS`

    @property
    def encoder(self) -> Network:
        """The same network without a head, and for all features."""
        return replace(self, head=None, nested=False)

    @property
    def output(self) -> Network:
        """The network that computes the written features as its code. Its parameters are the first ones of this one."""
        if self.output_layer == "code":
            return self.encoder
        return Network(self.widths[:-1], self.activation, code=self.activation)

    @property
    def n_inputs(self) -> int:
        """Number of columns."""
        return self.widths[0]

    @property
    def n_features(self) -> int:
        """Number of features of the code, which the decoder gets."""
        return self.widths[-1]

    @property
    def n_outputs(self) -> int:
        """Number of features that are written."""
        return self.output.n_features

    @property
    def n_layers(self) -> int:
        """Number of layers, each with a matrix of weights."""
        return len(self.widths) - 1

    @property
    def center(self) -> float:
        """Output of the code for the input 0, which is subtracted from a feature before the gain is applied."""
        return ACTIVATIONS[self.code].middle

    @property
    def activations(self) -> tuple[str, ...]:
        """Activation of each layer: ``f_1`` to ``f_n``."""
        return (*[self.activation] * (self.n_layers - 1), self.code)

    @property
    def mirrors(self) -> tuple[str, ...]:
        """Activation of each mirror: ``g_1`` to ``g_n``."""
        return ("linear", *[self.activation] * (self.n_layers - 1))

    @property
    def n_weights(self) -> int:
        """Number of entries of all matrices. A layer and its mirror each need two operations per row and entry."""
        return sum(n * m for n, m in pairwise(self.widths))

    @property
    def layers(self) -> tuple[tuple[str, str, str], ...]:
        """Names of the weights, the bias and the mirror's bias of each layer.

        In a network of several layers, names end with the number of the layer, starting at 1.
        """
        if self.n_layers == 1:
            return (("W", "b_hidden", "b_output"),)
        numbers = range(1, self.n_layers + 1)
        return tuple((f"W_{i}", f"b_hidden_{i}", f"b_output_{i}") for i in numbers)

    @property
    def feature_layers(self) -> tuple[tuple[str, str, str], ...]:
        """Names of the weights, the bias and the activation of each layer that computes the written features."""
        names = zip(self.layers, self.activations, strict=True)
        layers = [(weights, bias, activation) for (weights, bias, _), activation in names]
        return tuple(layers[: self.output.n_layers])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by name: layer by layer, then gain and head. All parameters are float32."""
        shapes: dict[str, tuple[int, ...]] = {}
        for names, (n, m) in zip(self.layers, pairwise(self.widths), strict=True):
            shapes |= zip(names, [(n, m), (m,), (n,)], strict=True)
        if self.gain:
            shapes["gain"] = (self.n_features,)
        if self.head is not None:
            shapes["W_head"] = (self.n_features, self.head.n_outputs)
            shapes["b_head"] = (self.head.n_outputs,)
        return shapes
