"""Computation on the CPU and on devices: the only package that uses Theano, through :mod:`shardpress_kernels.backend`.

The constants are here so that memory can be planned without loading Theano.
"""

# Products of the encoder always have this number of rows; the last tile is padded. For other numbers of rows, BLAS uses
# other kernels, which round differently. The features of a row must not depend on the number of rows.
TILE_ROWS = 1024
"""Number of rows of a product of the encoder."""

# libgpuarray's kernel that looks up rows counts bytes in 32 bits. From a larger array it would return wrong rows.
MOST_RESIDENT = 2**32
"""Largest size in bytes of the rows that a device keeps."""
