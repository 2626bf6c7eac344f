"""The scan of the rows before the training, and the scaling of rows."""
