"""Encoding of rows with a model, and writing of features to files."""
