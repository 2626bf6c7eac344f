"""What is known of the rows before the training."""
