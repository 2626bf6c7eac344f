"""Computation on the CPU and on devices: the only package that uses Theano, through :mod:`kernels.backend`.

The constants are here so that memory can be planned without loading Theano.
"""

# Products of the encoder always have this number of rows; the last tile is padded. For other numbers BLAS uses other
# kernels, which round differently, but the features of a row must not depend on the other rows.
TILE_ROWS = 1024
"""Number of rows of a product of the encoder."""

# libgpuarray's kernel that looks up rows counts bytes in 32 bits, and would return wrong rows of a larger array.
MOST_RESIDENT = 2**32
"""Largest number of bytes of rows that a device can keep."""
