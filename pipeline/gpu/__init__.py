"""What a CUDA card needs beside its driver, and how it gets into this environment; the standard library alone."""
