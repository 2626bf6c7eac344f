"""The model: scaler, preparation, network, labels, device, and the encoder in NumPy."""
