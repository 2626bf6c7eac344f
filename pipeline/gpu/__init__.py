"""Libraries that a CUDA card needs in addition to its driver, and their installation; standard library only."""
