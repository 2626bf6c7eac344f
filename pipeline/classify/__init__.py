"""Comparison of features, raw columns and principal components by a classifier."""
