"""Encoding: rows and a model in, files of features out."""
