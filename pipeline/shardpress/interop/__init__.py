"""Interfaces to other libraries: a scikit-learn estimator, and export of the encoder to ONNX."""
