"""The numbers that defaults are made of, where these follow from the inputs; docs/training.md has the measurements."""

from __future__ import annotations

from kernels.rules import RULES

__all__ = [
    "COPIES_IN_TRAINING",
    "EPOCHS",
    "LEARNING_RATES",
    "LEAST_STEPS",
    "MANY_INPUTS",
    "MASKED",
    "MOST_UNITS",
    "RATED_INPUTS",
    "ROWS_PER_UNIT",
    "UNITS_PER_INPUT",
]

# Units of the hidden layer, where none are asked for: see `resolve._hidden_of`.
MOST_UNITS = 512
UNITS_PER_INPUT = 8
ROWS_PER_UNIT = 4

# Of more columns than `RATED_INPUTS` the rate falls as their number grows: all weights of a unit move at once, and what
# it takes in by the sum of a row times that.
RATED_INPUTS = 784
LEARNING_RATES = {name: rule.learning_rate for name, rule in RULES.items()}

# Of a network: parameters, adam's states, what follows on each, gradients, the best ones; a checkpoint, its file twice.
COPIES_IN_TRAINING = 18

# Where so many columns say much of each other, a few that are hidden cost little error, and classifiers gain by it; and
# by sigmoids. Of fewer each is a large part of the row: missed where it is hidden, and far outside the end of sigmoids.
MANY_INPUTS = 256
MASKED = 0.0625

# So many epochs do for large data; of small data they would be too few steps, however many rows see each of them.
EPOCHS = 20
LEAST_STEPS = 2000
