"""Installation of the libraries that a CUDA card needs in addition to its driver, with the standard library only."""
