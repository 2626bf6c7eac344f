"""Device code: Theano lives here and nowhere else, behind :mod:`kernels.backend`."""

# Products of the encoder always run on this many rows, the last tile padded: BLAS picks other kernels, and so other
# roundings, for other heights, and the features of a row must not depend on the rows around it. It stands here, so that
# memory can be planned without loading Theano.
TILE_ROWS = 1024

# Bytes of rows that a device may keep: libgpuarray's kernel that looks rows up counts them in 32 bits, and would take
# others, without a word, beyond them.
MOST_RESIDENT = 2**32
