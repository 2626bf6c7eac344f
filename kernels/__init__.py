"""Device code: Theano lives here and nowhere else, behind :mod:`kernels.backend`."""

# Products of the encoder always run on this many rows, the last tile padded: BLAS picks other kernels, and so other
# roundings, for other heights, and the features of a row must not depend on the rows around it. It stands here, so that
# memory can be planned without loading Theano.
TILE_ROWS = 1024
