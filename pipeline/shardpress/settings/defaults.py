"""Constants of defaults that depend on the inputs; docs/performance.md contains the measurements."""

from __future__ import annotations

from shardpress_kernels.rules import RULES

# Default units of the hidden layer: see `resolve._default_hidden`.
MOST_UNITS = 512
UNITS_PER_INPUT = 8
ROWS_PER_UNIT = 4

# Default learning rates. With more columns than `RATED_INPUTS` the rate is proportionally smaller, because all weights
# of a unit move at once, and its input changes by the sum over all columns.
RATED_INPUTS = 784
LEARNING_RATES = {name: rule.learning_rate for name, rule in RULES.items()}

# Copies of a network: parameters, adam's states, the next values of each, gradients, the best parameters, a checkpoint,
# and its file twice.
COPIES_IN_TRAINING = 18

# The model depends on these numbers, so they are constants, and no shares of the memory budget.
SHUFFLE_WINDOW = 2**28  # bytes of rows that are shuffled together
NETWORK_BYTES = 2**30  # bytes of all copies of a network with the default hidden layer

# With this many columns, which are usually correlated, hiding a few of them hardly increases the error, and improves
# classifiers. So do sigmoids, but only without a hidden layer. With fewer columns, each one is a large part of the row,
# and sigmoids saturate.
MANY_INPUTS = 256
MASKED = 0.0625

# Weight of the mean loss of targets, compared with the variance of the columns.
TARGET_WEIGHT = 1.0
# Factor of the learning rate if a head learns targets, for fewer than `MANY_INPUTS` columns. With 784 columns, the
# training diverged at this rate.
TARGET_RATE = 5.0

# These epochs are enough for large data; for small data they would be too few steps.
EPOCHS = 20
LEAST_STEPS = 2000
