"""The autoencoder for other libraries: an estimator of scikit-learn, and an encoder for ONNX runtimes."""
