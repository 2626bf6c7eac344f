"""Installation of the libraries that a CUDA card needs in addition to its driver.

Only the standard library is needed.
"""
