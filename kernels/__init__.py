"""Device code: Theano lives here and nowhere else, behind :mod:`kernels.backend`."""
