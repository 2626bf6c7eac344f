"""Computation on the CPU and on devices: the only package that uses Theano, by :mod:`kernels.backend`.

The constants are here so that memory can be planned without loading Theano.
"""

# Products of the encoder always have this number of rows; the last tile is padded. For other numbers BLAS uses other
# kernels with other roundings, and the features of a row must not depend on the other rows.
TILE_ROWS = 1024
"""Number of rows of a product of the encoder."""

# libgpuarray's kernel that looks up rows counts their bytes in 32 bits. Beyond them it would return wrong rows.
MOST_RESIDENT = 2**32
"""Largest number of bytes of rows that a device can keep."""
