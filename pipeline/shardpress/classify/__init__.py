"""Comparison of features with raw columns and principal components, by the accuracy of a classifier."""
